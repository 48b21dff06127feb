"""Memory that copies of a job share, copy-on-write, until they write to it.

Whoever makes the copies puts large areas of private anonymous memory into its own address space first, where the job's
processes have them, and fills them once. All that it forks has them too; the stubs keep what is theirs
(checkpoint/address_space.py), and everybody else lets go. So an area of a copy is what it was: private anonymous
memory, at its address, of a process that was forked. That differs from memory of its own only in what can be seen of
any forked process: the first write to a page is a fault, smaps counts pages as shared, and new memory beside such an
area is listed as an area of its own.

Where all small pages of a huge one are to be filled, a huge page is taken, as long as these are to be had in no time:
it is quicker to fill, and a fork that hands it on copies one entry in place of 512 (9 ms for 256 MiB, and 9 ms again
where who hands them on lets go of them; so it is 0.4 and 0.1). The process that has it in the end has 512 entries made
of it (`break_up`): its memory consists of small pages, by whatever it is looked at, which happen to lie in a row.

Not taken are areas of huge pages, and areas whose addresses are in use here, or are wanted by another process of the
job. They are filled in each copy, as ever.
"""

from __future__ import annotations

import ctypes
import os
import time
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence

import msgspec

from torpor.checkpoint.huge_pages import HUGE
from torpor.checkpoint.own_fill import map_here
from torpor.image.manifest import Manifest, ProcessRecord
from torpor.linux import proc, uio, userfaultfd
from torpor.linux.arch.x86_64 import NR
from torpor.linux.libc import syscall
from torpor.model.data import Source
from torpor.posix.memory.area import (
    ADVICE,
    ANONYMOUS,
    PROT_READ,
    PROT_WRITE,
    AreaRecord,
)
from torpor.posix.memory.pages import FULL, PAGE, WINDOW, PagesRecord, rows_within, split

LEAST = 1 << 20
"""Bytes of an area that is worth it."""
_DONTFORK, _DOFORK = 10, 11
"""MADV_DONTFORK, MADV_DOFORK."""
_PLAIN = frozenset(("ac", "hg", "nh"))
"""VmFlags that an area may have."""
_SLOW = 2e-3
"""Seconds that a huge page may take: no longer than to fill as many small ones. It takes 0.2 ms, but 7 on a virtual
machine that has to be given the memory first by its host, which has taken back what was free in large pieces."""
_PATIENCE = 3
"""So many that take longer, then no more are asked for. (It may have been somebody else who ran meanwhile.)"""

Range = tuple[int, int]
"""(start, end)"""


class Molds:
    """What is there."""

    def __init__(self, areas: dict[int, list[AreaRecord]], huge: dict[int, list[Range]]) -> None:
        """By number of the process, ascending. huge: where huge pages may be."""
        self._areas, self._huge = areas, huge
        self._there = True

    def areas(self, pid: int) -> list[Range]:
        """Those of a process that its stub inherits."""
        return [(area.start, area.end) for area in self._areas.get(pid, ())]

    def keep(self, pid: int) -> None:
        """In that process, which will not fork any more: its own are what they are to be."""
        for start, end in self._huge.get(pid, ()):
            break_up(start, end)

    def rest(self, record: ProcessRecord) -> ProcessRecord:
        """A process with no more contents than are still to be put in."""
        pages = _split(record, self._areas.get(record.pid, ()))[1]
        return msgspec.structs.replace(record, pages=pages)

    def chunks(self, manifest: Manifest) -> set[int]:
        """The chunks that no copy has to get for its memory any more."""
        mine: set[int] = set()
        others: set[int] = set()
        for record in manifest.processes:
            inside, rest = _split(record, self._areas.get(record.pid, ()))
            mine.update(memoryview(inside.refs).cast("I"))
            others.update(memoryview(rest.refs).cast("I"))
        return mine - others

    def hold(self) -> None:
        """Nobody who is forked from now on has them, but with `hand_on`."""
        self._advise(_DONTFORK)

    def hand_on(self) -> None:
        """Who is forked now has them."""
        self._advise(_DOFORK)

    def drop(self) -> None:
        """They are not ours any more."""
        if self._there:
            self._there = False
            for areas in self._areas.values():
                for area in areas:
                    syscall(NR.munmap, area.start, area.size)

    def _advise(self, advice: int) -> None:
        for areas in self._areas.values():
            for area in areas:
                syscall(NR.madvise, area.start, area.size, advice)


def cast(manifest: Manifest, source: Source) -> Molds:
    """Take in what can be taken, with its contents. Raises Damaged, OSError."""
    if proc.sysctl("vm/overcommit_memory") == "2":
        return Molds({}, {})  # each process that has them for a moment would need room for all of them
    found: dict[int, list[AreaRecord]] = {}
    huge: dict[int, list[Range]] = {}
    molds = Molds(found, huge)
    try:
        for record in manifest.processes:
            if record.state != "zombie":
                found[record.pid] = [area for area in record.areas if eligible(area) and map_here(area)]
                huge[record.pid] = _fill(record, found[record.pid], source)
                for area in found[record.pid]:
                    if "nh" in area.flags:  # only now: to such an area no huge page is given
                        syscall(NR.madvise, area.start, area.size, ADVICE["nh"])
    except BaseException:
        molds.drop()
        raise
    return molds


def eligible(area: AreaRecord) -> bool:
    """Is it ordinary memory, and enough of it? Huge pages are cheap to fill, and the first write to one that is shared
    would cut it into small ones. Pure."""
    return (
        area.kind == ANONYMOUS
        and not area.shared
        and area.size >= LEAST
        and area.prot == PROT_READ | PROT_WRITE
        and "ac" in area.flags
        and _PLAIN.issuperset(area.flags)
        and not area.huge
    )


def _split(record: ProcessRecord, areas: Sequence[AreaRecord]) -> tuple[PagesRecord, PagesRecord]:
    """The windows of a process that are within some of its areas, and all others."""
    return split(record.pages, [rows_within(record.pages, area.start, area.end) for area in areas])


def full(pages: PagesRecord, areas: Iterable[AreaRecord]) -> list[Range]:
    """Where huge pages are within areas of which all small ones have contents. Pure."""
    numbers = pages.numbers
    count = HUGE // WINDOW
    whole = FULL.to_bytes(8, "little") * count
    found: list[Range] = []
    for area in areas:
        begins = True
        for at in range(-(-area.start // HUGE) * HUGE, area.end - HUGE + 1, HUGE):
            first = bisect_left(numbers, at // WINDOW)
            # Windows ascend: if the last of them is there, too, all between are.
            if (
                list(numbers[first : first + count : count - 1]) == [at // WINDOW, at // WINDOW + count - 1]
                and pages.bitmaps[8 * first : 8 * (first + count)] == whole
            ):
                if begins or found[-1][1] < at:
                    found.append((at, at + HUGE))
                else:
                    found[-1] = found[-1][0], at + HUGE
                begins = False
    return found


def cut(areas: Iterable[AreaRecord], huge: Iterable[Range]) -> Iterator[AreaRecord]:
    """Areas, in pieces that are huge pages or are not. huge: each within one area. All ascending. Pure."""
    ranges = iter(huge)
    start, end = next(ranges, (0, 0))
    for area in areas:
        at = area.start
        while at <= start < area.end:
            if at < start:
                yield msgspec.structs.replace(area, start=at, end=start)
            yield msgspec.structs.replace(area, start=start, end=end, huge=True)
            at = end
            start, end = next(ranges, (0, 0))
        if at < area.end:
            yield msgspec.structs.replace(area, start=at)


def _fill(record: ProcessRecord, areas: list[AreaRecord], source: Source) -> list[Range]:
    """Put the contents in; where huge pages may be then."""
    from torpor.checkpoint.fill import fill

    pages = _split(record, areas)[0]
    huge = _enlarge(full(pages, areas))
    own = msgspec.structs.replace(record, areas=tuple(cut(areas, huge)), pages=pages)
    faults: dict[int, int] = {}
    try:
        faults[os.getpid()] = userfaultfd.create()
    except OSError:
        pass  # it is filled without
    try:
        fill([(own, os.getpid())], source, None, faults)
    finally:
        for fd in faults.values():
            os.close(fd)
    return huge


def _enlarge(runs: Iterable[Range]) -> list[Range]:
    """Take huge pages for memory of ours, as far as they are to be had in good time; where they may be now. A page of
    which one small one is there is made whole by MADV_COLLAPSE (Linux 6.1), whatever a page fault is given here."""
    found: list[Range] = []
    slow = 0
    for start, end in runs:
        at = start
        while at < end and slow < _PATIENCE:
            began = time.perf_counter()
            ctypes.memset(at, 0, 1)
            try:
                syscall(NR.madvise, at, HUGE, uio.MADV_COLLAPSE)
            except OSError:
                slow = _PATIENCE
            slow += time.perf_counter() - began > _SLOW
            at += HUGE
        if at > start:
            found.append((start, at))
    return found


def break_up(start: int, end: int) -> None:
    """Have 512 entries stand for each huge page of ours. Where areas with different advice meet within one the kernel
    has to do so (mm/huge_memory.c, vma_adjust_trans_huge): such a border is led through all of them, and in the end the
    advice is taken back."""
    try:
        for at in range(start, end, HUGE):
            syscall(NR.madvise, at + PAGE, min(at + HUGE + PAGE, end) - at - PAGE, _DONTFORK)
    except OSError:
        pass  # there may be no more areas (vm.max_map_count): then it stays what it is
    syscall(NR.madvise, start, end - start, _DOFORK)
