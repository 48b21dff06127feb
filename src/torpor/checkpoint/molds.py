"""Memory that copies of a job share, copy-on-write, until they write to it.

Whoever makes the copies puts large areas of private anonymous memory into its own address space first, where the job's
processes have them, and fills them once. All that it forks has them too; the stubs keep what is theirs
(checkpoint/takeover.py), and everybody else lets go. So an area of a copy is what it was: private anonymous memory, at
its address, of a process that was forked. That differs from memory of its own only in what can be seen of any forked
process: the first write to a page is a fault, smaps counts pages as shared, and new memory beside such an area is
listed as an area of its own.

Not taken are areas of huge pages, and areas whose addresses are in use here, or are wanted by another process of the
job. They are filled in each copy, as ever.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

import msgspec

from torpor.image.manifest import Manifest, ProcessRecord
from torpor.linux import proc, userfaultfd
from torpor.linux.arch.x86_64 import NR
from torpor.linux.libc import syscall
from torpor.model.data import Source
from torpor.posix.memory.area import (
    ADVICE,
    ANONYMOUS,
    MAP_ANONYMOUS,
    MAP_FIXED_NOREPLACE,
    MAP_PRIVATE,
    PROT_READ,
    PROT_WRITE,
    AreaRecord,
)
from torpor.posix.memory.pages import PagesRecord, rows_within, split

LEAST = 1 << 20
"""Bytes of an area that is worth it."""
_DONTFORK, _DOFORK = 10, 11
"""MADV_DONTFORK, MADV_DOFORK."""
_PLAIN = frozenset(("ac", "hg", "nh"))
"""VmFlags that an area may have."""


class Molds:
    """What is there."""

    def __init__(self, areas: dict[int, list[AreaRecord]]) -> None:
        """areas: by number of the process, ascending."""
        self._areas = areas
        self._there = True

    def areas(self, pid: int) -> list[tuple[int, int]]:
        """Those of a process that its stub inherits."""
        return [(area.start, area.end) for area in self._areas.get(pid, ())]

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
        return Molds({})  # each process that has them for a moment would need room for all of them
    found: dict[int, list[AreaRecord]] = {}
    molds = Molds(found)
    try:
        for record in manifest.processes:
            if record.state != "zombie":
                found[record.pid] = [area for area in record.areas if eligible(area) and _take(area)]
                _fill(record, found[record.pid], source)
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


def _take(area: AreaRecord) -> bool:
    """Map it where it is to be; False where something else is there."""
    flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE
    try:
        at = syscall(NR.mmap, area.start, area.size, PROT_READ | PROT_WRITE, flags, -1, 0)
        if at != area.start:  # before Linux 4.17
            syscall(NR.munmap, at, area.size)
            return False
        if "nh" in area.flags:
            syscall(NR.madvise, area.start, area.size, ADVICE["nh"])
    except OSError:
        return False
    return True


def _split(record: ProcessRecord, areas: Sequence[AreaRecord]) -> tuple[PagesRecord, PagesRecord]:
    """The windows of a process that are within some of its areas, and all others."""
    return split(record.pages, [rows_within(record.pages, area.start, area.end) for area in areas])


def _fill(record: ProcessRecord, areas: list[AreaRecord], source: Source) -> None:
    """Put the contents in."""
    from torpor.checkpoint.fill import fill

    own = msgspec.structs.replace(record, areas=tuple(areas), pages=_split(record, areas)[0])
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
