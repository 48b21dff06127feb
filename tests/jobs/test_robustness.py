"""Whatever happens to a checkpoint or a restart, the application is unharmed: killed torpor processes, full disks,
stores that cannot be written, programs that never stand still, damaged checkpoints.

The judgement is never "it is alive": signal masks and dispositions, descriptors, maps, children and tracers are
compared before and after, and at the end the program verifies itself (tests/programs/busy.*).
"""

from __future__ import annotations

import os
import random
import re
import shutil
import subprocess
import time
from typing import Any

import catalogue
import harness
import pytest
from toolchain import go, needs

SEED = int(os.environ.get("TORPOR_TEST_SEED", "0")) or random.SystemRandom().randrange(1 << 30)


def one_line(said: harness.Said) -> str:
    """The one line that a failing command says. Raises where it is not one line, or a traceback."""
    lines = said.err.strip().splitlines()
    assert len(lines) == 1 and "Traceback" not in said.err, said
    return lines[0]


# -- what is compared -------------------------------------------------------------------------------------------------


def picture(root: int, kind: str = "c") -> dict[str, Any]:
    """What a checkpoint could have spoiled, of every process below `root` and of itself.

    kind: 'c' is compared exactly, a program in 'python' may map memory at will, one in 'go' has threads at will too.
    """
    out: dict[str, Any] = {}
    for pid in [root, *harness.descendants(root)]:
        one: dict[str, Any] = {}
        threads = {}
        for tid in sorted(os.listdir(f"/proc/{pid}/task"), key=int):
            status = dict(
                line.split(":\t", 1)
                for line in harness.text(f"/proc/{pid}/task/{tid}/status").splitlines()
                if ":\t" in line
            )
            threads[tid] = {
                key: status[key] for key in ("Name", "SigBlk", "SigIgn", "SigCgt", "TracerPid", "Seccomp", "NoNewPrivs")
            }
            threads[tid]["stopped"] = status["State"][0] in "tT"
        if kind == "go":
            kinds = sorted({tuple(str(v) for k, v in each.items() if k != "Name") for each in threads.values()})
            threads = {str(kind): {} for kind in kinds}
        one["threads"] = threads
        numbers = sorted(os.listdir(f"/proc/{pid}/fd"), key=int)
        one["descriptors"] = {n: (os.readlink(f"/proc/{pid}/fd/{n}"), flags(pid, n)) for n in numbers}
        areas = []
        for line in harness.text(f"/proc/{pid}/maps").splitlines():
            parts = line.split()
            named = len(parts) > 5 and not parts[5].startswith("[heap")
            if kind == "c" or named:
                areas.append(" ".join([parts[0], parts[1], *parts[5:]]))
        one["maps"] = areas
        one["writable and executable"] = [
            line for line in harness.text(f"/proc/{pid}/maps").splitlines() if line.split()[1].startswith("rwx")
        ]
        one["children"] = sorted(harness.children(pid))
        out[str(pid)] = one
    return out


def flags(pid: int, number: str) -> str:
    found = re.search(r"flags:\s*(\d+)", harness.text(f"/proc/{pid}/fdinfo/{number}"))
    return found.group(1) if found else "?"


def differences(before: Any, after: Any, where: str = "") -> list[str]:
    if isinstance(before, dict) and isinstance(after, dict):
        out: list[str] = []
        for key in sorted({*before, *after}, key=str):
            if key not in before or key not in after:
                out.append(
                    f"{where}/{key}: only {'before' if key in before else 'after'}: {before.get(key, after.get(key))}"
                )
            else:
                out += differences(before[key], after[key], f"{where}/{key}")
        return out
    if isinstance(before, list) and isinstance(after, list) and before != after:
        return [f"{where}: gone {[x for x in before if x not in after]}, new {[x for x in after if x not in before]}"]
    return [] if before == after else [f"{where}: {before} became {after}"]


def same_again(root: int, before: dict[str, Any], what: str, kind: str = "c") -> None:
    """The picture must be what it was, within a moment (a tracer's death takes effect a little later)."""
    end = time.monotonic() + 60
    while True:
        try:
            found = differences(before, picture(root, kind))
        except (OSError, ValueError, IndexError, KeyError) as error:  # a thread or process came or went while looking
            found = [repr(error)]
        if not found:
            return
        if time.monotonic() > end:
            raise AssertionError(f"{what} (TORPOR_TEST_SEED={SEED}):\n" + "\n".join(line[:500] for line in found[:20]))
        time.sleep(0.01)


# -- kill -9 of torpor during a checkpoint ----------------------------------------------------------------------------


def busy_command(kind: str, bench: harness.Bench) -> list[str]:
    if kind == "c":
        needs("gcc")
        return [harness.build("busy.c"), bench.go]
    if kind == "go":
        return [go("busy.go"), bench.go]
    return [bench.account.python, harness.script("busy.py"), bench.go]


def program_of(job: harness.Running) -> int:
    """The host pid of the job's first process."""
    assert job.popen is not None
    if job.via == "pid":
        return job.popen.pid

    def look() -> int:
        jobs = job.bench.must("jobs", "--json").json()
        return next((int(entry["pid"]) for entry in jobs if entry["name"] == job.name), 0)

    pid: int = harness.until(look, f"the job {job.name}")
    return pid


def kill_checkpoints(kind: str, via: str, times: int, bench: harness.Bench) -> None:
    job = bench.run(busy_command(kind, bench), via)
    job.ready()
    try:
        kill_checkpoints_of(job, kind, times)
    except AssertionError as error:
        raise AssertionError(f"{error}\n{job.trace()}") from None


def kill_checkpoints_of(job: harness.Running, kind: str, times: int) -> None:
    bench, via = job.bench, job.via
    chance = random.Random(f"{SEED} {kind} {via} {bench.account.label}")
    root = program_of(job)
    # The first checkpoint is undisturbed: it tells how long one takes, and what it changes must be nothing.
    before = picture(root, kind)
    took = 1e9
    for _ in range(2):
        began = time.monotonic()
        bench.checkpoint(job)
        took = min(took, time.monotonic() - began)
        same_again(root, before, "after an undisturbed checkpoint", kind)
    which = job.which()
    hits = 0
    for turn in range(3 * times):
        if turn >= times and hits > times // 3:
            break  # on a busy machine commands can be quicker than was measured, and more turns are needed
        command = bench.popen(
            [*bench.account.torpor, "checkpoint", *which, "--store", bench.store],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        moment = chance.uniform(0.25, 1.0) * took
        time.sleep(moment)  # a random moment: the subject of this test
        # Any torpor process: the command, or (once) the supervisor, which does the work of a job started with `run`.
        # When it is dead, the command does it.
        victims = [command]
        if via == "run" and turn == times // 3 and job.popen is not None:
            victims.append(job.popen)
        if command.poll() is None:
            hits += 1
        else:
            took *= 0.8  # too late: the machine was busier when it was measured
        for process in victims:
            process.kill()  # not by number: one that has ended may have given it to another already
        command.wait()
        same_again(root, before, f"checkpoint {turn} killed after {moment:.3f} of {took:.3f} s", kind)
    assert hits > times // 3, f"only {hits} of {times} kills met a running command"
    # It can be saved again, and what was saved runs.
    saved = bench.must("checkpoint", *which, "--store", bench.store, "--json").json()
    same_again(root, before, "after the last checkpoint", kind)
    bench.tell()
    harness.until(lambda: harness.state_of(root) in ("", "Z"), "end of the program")
    seen = job.output().splitlines()
    assert seen[-1] == "OK" and not any("FAIL" in line for line in seen), job.trace()
    bench.kill()
    bench.untell()
    again = bench.restart(f"{job.name}@{saved['number']}")
    again.verified()


@pytest.mark.parametrize("kind", ["c", "go", "python"])
def test_killed_checkpoints(kind: str, via: str, user_bench: harness.Bench) -> None:
    kill_checkpoints(kind, via, 10, user_bench)


@pytest.mark.exam
@pytest.mark.parametrize("kind", ["c", "go", "python"])
def test_killed_checkpoints_many(kind: str, via: str, bench: harness.Bench) -> None:
    kill_checkpoints(kind, via, 70, bench)


# -- kill -9 during a restart -----------------------------------------------------------------------------------------


def kill_restarts(times: int, command: list[str], bench: harness.Bench) -> None:
    chance = random.Random(f"{SEED} restart {bench.account.label}")
    needs("gcc")
    job = bench.run(command)
    job.ready()
    saved = bench.checkpoint(job, "--stop")
    bench.gone("after checkpoint --stop")
    name = f"{job.name}@{saved['number']}"
    began = time.monotonic()
    again = bench.restart(name, detach=True)
    took = time.monotonic() - began
    bench.tell()
    assert again.finish() == 0
    bench.untell()
    bench.gone("after the restarted job has ended")
    came_about = 0
    for turn in range(times):
        started = bench.restart(name)
        assert started.popen is not None
        moment = chance.uniform(0.2, 1.0) * took
        time.sleep(moment)  # a random moment: the subject of this test
        started.popen.kill()
        started.popen.wait()
        # Either nothing is left of it, or the job had come about: then it is complete and runs on without its
        # supervisor.
        listed = [entry for entry in bench.must("jobs", "--json").json() if entry["name"] == job.name]
        if listed:
            bench.tell()
            harness.until(lambda c=started: "OK" in c.output().splitlines() or "FAIL" in c.output(), "verification")
            assert started.output().splitlines()[-1] == "OK", started.trace()
            bench.untell()
            came_about += 1
            took *= 0.8  # too late: the machine was busier when it was measured
        try:
            bench.gone(f"restart {turn} killed after {moment:.3f} of {took:.3f} s")
        except harness.Failed as error:
            raise AssertionError(f"{error} (TORPOR_TEST_SEED={SEED}); jobs said {listed}") from None
    bench.restart(name).verified()
    assert came_about < times


def test_killed_restarts(bench: harness.Bench) -> None:
    kill_restarts(10, busy_command("c", bench), bench)


@pytest.mark.exam
def test_killed_restarts_many(bench: harness.Bench) -> None:
    kill_restarts(100, busy_command("c", bench), bench)


@pytest.mark.exam
def test_killed_restarts_with_deputies(bench: harness.Bench) -> None:
    """Also the processes that make sockets under other numbers end with the restarting one."""
    program = next(p for p in catalogue.STATE if p.label == "credentials")
    kill_restarts(20, program.command(bench.go), bench)


# -- no room, no right ------------------------------------------------------------------------------------------------


def saving_fails(job: harness.Running, store: str, *words: str) -> str:
    """A checkpoint that cannot be stored: one line, and the job has not noticed."""
    bench = job.bench
    root = program_of(job)
    before = picture(root)
    which = job.which()
    said = bench.torpor("checkpoint", *which, "--store", store, *words)
    assert said.status in (1, 2), said
    same_again(root, before, "after a checkpoint that failed")
    return one_line(said)


def test_full_disk(via: str, root_bench: harness.Bench) -> None:
    needs("gcc", "mount", "umount")
    place = os.path.join(root_bench.folder, "small")
    os.mkdir(place)
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", place], capture_output=True, text=True
    )
    if mounted.returncode:
        pytest.skip(f"cannot mount: {mounted.stderr.strip()}")
    try:
        # memory.c holds more than that in bytes that do not compress
        job = root_bench.run([harness.build("memory.c"), root_bench.go], via)
        job.ready()
        line = saving_fails(job, os.path.join(place, "store"))
        assert re.search(r"space|full|room", line, re.IGNORECASE), line
        assert not root_bench.torpor("list", "--store", os.path.join(place, "store"), "--json").out.count('"number"')
        root_bench.checkpoint(job)  # elsewhere it works
        job.verified()
    finally:
        root_bench.kill()
        subprocess.run(["umount", "-l", place], check=True)


@pytest.mark.parametrize("why", ["read-only", "not a folder", "below a file"])
def test_store_that_cannot_be_written(why: str, via: str, user_bench: harness.Bench) -> None:
    needs("gcc")
    store = os.path.join(user_bench.home, "other-store")
    if why == "read-only":
        os.mkdir(store)
        os.chmod(store, 0o555)
    else:
        with open(store, "w") as f:
            f.write("not a store\n")
        if why == "below a file":
            store = os.path.join(store, "below")
    job = user_bench.run(busy_command("c", user_bench), via)
    job.ready()
    line = saving_fails(job, store)
    assert "other-store" in line, line
    user_bench.checkpoint(job)
    job.verified()


# -- trees that do not stand still ------------------------------------------------------------------------------------


@pytest.mark.diagonal
def test_tree_that_forks_and_execs(via: str, bench: harness.Bench) -> None:
    """Processes fork, vfork, exec and exit and threads come and go during every freeze."""
    needs("gcc")
    job = bench.run([harness.build("churn.c"), bench.go], via)
    job.ready()
    numbers = [bench.checkpoint(job)["number"] for _ in range(10)]
    job.verified()
    bench.untell()
    for number in (numbers[0], numbers[5], numbers[9]):
        bench.restart(f"{job.name}@{number}").verified()
        bench.untell()
    again = bench.restart(f"{job.name}@{numbers[9]}", detach=True)
    saved = bench.checkpoint(again)
    bench.kill()
    bench.restart(f"{job.name}@{saved['number']}").verified()


def test_program_that_exits_meanwhile(via: str, user_bench: harness.Bench) -> None:
    """Whichever moment its end falls into: the exit status is its own, and the command says yes or one line."""
    for k in range(12):
        job = user_bench.run(["sh", "-c", "echo READY; sleep 0.25; exit 7"], via)
        job.ready()
        time.sleep(0.02 * k)  # moments spread over its life: the subject of this test
        which = job.which()
        said = user_bench.torpor("checkpoint", *which, "--store", user_bench.store)
        assert said.status in (0, 1, 2), said
        if said.status:
            one_line(said)
        assert job.finish() == 7
        user_bench.gone("after the program has ended")


TRACER = """
import ctypes, os, sys, time
libc = ctypes.CDLL(None, use_errno=True)
pid = int(sys.argv[1])
if libc.ptrace(0x4206, pid, None, None):
    sys.exit("cannot trace")
print("traced", flush=True)
sys.stdin.read()
"""


@pytest.mark.diagonal
def test_process_that_is_traced_already(via: str, bench: harness.Bench) -> None:
    needs("gcc")
    job = bench.run(busy_command("c", bench), via)
    job.ready()
    root = program_of(job)
    tracer = bench.popen([bench.account.python, "-c", TRACER, str(root)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                         stderr=subprocess.PIPE)  # fmt: skip
    assert tracer.stdout is not None and tracer.stdin is not None
    if tracer.stdout.readline() != b"traced\n":
        pytest.skip("this user may not trace")
    which = job.which()
    before = picture(root)
    said = bench.torpor("checkpoint", *which, "--store", bench.store)
    assert said.status == 1, said
    line = one_line(said)
    assert "trace" in line and str(root) in line, line
    same_again(root, before, "after the refusal")
    tracer.stdin.close()
    assert tracer.wait(10) == 0
    bench.checkpoint(job)
    job.verified()


# -- checkpoints that are not what they should be ---------------------------------------------------------------------


def files_below(folder: str) -> list[str]:
    return sorted(os.path.join(at, name) for at, _, names in os.walk(folder) for name in names)


def flip(path: str) -> None:
    with open(path, "r+b") as f:
        size = f.seek(0, 2)
        f.seek(size // 2)
        byte = f.read(1) or b"\0"
        f.seek(size // 2)
        f.write(bytes([byte[0] ^ 0x10]))


def truncate(path: str) -> None:
    os.truncate(path, os.path.getsize(path) // 2)


def empty(path: str) -> None:
    os.truncate(path, 0)


def foreign(path: str) -> None:
    with open(path, "wb") as f:
        f.write(b"something else altogether\n" * 100)


DAMAGE = {"missing": os.unlink, "truncated": truncate, "empty": empty, "flipped": flip, "foreign": foreign}


@pytest.mark.parametrize("how", DAMAGE)
def test_damaged_checkpoint(how: str, user_bench: harness.Bench) -> None:
    """Every file of the store in turn: either one clear line, status 1 or 2 and nothing left; or it was not needed and
    the program verifies itself."""
    needs("gcc")
    bench = user_bench
    job = bench.run([harness.build("memory.c"), bench.go])
    job.ready()
    saved = bench.checkpoint(job)
    bench.kill()
    whole = bench.store + ".whole"
    shutil.copytree(bench.store, whole, symlinks=True)
    refused = 0
    for path in files_below(whole):
        if os.path.getsize(path) == 0:
            continue
        shutil.rmtree(bench.store)
        subprocess.run(["cp", "-a", whole, bench.store], check=True)
        DAMAGE[how](os.path.join(bench.store, os.path.relpath(path, whole)))
        again = bench.restart(f"{job.name}@{saved['number']}")
        bench.tell()
        status = again.finish()
        bench.untell()
        if status == 0:
            assert again.output().splitlines()[-1] == "OK", again.trace()
        else:
            assert status in (1, 2), again.trace()
            error = harness.text(again.out + ".err").strip()
            assert len(error.splitlines()) == 1 and error.startswith("torpor: "), again.trace()
            refused += 1
        bench.gone(f"{how} {os.path.relpath(path, whole)}")
        listed = bench.torpor("list", "--store", bench.store)
        assert "Traceback" not in listed.err, listed
    assert refused >= 2, "neither manifest nor data seem to matter"


def test_no_such_checkpoint(user_bench: harness.Bench) -> None:
    bench = user_bench
    job = bench.run(["sleep", "1000"])
    harness.until(lambda: any(e["name"] == job.name for e in bench.must("jobs", "--json").json()), "the job")
    bench.checkpoint(job, "--stop")
    for name in ("nobody", f"{job.name}@7", f"{job.name}@-5", f"{job.name}@", "@@", "../../etc/passwd", "a b"):
        said = bench.torpor("restart", name, "--store", bench.store)
        assert said.status == 2, (name, said)
        one_line(said)
    empty_store = os.path.join(bench.home, "empty")
    os.mkdir(empty_store)
    os.chown(empty_store, bench.account.uid, bench.account.gid)
    said = bench.torpor("restart", "--store", empty_store)
    assert said.status == 2, said
    one_line(said)
    bench.gone("after restarts of nothing")


def test_a_running_job_is_not_restarted(bench: harness.Bench) -> None:
    """Twice the same job only with --clone; its numbers are never used again."""
    needs("gcc")
    job = bench.run(busy_command("c", bench))
    job.ready()
    first = bench.checkpoint(job)["number"]
    root = program_of(job)
    before = picture(root)
    said = bench.torpor("restart", job.name, "--store", bench.store)
    assert said.status == 1 and "--clone" in one_line(said), said
    same_again(root, before, "after the refusal")
    clone = bench.restart(f"{job.name}@{first}", "--clone", "--name", f"{job.name}-clone", detach=True)
    clone.name = f"{job.name}-clone"
    same_again(root, before, "after the start of a clone")
    bench.tell()
    job.verified()
    assert clone.finish() == 0
    assert clone.output().splitlines()[-1] == "OK", clone.trace()
    bench.untell()
    bench.must("rm", f"{job.name}@{first}", "--store", bench.store)
    assert bench.torpor("restart", f"{job.name}@{first}", "--store", bench.store).status == 2
    job2 = bench.run(busy_command("c", bench), name=job.name)
    job2.ready()
    assert bench.checkpoint(job2)["number"] > first
    job2.verified()
