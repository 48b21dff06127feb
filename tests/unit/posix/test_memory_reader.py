"""Windows of another process' memory are read, and nothing of it changes by that."""

from __future__ import annotations

import ctypes
import mmap
import os
from collections.abc import Iterator

import pytest

from torpor.linux import proc, uio
from torpor.linux.pagemap import PAGE
from torpor.posix.memory.capture import Reader
from torpor.posix.memory.pages import WINDOW, Window, windows

SIZE = 32 << 20


class Child:
    """A forked process that sleeps, with SIZE bytes at `start` that it shares with us until one of us writes."""

    def __init__(self) -> None:
        self.room = mmap.mmap(-1, SIZE + WINDOW, flags=mmap.MAP_PRIVATE)
        address = uio.address_of(self.room)
        self.start = -(-address // WINDOW) * WINDOW
        self.offset = self.start - address
        for at in range(0, SIZE, PAGE):
            self.room[self.offset + at : self.offset + at + PAGE] = os.urandom(16) * (PAGE // 16)
        self._wake, self._end = os.pipe()
        self.pid = os.fork()
        if not self.pid:
            os.close(self._end)
            os.read(self._wake, 1)
            os._exit(0)

    def end(self) -> None:
        os.close(self._end)
        os.waitpid(self.pid, 0)
        os.close(self._wake)


@pytest.fixture
def child() -> Iterator[Child]:
    made = Child()
    yield made
    made.end()


def test_what_is_shared_stays_shared(child: Child) -> None:
    before = proc.rollup(child.pid)
    assert before["Anonymous"] - before["Private_Dirty"] > SIZE - WINDOW
    with Reader() as reader:
        for at, window in enumerate(windows([(child.start, child.start + SIZE)])):
            begin = child.offset + at * WINDOW
            assert reader.read(child.pid, window) == child.room[begin : begin + WINDOW]
    assert proc.rollup(child.pid)["Private_Dirty"] - before["Private_Dirty"] < 1 << 20


def test_pages_of_a_window_that_are_meant(child: Child) -> None:
    bitmap = 0b1011 | 1 << 63
    with Reader() as reader:
        got = bytes(reader.read(child.pid, Window(child.start, bitmap)))
        with_us = bytes(reader.read(os.getpid(), Window(child.start, bitmap)))
    pages = [child.room[child.offset + n * PAGE : child.offset + (n + 1) * PAGE] for n in (0, 1, 3, 63)]
    assert got == b"".join(pages) == with_us


def test_protection_is_passed_over(child: Child) -> None:
    assert not ctypes.CDLL(None).mprotect(ctypes.c_void_p(child.start), PAGE, 0)
    try:
        with Reader() as reader:
            assert len(reader.read(os.getpid(), Window(child.start, 1))) == PAGE
    finally:
        assert not ctypes.CDLL(None).mprotect(ctypes.c_void_p(child.start), PAGE, 3)


def test_what_is_not_there_is_an_error(child: Child) -> None:
    with Reader() as reader, pytest.raises(OSError):
        reader.read(child.pid, Window(0, 1))
