"""Huge pages that were split are put together again, and nothing else is."""

from __future__ import annotations

import contextlib
import mmap
import os
import signal
import struct
from collections.abc import Iterator

import pytest

from torpor.checkpoint.huge_pages import HUGE, PIECE, HugePages, pieces, whole
from torpor.linux import capability, uio
from torpor.linux.pagemap import PAGE, Pagemap

COUNT = 4


def test_whole_ones_only() -> None:
    runs = [(HUGE - PAGE, 3 * HUGE + PAGE), (4 * HUGE, 5 * HUGE - PAGE), (6 * HUGE, 7 * HUGE)]
    assert list(whole(runs)) == [(HUGE, 3 * HUGE), (6 * HUGE, 7 * HUGE)]


def test_pieces() -> None:
    runs = [(0, 2 * PIECE + HUGE), (4 * PIECE, 4 * PIECE + HUGE)]
    assert list(pieces(runs)) == [
        (0, PIECE), (PIECE, 2 * PIECE), (2 * PIECE, 2 * PIECE + HUGE), (4 * PIECE, 4 * PIECE + HUGE),
    ]  # fmt: skip


class Memory:
    """Huge pages of this process, and a child that shares them."""

    def __init__(self) -> None:
        self._map = mmap.mmap(-1, (COUNT + 1) * HUGE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self._map.madvise(mmap.MADV_HUGEPAGE)
        self.start = -(-uio.address_of(self._map) // HUGE) * HUGE
        self.end = self.start + COUNT * HUGE
        self._skip = self.start - uio.address_of(self._map)
        for at in range(0, COUNT * HUGE, PAGE):
            self.write(at, at)
        self.child = os.fork()
        if not self.child:
            signal.pause()

    def write(self, at: int, number: int) -> None:
        self._map[self._skip + at : self._skip + at + 8] = struct.pack("<q", number)

    def read(self, at: int) -> int:
        return int.from_bytes(self._map[self._skip + at : self._skip + at + 8], "little")

    def drop(self, at: int) -> None:
        """The page at `at` is not there any more."""
        self._map.madvise(mmap.MADV_DONTNEED, self._skip + at, PAGE)

    def huge(self) -> list[int]:
        """Which are huge pages."""
        pages = Pagemap(os.getpid())
        try:
            runs = pages.huge(self.start, self.end)
        finally:
            pages.close()
        return [(at - self.start) // HUGE for start, end in runs for at in range(start, end, HUGE)]


@pytest.fixture
def memory() -> Iterator[Memory]:
    made = Memory()
    yield made
    os.kill(made.child, signal.SIGKILL)
    os.waitpid(made.child, 0)


def test_what_was_split_is_huge_again(memory: Memory) -> None:
    if memory.huge() != [0, 1, 2, 3]:
        pytest.skip("huge pages are not to be had, or not told, here")
    if not capability.have(capability.SYS_NICE):
        pytest.skip("only with CAP_SYS_NICE")
    pages = HugePages()
    pages.note(os.getpid(), memory.child, [(memory.start, memory.end)], None)
    for block in (0, 2, 3):
        memory.write(block * HUGE + 5 * PAGE, -1 & 0xFFFF)
    memory.drop(3 * HUGE)
    assert memory.huge() == [1]
    pages.mend()
    pages.close(contextlib.nullcontext())
    assert memory.huge() == [0, 1, 2], "one of the last one's pages is not there"
    for at in range(0, COUNT * HUGE, PAGE):
        block, rest = divmod(at, HUGE)
        expected = 0xFFFF if block != 1 and rest == 5 * PAGE else 0 if at == 3 * HUGE else at
        assert memory.read(at) == expected


def test_nothing_is_done_for_who_has_none(memory: Memory) -> None:
    pages = HugePages()
    pages.note(os.getpid(), memory.child, [], None)
    pages.mend()
    pages.close(contextlib.nullcontext())
