"""Stopping a tree: processes that end meanwhile."""

from __future__ import annotations

import ctypes
import os
import signal
import struct
import threading
import time
from collections.abc import Callable

import pytest

from torpor.linux import proc, ptrace
from torpor.linux.arch.x86_64 import NR
from torpor.linux.multicall import Table
from torpor.model.errors import Refusal, Refused
from torpor.tracee import freeze as module
from torpor.tracee.freeze import freeze
from torpor.tracee.process import LivingProcess


def test_a_process_that_is_killed_and_reaped_while_it_is_being_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    pid = os.fork()
    if pid == 0:
        while True:
            time.sleep(1)
    seize = module._seize

    def seize_and_kill(process: int, tid: int) -> bool:
        done = seize(process, tid)
        os.kill(pid, 9)
        return done

    monkeypatch.setattr(module, "_seize", seize_and_kill)
    with freeze(lambda: [pid] if os.path.exists(f"/proc/{pid}") else []) as frozen:
        assert not frozen.processes and not frozen.zombies


def test_a_child_that_ends_between_two_looks_is_a_zombie(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is found only when all others have been stopped, and ends after it was seized and before it has stopped: its
    parent has not waited for it, so it is there, and must be saved."""
    reading, writing = os.pipe()
    parent = os.fork()
    if parent == 0:
        child = os.fork()
        if child:
            os.write(writing, child.to_bytes(4, "little"))
        while True:
            time.sleep(1)
    child = int.from_bytes(os.read(reading, 4), "little")
    seize = module._seize

    def fatal(pid: int, tid: int) -> bool:
        seized = seize(pid, tid)
        if tid == child:
            os.kill(child, signal.SIGKILL)
            while proc.stat(child).state != "Z":
                time.sleep(0.001)
        return seized

    monkeypatch.setattr(module, "_seize", fatal)
    looks: list[list[int]] = [[parent]]
    try:
        with freeze(lambda: looks.pop() if looks else [parent, child]) as frozen:
            assert list(frozen.processes) == [parent]
            assert frozen.zombies == [child]
    finally:
        os.kill(parent, signal.SIGKILL)
        os.waitpid(parent, 0)
        os.close(reading)
        os.close(writing)


def test_the_others_go_on_when_one_may_not_be_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    """They had been asked to stop before that turned out."""
    pids = []
    for _ in range(3):
        pid = os.fork()
        if pid == 0:
            while True:
                time.sleep(0.01)
        pids.append(pid)
    seize = module._seize

    def refuse(pid: int, tid: int) -> bool:
        if pid == pids[-1]:
            raise Refused([Refusal(pid, "last", "may not be traced", "leave it alone")])
        return seize(pid, tid)

    monkeypatch.setattr(module, "_seize", refuse)
    try:
        with pytest.raises(Refused):
            freeze(lambda: pids)
        assert [proc.status(pid)["TracerPid"] for pid in pids] == ["0", "0", "0"]
        assert all(proc.state(pid) in "SR" for pid in pids)
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


def test_a_thread_that_has_ended_is_no_news() -> None:
    """A first thread that has ended stays in the list of threads; the tree is whole all the same."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        threading.Thread(target=lambda: (os.write(writing, b"x"), time.sleep(600))).start()
        ctypes.CDLL(None).syscall(60, 0)  # exit(2): this thread alone
    try:
        os.read(reading, 1)
        while proc.state(pid) != "Z":
            time.sleep(0.001)
        looks: list[int] = []
        with freeze(lambda: looks.append(1) or [proc.face(pid)]) as frozen:
            (process,) = frozen.processes.values()
            assert (process.tgid, process.vpid, len(process.tasks)) == (pid, pid, 1) and not frozen.zombies
        assert len(looks) <= 3
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(reading)
        os.close(writing)


def test_a_process_is_let_go_of_which_nothing_came_to_a_stop() -> None:
    """Its threads ended before they could, or it is let go in the middle of being stopped."""
    LivingProcess(os.getpid()).detach()


def _threads_that_fork_when_told(count: int, told: int) -> int:
    """A process of so many threads, which forks at SIGUSR1 and writes the number of the child."""
    ready, here = os.pipe()
    pid = os.fork()
    if pid == 0:

        def split(*_: object) -> None:
            child = os.fork()
            if child:
                os.write(told, child.to_bytes(4, "little"))

        signal.signal(signal.SIGUSR1, split)
        for _ in range(count - 1):
            threading.Thread(target=time.sleep, args=(1000,), daemon=True).start()
        os.write(here, b"x")
        while True:
            time.sleep(1)
    os.read(ready, 1)
    os.close(ready)
    os.close(here)
    return pid


def test_one_look_is_enough_where_nobody_was_born_or_has_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    pid = _threads_that_fork_when_told(10, 1)
    looks = 0

    def find() -> list[int]:
        nonlocal looks
        looks += 1
        return [pid]

    try:
        for population, wanted in ((proc.Population(5, 5), 1), (None, 2)):
            looks = 0
            monkeypatch.setattr(proc, "population", lambda population=population: population)
            with freeze(find) as frozen:
                assert len(frozen.processes[pid].tasks) == 10
            assert looks == wanted
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def test_a_child_that_is_born_behind_the_look_is_found() -> None:
    source, told = os.pipe()
    pid = _threads_that_fork_when_told(10, told)
    born: list[int] = []

    def find() -> list[int]:
        found = [pid, *born]
        if not born:
            os.kill(pid, signal.SIGUSR1)
            born.append(int.from_bytes(os.read(source, 4), "little"))
        return found

    try:
        with freeze(find) as frozen:
            assert list(frozen.processes) == [pid, *born]
    finally:
        for each in (*born, pid):
            os.kill(each, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(source)
        os.close(told)


def _stopping(pids: list[int]) -> list[tuple[str, int]]:
    """Freeze these and let them go; what was asked of the kernel meanwhile, by calls of ptrace(2) one by one and in
    tables, as (what, tid)."""
    asked: list[tuple[str, int]] = []
    with pytest.MonkeyPatch.context() as patch:
        for name in ("request", "get_regs", "get_mask"):
            real = getattr(ptrace, name)

            def noted(first: int, *rest: int, name: str = name, real: Callable[..., object] = real) -> object:
                asked.append((f"{first:#x}", rest[0]) if name == "request" else (name, first))
                return real(first, *rest)

            patch.setattr(ptrace, name, noted)

        real_make = Table.make

        def make(table: Table, *arguments: int, **how: bool) -> list[int]:
            for nr, *words, _ in struct.iter_unpack("<7Qq", table._image):
                asked.append((f"{words[0]:#x}", words[1]) if nr == NR.ptrace else (f"call {nr}", words[0]))
            return real_make(table, *arguments, **how)

        patch.setattr(Table, "make", make)
        with freeze(lambda: pids):
            pass
    return asked


def test_until_all_are_taken_in_nothing_is_asked_but_what_may_have_to_be_mended() -> None:
    """An EINTR of our stop would be seen by the program, were we killed until then."""
    pids = []
    for _ in range(3):
        pid = os.fork()
        if pid == 0:
            while True:
                time.sleep(1)
        pids.append(pid)
    try:
        asked = _stopping(pids)
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
    seize, interrupt, registers = (f"{one:#x}" for one in (ptrace.SEIZE, ptrace.INTERRUPT, ptrace.GETREGS))
    assert asked[:6] == [(what, pid) for what in (seize, interrupt) for pid in pids]
    masks = [number for number, (what, _) in enumerate(asked) if what == f"{ptrace.GETSIGMASK:#x}"]
    assert len(masks) == 3
    looks = asked[6 : masks[0]]
    slow = "get_regs"  # of one that takes longer than some looks at all of them
    assert {what for what, _ in looks} - {slow} == {registers, f"call {NR.wait4}"}
    assert {pid for what, pid in looks if what == registers} == set(pids)


@pytest.mark.parametrize("killed", [False, True])
def test_nothing_stays_open(monkeypatch: pytest.MonkeyPatch, killed: bool) -> None:
    pid = os.fork()
    if pid == 0:
        while True:
            time.sleep(1)
    before = os.listdir("/proc/self/fd")
    if killed:
        expect = LivingProcess.expect

        def fatal(process: LivingProcess, tid: int) -> None:
            expect(process, tid)
            os.kill(pid, signal.SIGKILL)

        monkeypatch.setattr(LivingProcess, "expect", fatal)
    with freeze(lambda: [pid] if os.path.exists(f"/proc/{pid}") else []) as frozen:
        assert bool(frozen.processes) != killed
    if not killed:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    assert os.listdir("/proc/self/fd") == before
    assert LivingProcess._expected == 0


def test_the_first_thread_comes_first_whoever_stops_first(monkeypatch: pytest.MonkeyPatch) -> None:
    ready, here = os.pipe()
    pid = os.fork()
    if pid == 0:
        for _ in range(4):
            threading.Thread(target=time.sleep, args=(1000,), daemon=True).start()
        os.write(here, b"x")
        while True:
            time.sleep(1)
    os.read(ready, 1)
    look = module.Stops.look
    monkeypatch.setattr(module.Stops, "look", lambda stops: look(stops)[::-1])
    try:
        with freeze(lambda: [pid]) as frozen:
            numbers = [task.tid for task in frozen.processes[pid].tasks]
        assert numbers == proc.threads(pid) and numbers[0] == pid
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(ready)
        os.close(here)


@pytest.mark.parametrize("told", [False, True])
def test_a_process_that_is_told_to_go_on_while_others_are_being_stopped(told: bool) -> None:
    pid = os.fork()
    if pid == 0:
        while True:
            time.sleep(0.01)
    os.kill(pid, signal.SIGSTOP)
    os.waitpid(pid, os.WUNTRACED)
    looks: list[int] = []

    def find() -> list[int]:
        looks.append(1)
        if len(looks) == 2 and told:
            os.kill(pid, signal.SIGCONT)
        return [pid]

    try:
        with freeze(find) as frozen:
            (task,) = frozen.processes[pid].tasks
            assert len(looks) == 2
            assert task.stop_signal == (0 if told else signal.SIGSTOP)
            assert ptrace.has_continued(pid) == told
        assert proc.state(pid) in ("SR" if told else "T")
        found, status = os.waitpid(pid, os.WCONTINUED | os.WNOHANG)
        assert (found == pid and os.WIFCONTINUED(status)) == told, "whoever waits for it is told all the same"
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
