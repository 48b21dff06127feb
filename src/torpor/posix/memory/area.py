"""One memory area: what it is, told from /proc/PID/smaps, and the calls that make it again.

What the kernel keeps for an area is its range, protection, what it maps, and flags: accounting, locking, advice. All of
it shows in smaps ("VmFlags", Documentation/filesystems/proc.rst). An area comes back as what it was: anonymous memory
as anonymous memory, a file mapping as a mapping of that file at that offset.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from torpor.linux.arch.x86_64 import NR
from torpor.linux.proc import Area
from torpor.tracee.call import ANY, Call, call

PROT_READ, PROT_WRITE, PROT_EXEC = 1, 2, 4
MAP_SHARED, MAP_PRIVATE, MAP_DROPPABLE, MAP_FIXED, MAP_ANONYMOUS = 1, 2, 8, 0x10, 0x20
MAP_GROWSDOWN, MAP_NORESERVE, MAP_HUGETLB, MAP_FIXED_NOREPLACE = 0x100, 0x4000, 0x40000, 0x100000
MAP_HUGE_SHIFT = 26
MREMAP_MAYMOVE, MREMAP_FIXED = 1, 2

ANONYMOUS = "anonymous"
FILE = "file"
OBJECT = "object"
"""Memory that exists only while it is mapped or open: shared anonymous memory, memfd, deleted files."""
SYSV = "sysv"
"""A System V segment; `what` is its id (posix/sysv_shm.py)."""
KERNEL = "kernel"
"""[vdso] and its data pages."""
DROPPABLE = "droppable"

ADVICE = {"sr": 2, "rr": 1, "dc": 10, "mg": 12, "hg": 14, "nh": 15, "dd": 16, "wf": 18}
"""VmFlags that are set by madvise(2), and the advice."""

MAY_WRITE = "mw"
"""The VmFlag of an area that may be made writable; recorded for shared areas only, where it depends on how the file was
opened."""

KEPT = frozenset(("gd", "nr", "ac", "lo", "lf", "ht", "sl", *ADVICE))
"""VmFlags that are recorded."""


class AreaRecord(msgspec.Struct, frozen=True):
    """A memory area.

    kind: one of the constants above. prot: PROT_* bits. flags: those VmFlags that are kept. offset: into the mapped
    file or object, bytes. what: the path of a mapped file (an index into Manifest.files), the number of a memory
    object, or -1. descriptor: the open file description (Manifest.objects) an object is reached by, or -1. name: what
    maps shows ('[heap]', '[vdso]', ...). page: page size in bytes. huge: most of what is there was transparent huge
    pages.
    """

    start: int
    end: int
    kind: str
    prot: int
    shared: bool
    flags: tuple[str, ...]
    offset: int = 0
    what: int = -1
    descriptor: int = -1
    name: str = ""
    page: int = 4096
    huge: bool = False

    @property
    def size(self) -> int:
        return self.end - self.start

    @property
    def may_write(self) -> bool:
        """May a shared area be written to, if not as it is then after mprotect(2)?"""
        return bool(self.prot & PROT_WRITE) or MAY_WRITE in self.flags


def prot_of(perms: str) -> int:
    """'r-xp' to PROT_* bits."""
    return (perms[0] == "r") * PROT_READ | (perms[1] == "w") * PROT_WRITE | (perms[2] == "x") * PROT_EXEC


def kind_of(area: Area, flags: frozenset[str]) -> str:
    """Which kind of memory an area is."""
    path = area.path
    if path in ("[vdso]", "[vvar]", "[vvar_vclock]"):
        return KERNEL
    if "dp" in flags:
        return DROPPABLE
    if path.startswith("/SYSV") and path.endswith(" (deleted)"):
        return SYSV  # first of all: its inode number is the segment's id, and the first segment of a namespace has id 0
    if area.ino == 0 or (path == "/anon_hugepage (deleted)" and area.perms[3] == "p"):
        return ANONYMOUS
    if path.endswith(" (deleted)"):
        return OBJECT
    return FILE


def make(
    record: AreaRecord, fd_of: Callable[[AreaRecord], int], parked_at: Callable[[AreaRecord], int] | None = None
) -> Call:
    """The call that makes the area, writable as far as its contents have to be put in.

    fd_of: the descriptor (in the task) of the file or object. parked_at: where in the task's address space a shared
    anonymous object has been mapped whole, for objects that have no descriptor.
    """
    prot = record.prot
    if writable_first(record):
        prot |= PROT_WRITE
    if parked_at is not None and record.kind in (OBJECT, SYSV):
        source = parked_at(record)
        if source:
            # mremap with old_size 0 makes a second mapping of a shared object (mremap(2)).
            return call(NR.mremap, source + record.offset, 0, record.size, MREMAP_MAYMOVE | MREMAP_FIXED, record.start)
    flags = MAP_FIXED | (MAP_SHARED if record.shared else MAP_PRIVATE)
    fd = -1
    if record.kind == DROPPABLE:
        flags = MAP_FIXED | MAP_DROPPABLE | MAP_ANONYMOUS
    elif record.kind == ANONYMOUS:
        flags |= MAP_ANONYMOUS
        if "gd" in record.flags:
            flags |= MAP_GROWSDOWN
    else:
        fd = fd_of(record)
    if "nr" in record.flags:
        flags |= MAP_NORESERVE
    if "ht" in record.flags and record.kind == ANONYMOUS:
        flags |= MAP_HUGETLB | (record.page.bit_length() - 1) << MAP_HUGE_SHIFT
    return call(NR.mmap, record.start, record.size, prot, flags, fd, 0 if fd < 0 else record.offset)


def writable_first(record: AreaRecord) -> bool:
    """Was the area writable once (it is accounted for) although it is not now? Then it is made so, filled and
    protected, which also gives it the same accounting."""
    return not record.shared and "ac" in record.flags and not record.prot & PROT_WRITE


def before(record: AreaRecord) -> list[Call]:
    """The calls before the contents are put in. An area that had huge pages, and may ask for them, gets them at once:
    that takes a five hundredth of the page faults."""
    if record.huge and "hg" in record.flags:
        return [call(NR.madvise, record.start, record.size, ADVICE["hg"], accept=(22,))]
    return []


def finish(record: AreaRecord) -> list[Call]:
    """The calls that follow once the contents are in: protection, advice, locking."""
    calls = []
    if parked := record.kind in (OBJECT, SYSV) and record.shared:
        calls.append(call(NR.mprotect, record.start, record.size, record.prot))
    if not parked and writable_first(record):
        calls.append(call(NR.mprotect, record.start, record.size, record.prot))
    for flag in record.flags:
        if flag in ADVICE:
            # Advice the kernel of this host was built without is no loss of state.
            calls.append(call(NR.madvise, record.start, record.size, ADVICE[flag], accept=(22,)))
    if "lo" in record.flags:
        # MLOCK_ONFAULT fails only where the limit is reached. mlock(2) also fails where a page cannot be had
        # (PROT_NONE, beyond the end of a file), having locked the area all the same (mm/mlock.c): the program was told.
        calls.append(call(NR.mlock2, record.start, record.size, 1))
        if "lf" not in record.flags:
            calls.append(call(NR.mlock2, record.start, record.size, 0, accept=(11, 12)))
    return calls


def guard(address: int, size: int) -> Call:
    """Make guard pages again (MADV_GUARD_INSTALL)."""
    return call(NR.madvise, address, size, 102)


def seal(record: AreaRecord) -> list[Call]:
    """mseal(2), after everything else."""
    return [call(462, record.start, record.size, 0, accept=ANY)] if "sl" in record.flags else []
