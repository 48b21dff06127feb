"""Copies of stopped processes: what they are, and what others see of them."""

from __future__ import annotations

import mmap
import os
import resource
import signal
import time
from collections.abc import Iterator

import pytest

from torpor.linux import proc, uio
from torpor.linux.arch.x86_64 import NR
from torpor.model.snapshot import COMM, is_copy
from torpor.tracee.call import call
from torpor.tracee.freeze import freeze
from torpor.tracee.process import LivingProcess
from torpor.tracee.snapshot import Snapshot
from torpor.tracee.task import Gone

PAGES = 64


class Child:
    """A process in a session of its own that writes rising numbers into all of its pages, and counts its signals."""

    def __init__(self) -> None:
        self.room = mmap.mmap(-1, PAGES * mmap.PAGESIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self.address = uio.address_of(self.room)
        self.end, theirs = os.pipe()
        ready, go = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            os.setsid()
            os.close(self.end)
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            os.write(go, b"x")
            number = 0
            while True:
                number += 1
                for page in range(PAGES):
                    self.room[page * mmap.PAGESIZE : page * mmap.PAGESIZE + 8] = number.to_bytes(8, "little")
        os.close(theirs)
        os.read(ready, 1)
        os.close(ready)
        os.close(go)

    def numbers(self, pid: int) -> list[int]:
        """What the pages of a process hold."""
        raw = [uio.read(pid, self.address + page * mmap.PAGESIZE, 8) for page in range(PAGES)]
        return [int.from_bytes(word, "little") for word in raw]

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)


@pytest.fixture
def child() -> Iterator[Child]:
    made = Child()
    try:
        yield made
    finally:
        made.kill()
        os.close(made.end)


@pytest.fixture
def snapshot() -> Iterator[Snapshot]:
    with Snapshot() as taken:
        yield taken


def take(child: Child, snapshot: Snapshot) -> tuple[int, list[int], dict[int, str]]:
    """(pid of the copy, what the process held when it was made, why there is none)."""
    with freeze(lambda: [child.pid]) as frozen:
        found = child.numbers(child.pid)
        snapshot.begin(frozen.processes[child.pid])
        why = snapshot.finish()
    assert snapshot.adopt() == []
    return snapshot.copies[child.pid].pid if not why else 0, found, why


def test_a_copy_holds_the_memory_of_one_moment(child: Child, snapshot: Snapshot) -> None:
    copy, found, _ = take(child, snapshot)
    deadline = time.monotonic() + 20
    while min(child.numbers(child.pid)) <= max(found):
        assert time.monotonic() < deadline, "the process does not go on"
    assert child.numbers(copy) == found
    assert max(found) - min(found) <= 1


def test_a_copy_has_nothing_else(child: Child, snapshot: Snapshot) -> None:
    copy, _, _ = take(child, snapshot)
    stat = proc.stat(copy)
    assert (stat.comm, stat.state) == (COMM, "t")
    assert os.listdir(f"/proc/{copy}/fd") == []
    assert stat.session == stat.pgrp != os.getsid(child.pid)
    assert stat.ppid != child.pid and copy not in proc.children(child.pid)
    assert os.readlink(f"/proc/{copy}/cwd") == "/"
    assert proc.text(f"/proc/{copy}/oom_score_adj").strip() == "1000"


def test_the_process_is_as_it_was(child: Child, snapshot: Snapshot) -> None:
    def picture() -> tuple[object, ...]:
        fields = proc.status(child.pid)
        kept = ("TracerPid", "SigBlk", "SigPnd", "ShdPnd", "Threads")
        adjustment = proc.text(f"/proc/{child.pid}/oom_score_adj")
        lists = proc.maps(child.pid), proc.children(child.pid), proc.descriptors(child.pid)
        return lists, [fields[k] for k in kept], adjustment

    before = picture()
    for _ in range(3):
        take(child, snapshot)
        assert picture() == before
        snapshot.close()
        assert picture() == before


def orphans(child: Child) -> list[int]:
    """Copies of the child that run, or wait."""
    return [
        pid
        for pid in map(int, filter(str.isdigit, os.listdir("/proc")))
        if proc.comm(pid) == COMM and proc.alive(pid) and child.address in {area.start for area in proc.maps(pid)}
    ]


def await_end(pid: int, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while proc.alive(pid):
        assert time.monotonic() < deadline, "it is still there"
        time.sleep(0.01)


def test_a_copy_that_nobody_adopts_ends(child: Child, snapshot: Snapshot, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torpor.linux.arch.x86_64_code.PATIENCE", 1)
    before = proc.children(child.pid)
    with freeze(lambda: [child.pid]) as frozen:
        snapshot.begin(frozen.processes[child.pid])
        assert snapshot.finish() == {}
    (copy,) = orphans(child)
    assert is_copy(COMM, "S", lambda: proc.descriptors(copy)) and proc.children(child.pid) == before
    await_end(copy, 20)
    assert snapshot.adopt() == [child.pid]
    assert snapshot.copies == {}


def test_a_copy_that_is_not_adopted_is_ended(child: Child) -> None:
    with Snapshot() as snapshot:
        with freeze(lambda: [child.pid]) as frozen:
            snapshot.begin(frozen.processes[child.pid])
            snapshot.finish()
        (copy,) = orphans(child)
    await_end(copy, 5)  # less than what it would wait for


def test_what_a_copy_is_to_be_without(child: Child, snapshot: Snapshot) -> None:
    """It is gone before the process goes on."""
    with freeze(lambda: [child.pid]) as frozen:
        snapshot.begin(frozen.processes[child.pid], [(child.address, PAGES * mmap.PAGESIZE)])
        assert snapshot.finish() == {}
        copy = snapshot.copies[child.pid].pid
        assert child.address not in {area.start for area in proc.maps(copy)}
        assert snapshot.adopt() == []
    assert child.address in {area.start for area in proc.maps(child.pid)}


def test_a_copy_does_not_get_what_the_terminal_sends(child: Child, snapshot: Snapshot) -> None:
    copy, found, _ = take(child, snapshot)
    os.killpg(child.pid, signal.SIGINT)
    assert proc.status(copy)["ShdPnd"].strip("0") == ""
    assert child.numbers(copy) == found


def test_a_pipe_ends_with_the_process(snapshot: Snapshot) -> None:
    child = Child()
    try:
        take(child, snapshot)
        child.kill()
        os.set_blocking(child.end, False)
        assert os.read(child.end, 1) == b""
    finally:
        os.close(child.end)


def test_copies_end(child: Child) -> None:
    with Snapshot() as snapshot:
        copy, _, _ = take(child, snapshot)
    assert not os.path.exists(f"/proc/{copy}") or proc.stat(copy).state in "ZX"


def test_where_no_more_processes_are_allowed(child: Child, snapshot: Snapshot) -> None:
    if os.getuid() == 0:
        pytest.skip("root is not bound by RLIMIT_NPROC")
    resource.prlimit(child.pid, resource.RLIMIT_NPROC, (1, 1))
    _, _, why = take(child, snapshot)
    assert "RLIMIT_NPROC" in why[child.pid]


def test_a_process_that_is_killed_meanwhile(snapshot: Snapshot, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is told of, the others go on, and no copy is left."""
    children = [Child(), Child()]
    real = LivingProcess.split

    def split(process: LivingProcess) -> object:
        if process.pid == children[0].pid:
            os.kill(process.pid, signal.SIGKILL)
        return real(process)

    monkeypatch.setattr(LivingProcess, "split", split)
    try:
        with freeze(lambda: [one.pid for one in children]) as frozen:
            for process in frozen.processes.values():
                process.run([call(NR.getpid)])
            for process in frozen.processes.values():
                snapshot.begin(process)
            with pytest.raises((Gone, OSError), match=r"ended|No such"):
                snapshot.finish()
        assert snapshot.copies == {}
        numbers = children[1].numbers(children[1].pid)
        deadline = time.monotonic() + 20
        while children[1].numbers(children[1].pid) == numbers:
            assert time.monotonic() < deadline, "the other one does not go on"
    finally:
        for one in children:
            try:
                one.kill()
            except (ProcessLookupError, ChildProcessError):
                pass
            os.close(one.end)


def test_a_copy_gives_memory_up(child: Child, snapshot: Snapshot) -> None:
    copy, found, _ = take(child, snapshot)
    snapshot.clean()
    page, half = mmap.PAGESIZE, PAGES // 2
    for _ in range(2):  # our code is there again from the first time on
        snapshot.drop(child.pid, [(child.address, half * page), (child.address + (PAGES - 1) * page, page)])
        assert child.numbers(copy) == [0] * half + found[half:-1] + [0]
    assert proc.stat(copy).state == "t"
    before = child.numbers(child.pid)
    deadline = time.monotonic() + 20
    while min(child.numbers(child.pid)) <= max(before):
        assert time.monotonic() < deadline, "the process does not go on"


def test_a_copy_that_is_gone_gives_nothing_up(child: Child, snapshot: Snapshot) -> None:
    copy, _, _ = take(child, snapshot)
    snapshot.clean()
    os.kill(copy, signal.SIGKILL)
    with pytest.raises(OSError):
        snapshot.drop(child.pid, [(child.address, mmap.PAGESIZE)])
