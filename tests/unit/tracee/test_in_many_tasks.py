"""Batches in several recreated tasks at once."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest

from torpor.linux import proc, ptrace
from torpor.linux.arch.x86_64 import NR
from torpor.tracee.call import CallFailed, In, call
from torpor.tracee.stub import LANES, SCRATCH_SIZE, StubProcess, find_hole
from torpor.tracee.task import Asked, Task, Work
from torpor.tracee.together import together

GETTID, CHDIR = 186, 80


@pytest.fixture
def stubs() -> Iterator[list[StubProcess]]:
    """Three, settled."""
    made = []
    try:
        for _ in range(3):
            pid = os.fork()
            if pid == 0:
                signal.pause()
                os._exit(1)
            areas = proc.maps(pid)
            size = 1 << 20
            process = StubProcess(pid, pid)
            process.move(find_hole(size, [(a.start, a.end) for a in areas]), size)
            made.append((process, areas))
        for process, _ in made:
            process.seize()
        for process, _ in made:
            process.arrived()
        together(process.settle(areas, 0) for process, areas in made)
        yield [process for process, _ in made]
    finally:
        for process, _ in made:
            os.kill(process.tgid, signal.SIGKILL)
            for task in process.tasks[1:]:
                ptrace.wait(task.tid)
            ptrace.wait(process.tgid)


def test_each_is_asked_for_itself(stubs: list[StubProcess]) -> None:
    heard = {}

    def work(process: StubProcess) -> Work:
        first = yield Asked(process.leader, [call(NR.getpid)])
        nothing = yield Asked(process.leader, [])
        second = yield Asked(process.leader, [call(GETTID), call(CHDIR, In(b"/none\0"))], check=False)
        heard[process.pid] = [first[0].value, nothing, second[0].value, second[1].error]

    together(work(process) for process in stubs)
    assert heard == {process.pid: [process.pid, [], process.pid, 2] for process in stubs}


def test_threads_of_one_process_at_once(stubs: list[StubProcess]) -> None:
    process = stubs[0]
    process.adopt(process.make_some_threads(3 * LANES))
    heard = {}
    large = SCRATCH_SIZE // LANES + 4096

    def work(task: Task, size: int) -> Work:
        for _ in range(2):
            calls = [call(GETTID), call(NR.rt_sigprocmask, 0, In(bytes(size)), 0, 8), call(NR.getpid)]
            heard[task.tid] = [answer.value for answer in (yield Asked(task, calls))]

    works = [work(task, large if i % 5 == 0 else 8) for i, task in enumerate(process.tasks)]
    together(works, alone=False)
    assert heard == {task.tid: [task.tid, 0, process.pid] for task in process.tasks}
    assert len(heard) == 3 * LANES + 1


def test_what_fails_is_raised(stubs: list[StubProcess]) -> None:
    def work(process: StubProcess) -> Work:
        yield Asked(process.leader, [call(CHDIR, In(b"/none\0"))])

    with pytest.raises(CallFailed):
        together(work(process) for process in stubs)
