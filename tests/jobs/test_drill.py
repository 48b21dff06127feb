"""`torpor drill`: it says whether a checkpoint would start, and leaves no trace of having tried."""

from __future__ import annotations

import contextlib
import fcntl
import glob
import hashlib
import json
import os
import shlex
import shutil
import socket
import stat
import subprocess
import time
from typing import Any

import catalogue
import harness
import pytest
from harness import Bench, Running, tagged, text
from test_seal import flip
from test_self_contained import Place
from test_slurm import _command as command_folder
from test_templates import EXAMPLES, understood


def files_of(pids: list[int]) -> set[str]:
    """Everything with a path that processes have open or mapped."""
    found = set()
    for pid in pids:
        with contextlib.suppress(OSError):
            found |= {os.readlink(f"/proc/{pid}/fd/{number}") for number in os.listdir(f"/proc/{pid}/fd")}
            found |= {line.split(None, 5)[5].strip() for line in text(f"/proc/{pid}/maps").splitlines() if "/" in line}
    return {path for path in found if path.startswith("/") and not path.startswith(("/proc/", "/dev/p", "/dev/tty"))}


def look_at(path: str, start: int = 0) -> tuple[Any, ...]:
    """All of a file that could change, but for the time of its last reading."""
    try:
        st = os.lstat(path)
    except OSError as error:
        return (error.errno,)
    what: str | int = 0
    if stat.S_ISREG(st.st_mode):
        with open(path, "rb") as f:
            what = hashlib.sha256(f.read()).hexdigest()
    elif stat.S_ISLNK(st.st_mode):
        what = os.readlink(path)
    return st.st_mode, st.st_uid, st.st_ino, st.st_nlink, st.st_size, st.st_mtime_ns, st.st_ctime_ns, what


class Outside:
    """What can be seen of a bench from outside: files, processes, locks, sockets, IPC objects, mounts."""

    def __init__(self, bench: Bench) -> None:
        pids = tagged(bench.tag, bench.folder)
        paths = files_of(pids)
        for folder, folders, names in os.walk(bench.folder):
            paths |= {folder, *(os.path.join(folder, name) for name in [*folders, *names])}
        log = os.path.join(bench.home, ".local/state/torpor/log.jsonl")
        # The job's lease is its supervisor's affair: it is taken in the store some time after the first checkpoint.
        lease = os.path.join(bench.store, "holds")
        paths = {path for path in paths if path not in (log, bench.store) and not path.startswith(lease)}
        self.files = {path: look_at(path) for path in sorted(paths)}
        self.processes = {pid: text(f"/proc/{pid}/stat").split()[21] for pid in pids}
        inodes = {st[2] for st in self.files.values() if len(st) > 1}
        lines = text("/proc/locks").splitlines()
        self.locks = sorted(line.partition(":")[2] for line in lines if int(line.split()[-3].split(":")[2]) in inodes)
        self.sockets = sorted(os.readlink(f"/proc/{pid}/fd/{n}") for pid in pids for n in _numbers(pid))
        # Those of semaphores do not tell whose they are.
        self.ipc = [each for kind in ("shm", "msg") for each in _ipc(kind, pids)]
        lines = text("/proc/self/mountinfo").splitlines()
        self.mounts = [line for line in lines if "/torpor-test-" not in line or bench.folder in line]

    def must_equal(self, other: Outside) -> None:
        for name, value in vars(self).items():
            now = getattr(other, name)
            if isinstance(value, dict):
                assert {k: v for k, v in value.items() if now.get(k) != v} == {}, name
                assert {k: v for k, v in now.items() if k not in value} == {}, name
            else:
                assert now == value, name


def _ipc(kind: str, pids: list[int]) -> list[dict[str, str]]:
    """The System V objects of some processes, as /proc/sysvipc tells (proc_sysvipc(5)). How much of a segment is in
    memory is left out: the job that runs touches it, and the kernel may take it away."""
    titles, *lines = (line.split() for line in text(f"/proc/sysvipc/{kind}").splitlines())
    found = (dict(zip(titles, line)) for line in lines)
    whose = {"shm": ("cpid", "lpid"), "msg": ("lspid", "lrpid")}[kind]
    return [
        {title: value for title, value in each.items() if title not in ("rss", "swap")}
        for each in found
        if any(int(each[title]) in pids for title in whose)
    ]


def _numbers(pid: int) -> list[str]:
    try:
        return os.listdir(f"/proc/{pid}/fd")
    except OSError:
        return []


@pytest.fixture(autouse=True)
def _registry_of_its_own(request: pytest.FixtureRequest) -> None:
    for name in ("bench", "user_bench", "root_bench"):
        if name in request.fixturenames:
            bench: Bench = request.getfixturevalue(name)
            runtime = bench.env["TORPOR_RUNTIME"] = os.path.join(bench.folder, "runtime")
            os.mkdir(runtime, 0o700)
            os.chown(runtime, bench.account.uid, bench.account.gid)


def drill(bench: Bench, checkpoint: str, *options: str, status: int = 0, **popen: Any) -> dict[str, Any]:
    """Rehearse, and look whether anything outside has changed; what it said."""
    bench.must("jobs")  # tidies up after what was killed, as every command does that looks for jobs
    before = Outside(bench)
    said = bench.torpor("drill", checkpoint, "--store", bench.store, "--json", *options, **popen)
    assert "Traceback" not in said.err, said.err
    assert said.status == status, said.out + said.err
    before.must_equal(Outside(bench))
    return said.json()  # type: ignore[no-any-return]


def saved(bench: Bench, job: Running) -> str:
    return f"{job.name}@{bench.checkpoint(job)['number']}"


ALL = ("files.c", "sysv.c", "mqueue.c", "fifo.c", "shm.c", "nameless.c")
"""A job of all these at once, with a server."""


def server(bench: Bench) -> list[str]:
    """A program with threads, listeners, a named pipe and a lock, to whom nobody must come."""
    code = f"""if True:
        import fcntl, os, socket, threading, time
        tcp = socket.create_server(("127.0.0.1", 0))
        unix = socket.socket(socket.AF_UNIX); unix.bind("{bench.folder}/name"); unix.listen()
        os.mkfifo("{bench.folder}/pipe"); pipe = os.open("{bench.folder}/pipe", os.O_RDWR)
        file = open("{bench.folder}/file", "w"); fcntl.flock(file, fcntl.LOCK_EX)
        stop = threading.Event()
        threads = [threading.Thread(target=stop.wait) for _ in range(8)]
        for each in threads: each.start()
        print("READY", tcp.getsockname()[1], flush=True)
        while not os.path.exists("{bench.go}"): time.sleep(.02)
        stop.set()
        for each in threads: each.join()
        tcp.settimeout(0); unix.settimeout(0)
        for each in (tcp, unix):
            try: each.accept(); raise SystemExit("FAIL: somebody was here")
            except BlockingIOError: pass
        print("OK")"""
    return [bench.account.python, "-c", code]


def together(bench: Bench) -> list[str]:
    """The command of a job that is all of ALL and a server; it ends well if each does."""
    programs = {program.label: program.command(bench.go) for program in catalogue.STATE if program.source in ALL}
    programs["server"] = server(bench)
    lines = [
        f'{shlex.join(command)} >{bench.folder}/{name}.txt 2>&1 & all="$all $!"' for name, command in programs.items()
    ]
    wait = f'for each in $all; do wait $each || bad=1; done; cat {bench.folder}/*.txt; test -z "$bad" && echo OK'
    return ["sh", "-c", "\n".join([*lines, wait])]


def all_ready(bench: Bench) -> None:
    for name in (*(source.partition(".")[0] for source in ALL), "server"):
        harness.until(lambda: "READY" in text(f"{bench.folder}/{name}.txt"), f"{name} is ready")  # noqa: B023


@pytest.mark.diagonal
def test_a_job_with_a_bit_of_everything(via: str, bench: Bench) -> None:
    """While it runs, which it then does as well as ever; after it was killed; and in the second generation."""
    job = bench.run(together(bench), via)
    all_ready(bench)
    first = saved(bench, job)
    said = drill(bench, first)
    assert (said["ok"], said["running"], said["rehearsed"], said["filled"]) == (True, True, True, True)
    assert said["processes"] > len(ALL) and said["threads"] > 16 and said["addresses"] > 1
    assert any(f"{job.name} is running (" in note for note in said["notes"]), said
    job.verified()
    bench.untell()
    bench.kill()
    said = drill(bench, first)
    assert (said["ok"], said["running"], said["rehearsed"]) == (True, False, True), said
    again = bench.restart(first, detach=True)
    second = saved(bench, again)
    assert drill(bench, second)["running"]
    bench.kill()
    assert drill(bench, second)["ok"]
    bench.restart(second).verified()
    told = [line for line in log(bench) if line["event"] == "drill"]
    assert [line["outcome"] for line in told] == ["done"] * 4
    assert told[0]["checkpoint"] == first and told[0]["seconds"] > 0


def log(bench: Bench) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text(f"{bench.home}/.local/state/torpor/log.jsonl").splitlines()]


AT_REST = [program for program in catalogue.STATE if program.label != "unseen"]
"""That one makes pipes and closes them all the time."""


@pytest.mark.exam
@pytest.mark.parametrize("program", catalogue.parameters([*AT_REST, *catalogue.SERVED]))
def test_every_service(program: catalogue.Program, via: str, bench: Bench) -> None:
    job = bench.run(program.command(bench.go), via)
    job.ready()
    name = saved(bench, job)
    if program not in catalogue.SERVED:
        said = drill(bench, name)
        assert (said["ok"], said["running"], said["rehearsed"], said["filled"]) == (True, True, True, True)
    if program.rewind:
        job.verified()
        bench.untell()
    bench.kill()
    said = drill(bench, name)
    assert (said["ok"], said["running"], said["rehearsed"]) == (True, False, True), said
    bench.restart(name).verified()


def test_large_memory(user_bench: Bench) -> None:
    """In a restart, processes read it themselves (checkpoint/own_fill.py)."""
    program = next(program for program in AT_REST if program.label == "memory")
    test_every_service(program, "run", user_bench)


@pytest.mark.parametrize("wrong", [0, 1, 2])
def test_the_job_does_not_notice(wrong: int, bench: Bench) -> None:
    """A robust mutex in a file, locks, and a watch on it."""
    job = bench.run([harness.build("claims.c"), bench.go, str(wrong)])
    job.ready()
    said = drill(bench, saved(bench, job))
    assert said["ok"] and "the lock on" in " ".join(said["notes"]), said
    if not wrong:
        job.verified()
    else:
        bench.tell()
        assert job.finish() == 1 and "FAIL" in job.output()


def fails(bench: Bench, name: str, *words: str, status: int = 1, **options: Any) -> str:
    """What a drill says that has to end badly: one line, and nothing has changed."""
    bench.must("jobs")
    before = Outside(bench)
    said = bench.torpor("drill", name, "--store", bench.store, *words, **options)
    before.must_equal(Outside(bench))
    others = (" running", "made again", "torpor: chunks", "torpor: memory")  # notes, and how far it is
    lines = [line for line in said.err.splitlines() if not any(word in line for word in others)]
    assert said.status == status and len(lines) == 1 and not said.out, said
    return lines[0]


def test_what_is_missing_or_changed(user_bench: Bench) -> None:
    """Each is named, in one line; and with it back in its place the checkpoint would start."""
    bench = user_bench
    place = Place(bench)
    job = place.start()
    name = saved(bench, job)
    assert "no checkpoint" in fails(bench, f"{job.name}@7", status=2)
    assert fails(bench, "nobody", status=2)
    bench.kill()
    bench.must("jobs")
    (pack,) = glob.glob(f"{bench.store}/packs/*")
    for at in range(5000, os.path.getsize(pack), os.path.getsize(pack) // 4):
        flip(pack, at)
        assert pack in fails(bench, name)
        flip(pack, at)
    for path in (place.program, f"{place.folder}/lib/libcarried.so"):
        os.rename(path, f"{path}.away")
        assert f"{path} is gone" in fails(bench, name)
        shutil.copyfile(f"{path}.away", path)
        with open(path, "ab") as file:
            file.write(b"x")
        assert f"{path} has changed" in fails(bench, name)
        os.rename(f"{path}.away", path)
    other = {"XDG_CONFIG_HOME": f"{bench.home}/other"}
    assert "whom you do not trust" in fails(bench, name, env=other)
    assert drill(bench, name, "--untrusted", env=other)["ok"]
    assert "without namespaces (masked" in fails(bench, name, env={"TORPOR_WITHOUT": "user_namespace"})
    told = [(line["outcome"], line.get("reason", "")) for line in log(bench) if line["event"] == "drill"]
    assert [outcome for outcome, _ in told][-3:] == ["failed", "done", "refused"]
    assert all(reason for outcome, reason in told if outcome != "done")
    bench.restart(name).verified()


def test_a_processor_that_lacks_something(user_bench: Bench) -> None:
    bench = user_bench
    name = saved(bench, Place(bench).start())
    code = """if True:
        import sys
        from msgspec.structs import replace
        from torpor.checkpoint import machine
        look = machine.look
        machine.look = lambda size: replace(found := look(size), cpu=[f for f in found.cpu if f != "sse2"])
        from torpor.cli.main import main
        sys.exit(main())"""
    words = [bench.account.python, "-c", code, "drill", name, "--store", bench.store]
    process = bench.popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    _, err = process.communicate()
    assert process.returncode == 1
    assert (
        err.decode().splitlines()[-1].startswith(f"torpor: {name} would not start: this machine lacks the CPU features")
    )


def test_what_others_have_now(user_bench: Bench) -> None:
    """A port, a socket's name, a named pipe, a lock."""
    bench = user_bench
    job = bench.run(server(bench))
    port = int(job.wait_for("^READY.*$").split()[1])
    name = saved(bench, job)
    assert drill(bench, name)["ok"]
    job.verified()
    bench.untell()
    with socket.create_server(("127.0.0.1", port)):
        assert f"127.0.0.1:{port} is in use by" in fails(bench, name)
    os.unlink(f"{bench.folder}/name")
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(f"{bench.folder}/name")
        other.listen()
        assert "/name is in use by" in fails(bench, name)
    os.unlink(f"{bench.folder}/name")
    with open(f"{bench.folder}/name", "w"):
        assert "/name, a socket's name, is something else now" in fails(bench, name)
    os.unlink(f"{bench.folder}/name")
    with open(f"{bench.folder}/file") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert f"{bench.folder}/file is locked by process {os.getpid()}" in fails(bench, name)
    os.unlink(f"{bench.folder}/pipe")
    assert "would be made again" in " ".join(drill(bench, name)["notes"])
    os.rename(f"{bench.folder}/file", f"{bench.folder}/file.away")
    assert f"{bench.folder}/file was empty, is gone, and would be made again" in drill(bench, name)["notes"]
    os.rename(f"{bench.folder}/file.away", f"{bench.folder}/file")
    bench.restart(name).verified()


def test_killed_in_the_middle(bench: Bench) -> None:
    """At moments all over it."""
    job = bench.run(together(bench))
    all_ready(bench)
    name = saved(bench, job)
    began = time.monotonic()
    drill(bench, name)
    took = time.monotonic() - began
    before = Outside(bench)
    for part in range(5):
        process = bench.popen([*bench.account.torpor, "drill", name, "--store", bench.store], stderr=subprocess.DEVNULL)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(took * (part + 1) / 6)
        process.kill()
        process.wait()
        harness.until(lambda: tagged(bench.tag, bench.folder) == list(before.processes), "only the job is left")
        before.must_equal(Outside(bench))
    job.verified()


def test_files_that_come_back(user_bench: Bench) -> None:
    """Of a folder that is saved whole everything may be gone or changed, and elsewhere a file that the job writes and
    that was empty; a drill brings nothing back."""
    bench = user_bench
    folder = f"{bench.folder}/whole"
    code = f"""if True:
        import os, time
        os.makedirs("{folder}/sub")
        one = open("{folder}/one", "w+"); one.write("first"); one.flush()
        os.chdir("{folder}/sub")
        two = open("{folder}/sub/two", "w"); two.write("second"); two.close(); two = open("{folder}/sub/two")
        empty = open("{bench.folder}/empty", "w")
        print("READY", flush=True)
        while not os.path.exists("{bench.go}"): time.sleep(.01)
        one.seek(0)
        assert (one.read(), two.read(), os.getcwd()) == ("first", "second", "{folder}/sub")
        empty.write("third"); empty.close()
        assert open("{bench.folder}/empty").read() == "third"
        print("OK")"""
    job = bench.run([bench.account.python, "-c", code])
    job.ready()
    name = f"{job.name}@{bench.checkpoint(job, f'--files=save:{folder}')['number']}"
    bench.kill()
    with open(f"{folder}/one", "w") as file:
        file.write("changed since")
    assert drill(bench, name)["ok"]
    shutil.rmtree(folder)
    os.unlink(f"{bench.folder}/empty")
    assert drill(bench, name)["ok"]
    assert not os.path.exists(folder) and not os.path.exists(f"{bench.folder}/empty")
    bench.restart(name).verified()


def test_a_program_that_is_carried(user_bench: Bench) -> None:
    """Program, library and data are gone, and come out of the checkpoint; nothing is made of them here."""
    bench = user_bench
    place = Place(bench)
    job = place.start("kept", "data")
    name = f"{job.name}@{bench.checkpoint(job, '--with-files')['number']}"
    bench.kill()
    place.remove()
    assert drill(bench, name)["rehearsed"]
    bench.restart(name).verified()


def test_terminals_of_the_job(user_bench: Bench) -> None:
    """Numbers that are taken, since the job runs."""
    bench = user_bench
    code = f"""if True:
        import os, pty, time
        pid, master = pty.fork()
        if pid == 0:
            while not os.path.exists("{bench.go}"): time.sleep(.02)
            os.write(1, b"done"); os._exit(0)
        print("READY", flush=True)
        while not os.path.exists("{bench.go}"): time.sleep(.02)
        assert os.read(master, 10) == b"done"
        print("OK")"""
    job = bench.run([bench.account.python, "-c", code])
    job.ready()
    name = saved(bench, job)
    assert drill(bench, name)["rehearsed"]
    job.verified()
    bench.untell()
    bench.restart(name).verified()


def test_the_timer_is_understood(user_bench: Bench) -> None:
    understood(user_bench, "torpor-drill@.service", "torpor-drill@.timer")


def test_the_timer_by_hand_and_python(user_bench: Bench) -> None:
    bench = user_bench
    lines = text(os.path.join(EXAMPLES, "torpor-drill@.service")).splitlines()
    (start,) = [line.partition("=")[2] for line in lines if line.startswith("ExecStart=")]
    job = bench.run([harness.build("digests.c"), bench.go], name="count")
    job.ready()
    name = saved(bench, job)
    env = {**bench.env, "PATH": f"{command_folder(bench)}:{bench.env['PATH']}", "TORPOR_STORE": bench.store}
    words = shlex.split(start.replace("%i", "count"))
    process = bench.popen(words, env=env, stdout=subprocess.PIPE)
    assert f"{name} would start" in process.communicate()[0].decode() and process.returncode == 0
    code = f"""if True:
        import torpor
        done = torpor.drill("count", store="{bench.store}")
        assert done.ok and done.running and done.rehearsed and not done.failures, done
        try: torpor.drill("count@9", store="{bench.store}")
        except torpor.NotFound: print("as told")"""
    process = bench.popen([bench.account.python, "-c", code], stdout=subprocess.PIPE)
    assert process.communicate()[0] == b"as told\n" and process.returncode == 0
    job.verified()
