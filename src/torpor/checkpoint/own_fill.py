"""Large areas of huge pages, put in by the processes of the job themselves, before they are taken over.

A forked process maps such an area of its own at its place, and reads its chunks from the store right to where they
belong; they are verified there, while the processor still has them at hand. To put a huge page in from outside
(checkpoint/fill.py) takes half as long again: the kernel goes through it by 4 KiB, and what is verified is read twice.
The takeover keeps these areas and unmaps everything else. They are what they would be otherwise: private anonymous
memory that this process mapped, and shares with nobody.

Only where the store is in files here. What cannot be mapped, since torpor itself has something there, is put in from
outside, as is all that is not of huge pages.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

import msgspec

from torpor.checkpoint import workers
from torpor.image.manifest import Manifest, ProcessRecord
from torpor.linux.arch.x86_64 import NR
from torpor.linux.libc import syscall
from torpor.model.errors import Damaged, RestartFailed
from torpor.named_tuple import NamedTuple
from torpor.posix.memory import area as areas
from torpor.posix.memory.area import ANONYMOUS, MAP_FIXED, MAP_FIXED_NOREPLACE, PROT_WRITE, AreaRecord, writable_first
from torpor.posix.memory.pages import FULL, PAGE, WINDOW, PagesRecord, Window, for_threads, rows, rows_within, split

if TYPE_CHECKING:
    from torpor.checkpoint.opened import Near

FILLED, NOT_MAPPED, DAMAGED = range(210, 213)
"""Reported by a process (checkpoint/plant.py), with a value: KiB that were put in; which of its areas could not be
mapped; which chunk is not what was saved."""

LEAST = 16 << 20
"""Bytes of an area that is worth it."""
_TOGETHER = 4
"""Windows that are read at once, at most: 1 MiB."""
_PORTION = 4
"""So many pieces a thread takes at a time, and tells of when they are in: whoever waits wants to hear something."""
_NEVER = frozenset(("gd", "ht", "sl"))
"""VmFlags of areas that are not mapped early: they grow, are of pages from the pool, may not be changed any more."""

Tell = Callable[[int, int], None]


class Piece(NamedTuple):
    """Pages that are read at once: their windows, and the chunk of each. in_a_row: as their pages do in memory, their
    chunks lie one behind the other in the store."""

    windows: Sequence[Window]
    refs: Sequence[int]
    in_a_row: bool

    @property
    def size(self) -> int:
        return sum(window.size for window in self.windows)


class OwnFill:
    """What the processes of a job put in themselves. Made by the restarting process."""

    def __init__(self, manifest: Manifest, load: Near, progress: Callable[[int, int], None] | None = None) -> None:
        """progress: called with bytes that are in, and those of all memory of the job."""
        self._load = load
        self._progress = progress
        self._areas: dict[int, list[AreaRecord]] = {}
        self._pages = {record.pid: record.pages for record in manifest.processes}
        self._total = sum(pages.size for pages in self._pages.values())
        self.done = 0
        """Bytes that are in."""
        for record in manifest.processes:
            found = [area for area in record.areas if eligible(area)]
            if found and record.state != "zombie":
                self._areas[record.pid] = found

    def areas(self, pid: int) -> list[tuple[int, int]]:
        """The areas (start, end) that a process has by now, with their contents."""
        return [(area.start, area.end) for area in self._areas.get(pid, ())]

    def rest(self, record: ProcessRecord) -> ProcessRecord:
        """A process with no more contents than are still to be put in."""
        if record.pid not in self._areas:
            return record
        return msgspec.structs.replace(record, pages=self._split(record.pid, record.pages)[1])

    def fill(self, pid: int, tell: Tell) -> None:
        """In a process of the job, which will not fork any more: map its areas and put their contents in. tell: what is
        called with (value, FILLED and so on). Raises OSError, Damaged, which was told before."""
        mine = self._areas.get(pid)
        if not mine:
            return
        for at, area in reversed(list(enumerate(mine))):
            if not map_here(area):
                tell(at, NOT_MAPPED)
                del mine[at]
        pages = self._split(pid, self._pages[pid])[0]

        def put(some: Sequence[Piece]) -> None:
            try:
                self._put(some)
            except Damaged:
                self._tell_damaged(some, tell)
                raise
            tell(sum(piece.size for piece in some) >> 10, FILLED)

        todo = list(pieces(rows(pages), self._load.lies))
        portions = (todo[at : at + _PORTION] for at in range(0, len(todo), _PORTION))
        workers.share(portions, put, not for_threads(len(pages.numbers), pages.size))
        workers.gone()

    def _tell_damaged(self, some: Iterable[Piece], tell: Tell) -> None:
        for piece in some:
            for ref in piece.refs:
                try:
                    self._load.get(ref)
                except Damaged:
                    tell(ref, DAMAGED)

    def hear(self, pid: int, value: int, step: int) -> None:
        """In the restarting process: a process has told that. Raises Damaged, RestartFailed."""
        if step == NOT_MAPPED:
            del self._areas[pid][value]
        elif step == FILLED:
            self.done += value << 10
            if self._progress is not None:
                self._progress(self.done, self._total)
        elif step == DAMAGED:
            self._load.get(value)
            raise RestartFailed(f"process {pid}: its memory could not be read; try again")

    def _split(self, pid: int, pages: PagesRecord) -> tuple[PagesRecord, PagesRecord]:
        """Those of a process' windows that are within its areas, and all others."""
        return split(pages, [rows_within(pages, area.start, area.end) for area in self._areas[pid]])

    def _put(self, some: Sequence[Piece]) -> None:
        self._load.read_into(
            (piece.refs, _memory(piece.windows[0].address, piece.size)) for piece in some if piece.in_a_row
        )
        for piece in some:
            for window, ref in zip(piece.windows, piece.refs) if not piece.in_a_row else ():
                data = memoryview(self._load.get(ref))
                at = 0
                for address, size in window.ranges():
                    _memory(address, size)[:] = data[at : at + size]
                    at += size


def eligible(area: AreaRecord) -> bool:
    """Is it ordinary memory of huge pages, and enough of it? Pure."""
    return (
        area.huge
        and area.kind == ANONYMOUS
        and not area.shared
        and area.page == PAGE
        and area.size >= LEAST
        and bool(area.prot & PROT_WRITE or writable_first(area))
        and not _NEVER.intersection(area.flags)
    )


def pieces(found: Iterable[tuple[int, int, int]], lies: Callable[[int], tuple[int, int] | None]) -> Iterator[Piece]:
    """Windows (address, bitmap, chunk), ascending, as they are to be read. lies: see Near.lies. Pure."""
    row: list[tuple[Window, int]] = []
    follows: tuple[int, int, int] | None = None
    for address, bitmap, ref in found:
        place = lies(ref) if bitmap == FULL else None
        here = None if place is None else (address, *place)
        if row and (here is None or here != follows or len(row) == _TOGETHER):
            yield Piece([window for window, _ in row], [chunk for _, chunk in row], True)
            row = []
        if here is None:
            yield Piece([Window(address, bitmap)], [ref], False)
            continue
        row.append((Window(address, bitmap), ref))
        follows = (here[0] + WINDOW, here[1], here[2] + WINDOW)
    if row:
        yield Piece([window for window, _ in row], [chunk for _, chunk in row], True)


def map_here(area: AreaRecord) -> bool:
    """Map a private anonymous area at its place in our own memory; False where something else is there, or we may not
    have so much."""
    made = areas.make(area, lambda _: -1)
    start, size, prot, flags, fd, offset = (int(each) for each in made.args if isinstance(each, int))
    try:
        at = syscall(made.nr, start, size, prot, flags & ~MAP_FIXED | MAP_FIXED_NOREPLACE, fd, offset)
        if at != start:  # before Linux 4.17
            syscall(NR.munmap, at, size)
            return False
        for call in areas.before(area):
            syscall(call.nr, *(each for each in call.args if isinstance(each, int)))
    except OSError:
        return False
    return True


def _memory(start: int, size: int) -> memoryview:
    """Memory of ours."""
    return memoryview((ctypes.c_char * size).from_address(start)).cast("B")
