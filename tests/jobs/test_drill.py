"""`torpor drill`: it says whether a checkpoint would start, and leaves no trace of having tried."""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
from typing import Any

import catalogue
import pytest
from harness import Bench, Running, tagged, text


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
        self.files = {path: look_at(path) for path in sorted(paths) if path != log}
        self.processes = {pid: text(f"/proc/{pid}/stat").split()[21] for pid in pids}
        inodes = {st[2] for st in self.files.values() if len(st) > 1}
        lines = text("/proc/locks").splitlines()
        self.locks = sorted(line.partition(":")[2] for line in lines if int(line.split()[-3].split(":")[2]) in inodes)
        self.sockets = sorted(os.readlink(f"/proc/{pid}/fd/{n}") for pid in pids for n in _numbers(pid))
        self.ipc = [
            line
            for kind in ("shm", "msg", "sem")
            for line in text(f"/proc/sysvipc/{kind}").splitlines()
            if set(line.split()) & {str(pid) for pid in pids} or kind == "sem"
        ]
        self.mounts = text("/proc/self/mountinfo")

    def must_equal(self, other: Outside) -> None:
        for name, value in vars(self).items():
            now = getattr(other, name)
            if isinstance(value, dict):
                assert {k: v for k, v in value.items() if now.get(k) != v} == {}, name
                assert {k: v for k, v in now.items() if k not in value} == {}, name
            else:
                assert now == value, name


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
            bench.env["TORPOR_RUNTIME"] = os.path.join(bench.folder, "runtime")


def drill(bench: Bench, checkpoint: str, *options: str, status: int = 0, **popen: Any) -> dict[str, Any]:
    """Rehearse, and look whether anything outside has changed; what it said."""
    bench.must("jobs")  # tidies up after what was killed, as every command does that looks for jobs
    before = Outside(bench)
    said = bench.torpor("drill", checkpoint, "--store", bench.store, "--json", *options, **popen)
    assert "Traceback" not in said.err, said.err
    assert said.status == status, said
    before.must_equal(Outside(bench))
    return said.json()  # type: ignore[no-any-return]


def started(bench: Bench, program: catalogue.Program, via: str = "run") -> tuple[Running, str]:
    job = bench.run(program.command(bench.go), via)
    job.ready()
    saved = bench.checkpoint(job)
    return job, f"{job.name}@{saved['number']}"


@pytest.mark.parametrize("program", catalogue.parameters([*catalogue.STATE, *catalogue.SERVED]))
def test_every_service(program: catalogue.Program, via: str, bench: Bench) -> None:
    """While the job runs, which then is as well as ever; and once it was killed."""
    job, name = started(bench, program, via)
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
