"""Threads that make their calls at the same time, also where whoever asks them is killed meanwhile."""

from __future__ import annotations

import array
import mmap
import os
import signal
import threading
import time
from collections.abc import Iterator

import pytest

from torpor.linux import proc
from torpor.linux.arch.x86_64 import NR
from torpor.tracee import guests
from torpor.tracee.call import call
from torpor.tracee.freeze import freeze
from torpor.tracee.process import SCRATCH_SIZE

THREADS = 11


class Child:
    """A process whose threads count, each in a place of its own; the first one too."""

    def __init__(self) -> None:
        room = mmap.mmap(-1, mmap.PAGESIZE)
        self.counts = memoryview(room).cast("Q")
        self.pid = os.fork()
        if self.pid == 0:
            for place in range(1, THREADS):
                threading.Thread(target=self._count, args=(place,)).start()
            self._count(0)
        self.await_all()

    def _count(self, place: int) -> None:
        while True:
            self.counts[place] += 1
            time.sleep(0.0005)

    def await_all(self) -> None:
        """Until every thread has gone on."""
        before = array.array("Q", self.counts[:THREADS])
        until = time.monotonic() + 20
        while any(now <= then for now, then in zip(self.counts, before)):
            assert time.monotonic() < until, "a thread does not go on"
            time.sleep(0.001)

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


def ask(child: Child, rows: int) -> tuple[list[int], list[list[int]]]:
    """(the numbers of the threads but the first, what each of them says)."""
    with freeze(lambda: [child.pid]) as frozen:
        process = frozen.processes[child.pid]
        others = process.tasks[1:]
        made = guests.make(process, [(task, [call(NR.gettid)] * rows) for task in others])
        assert process.lanes > 1, "this program has too little padding to show anything"
        return [task.vtid for task in others], [[answer.value for answer in one.answers()] for one in made]


def mapped(child: Child) -> int:
    """Bytes of its areas."""
    return sum(area.size for area in proc.maps(child.pid))


@pytest.mark.parametrize("rows", [1, 500])
def test_everybody_answers_for_himself(child: Child, rows: int) -> None:
    before = proc.maps(child.pid)
    numbers, said = ask(child, rows)
    assert len(numbers) == THREADS - 1
    assert said == [[number] * rows for number in numbers]
    child.await_all()
    assert proc.maps(child.pid) == before


def test_all_go_home_when_the_asker_is_killed(child: Child) -> None:
    """500 rows are more than one batch: so most kills find several threads in the middle of one. In the moment between
    a guest's word and its registers nobody takes the word back: then the scratch memory stays, and nothing else."""
    before = mapped(child)
    for number in range(25):
        beginning, begun = os.pipe()
        asker = os.fork()
        if asker == 0:
            try:
                with freeze(lambda: [child.pid]) as frozen:
                    process = frozen.processes[child.pid]
                    os.write(begun, b"x")
                    while True:
                        guests.make(process, [(task, [call(NR.gettid)] * 500) for task in process.tasks[1:]])
            finally:
                os._exit(1)
        os.read(beginning, 1)
        time.sleep(0.001 * number)
        os.kill(asker, signal.SIGKILL)
        os.waitpid(asker, 0)
        os.close(beginning)
        os.close(begun)
        child.await_all()
        assert proc.status(child.pid)["SigBlk"].strip("0") == ""
    until = time.monotonic() + 20
    while mapped(child) > before + 4 * SCRATCH_SIZE:
        assert time.monotonic() < until, "the scratch memory is still there"
        time.sleep(0.01)
