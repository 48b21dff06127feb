"""Memory of a stopped process becomes records and chunks."""

from __future__ import annotations

import errno
import functools
import mmap
import os
from collections.abc import Callable, Iterable, Mapping

import msgspec

from torpor.linux import proc, uio
from torpor.linux.arch.x86_64 import NR
from torpor.linux.pagemap import PAGE, Pagemap
from torpor.model.data import CHUNK_SIZE, Sink
from torpor.model.errors import Refused
from torpor.named_tuple import NamedTuple
from torpor.posix import paths
from torpor.posix.memory import obstacles
from torpor.posix.memory.area import (
    ANONYMOUS,
    DROPPABLE,
    FILE,
    KEPT,
    KERNEL,
    MAY_WRITE,
    OBJECT,
    SYSV,
    AreaRecord,
    kind_of,
    prot_of,
)
from torpor.posix.memory.pages import Window
from torpor.tracee.call import ANY, Out, call
from torpor.tracee.process import Process

_APART = frozenset(("dc", "wf", "ht"))
_ANONYMOUS = ("[heap]", "[stack]", "[anon:")
_NEVER_NAMED = ("/dev/zero (deleted)", "/anon_hugepage (deleted)")


class Seen(NamedTuple):
    """An area of a stopped process, before it is known what its file or object is called in the manifest."""

    area: proc.Area
    record: AreaRecord
    resident: bool
    """May it hold pages of its own (private memory present or swapped)?"""
    apart: bool
    """Is it memory that a copy of the process does not have, or not for certain, as it is in the process?"""
    attached: bool
    """Is it memory by which a copy would be noticed?"""

    @classmethod
    def of(cls, area: proc.Area, record: AreaRecord, resident: bool) -> Seen:
        """With what follows from the record."""
        return cls(area, record, resident, _apart(record), _attached(record))

    def with_huge(self, huge: bool) -> Seen:
        """The same, if it had huge pages, or not."""
        return self._replace(record=msgspec.structs.replace(self.record, huge=huge))


class Marks(NamedTuple):
    """How an area is marked: VmFlags, and the page size in bytes. seen: what a `sketch` makes of it, None where that
    has to be found out when it is made."""

    flags: frozenset[str] = frozenset()
    page: int = PAGE
    seen: Seen | None = None


Flags = Mapping[proc.Area, Marks]


def look(process: Process) -> list[Seen]:
    """The areas of a stopped process. Raises Refused for what cannot be saved."""
    return [
        found
        for area, fields in proc.smaps(process.pid, process.leader.tid)
        if (found := _seen(process.pid, process.comm, area, fields)) is not None
    ]


def look_at_copy(pid: int, comm: str, copy: int, scratch: tuple[int, int]) -> list[Seen]:
    """The areas of a process, by its copy (host pids) as it was made by tracee/snapshot.py. scratch: (address, bytes)
    of memory that it had not. Raises Refused."""
    return [
        found
        for area, fields in proc.smaps(copy)
        for part in without(area, scratch)
        if (found := _seen(pid, comm, part, fields)) is not None
    ]


def without(area: proc.Area, hole: tuple[int, int]) -> list[proc.Area]:
    """What is left of an area, of none or two parts perhaps, where (address, bytes) is taken out of it. Pure."""
    start, end = hole[0], hole[0] + hole[1]
    if end <= area.start or area.end <= start:
        return [area]
    parts = []
    if area.start < start:
        parts.append(area._replace(end=start))
    if end < area.end:
        parts.append(area._replace(start=end, offset=area.offset + (end - area.start if area.ino else 0)))
    return parts


def flags_of(pid: int) -> Flags:
    """The marks of a process' areas, which may be running. It may be gone: then there are none."""
    try:
        return {area: _marked(area, fields) for area, fields in proc.smaps(pid)}
    except (OSError, KeyError):
        return {}


def seen_of(found: Iterable[Seen]) -> Flags:
    """The marks of a process' areas as its copy has shown them, for the next time; none if it is not certain that its
    areas are called then what they are now. Pure."""
    marks = {one.area: Marks(seen=one._replace(resident=True)) for one in found}
    return {} if any(one.record.kind == OBJECT for one in found) else marks


def hold(pid: int, flags: Flags) -> bool:
    """Can those marks be supposed of a process, which may be running? Not if it has shared memory that they say nothing
    of: that must be known when it is stopped. Private memory shows its marks in a copy (`confirm`)."""
    try:
        return bool(flags) and all(area.perms[3] != "s" or area in flags for area in proc.maps(pid))
    except OSError:
        return False


def _marked(area: proc.Area, fields: dict[str, str]) -> Marks:
    marks = Marks(_marks(fields["VmFlags"]), _page(fields))
    if kind_of(area, marks.flags) == OBJECT:
        return marks  # what it is called may change
    try:
        seen = _seen(0, "", area, fields)
    except Refused:
        return marks  # by whom, is told when it counts
    return marks._replace(seen=seen and seen._replace(resident=True))


def _sketched(pid: int, comm: str, area: proc.Area, marks: Marks) -> Seen | None:
    """An area by its marks alone; it may hold pages."""
    fields = {"VmFlags": " ".join(marks.flags), "KernelPageSize": f"{marks.page // 1024} kB", "Rss": "1 kB"}
    return _seen(pid, comm, area, fields)


def sketch(process: Process, flags: Flags) -> list[Seen] | None:
    """The areas of a stopped process, by a look that walks no page tables; with the marks that they had a moment ago.
    None where that will not do, since what is needed at once depends on them.

    What was marked since shows in the copy: see `confirm`. Raises Refused.
    """
    if int(process.status.get("VmLck", "0").split()[0]):
        return None  # locks do not show in a copy
    found = []
    for area in process.areas:
        marks = flags.get(area)
        if marks is None:
            if area.perms[3] == "s":
                return None
            marks = Marks()
        seen = marks.seen or _sketched(process.pid, process.comm, area, marks)
        if seen is not None:
            found.append(seen)
    return None if any(one.apart or one.attached for one in found) else found


def confirm(sketched: Iterable[Seen], found: Iterable[Seen]) -> bool:
    """Do the areas of a copy bear out what was said of the process? Pure."""
    before = [(one.area, one.record.kind, one.record.shared and one.record.flags) for one in sketched]
    after = [(one.area, one.record.kind, one.record.shared and one.record.flags) for one in found]
    return before == after and not any(one.apart for one in found)


def _apart(record: AreaRecord) -> bool:
    """See `Seen.apart`. Pure.

    MADV_DONTFORK and MADV_WIPEONFORK; pages of the hugetlb pool, which the process may take from the copy where there
    are none left (mm/hugetlb.c, hugetlb_wp); what is not copied but shown of a mapped object.
    """
    if record.shared or record.kind in (KERNEL, DROPPABLE):
        return False
    return not _APART.isdisjoint(record.flags) or record.page != PAGE or record.kind in (OBJECT, SYSV)


def _attached(record: AreaRecord) -> bool:
    """See `Seen.attached`. Pure."""
    return record.shared and (record.kind in (OBJECT, SYSV) or record.may_write)


def dropped(seen: Iterable[Seen]) -> list[tuple[int, int]]:
    """What a copy is better without: (address, bytes)."""
    return [(one.record.start, one.record.size) for one in seen if one.attached]


def _seen(pid: int, comm: str, area: proc.Area, fields: dict[str, str]) -> Seen | None:
    if area.path == "[vsyscall]":
        return None
    flags = _marks(fields["VmFlags"])
    refusal = obstacles.refuse_flags(pid, comm, area, fields, flags)
    if refusal is not None:
        raise Refused([refusal])
    kind = kind_of(area, flags)
    if kind == OBJECT and area.path.startswith("/") and area.path not in _NEVER_NAMED:
        name = paths.other_name(area.path, area.dev, area.ino)
        if name:
            area, kind = area._replace(path=name), FILE
    kept = KEPT | {MAY_WRITE} if area.perms[3] == "s" else KEPT
    record = AreaRecord(
        area.start, area.end, kind, prot_of(area.perms), area.perms[3] == "s",
        tuple(sorted(flags & kept)), area.offset, area.ino if kind == SYSV else -1, -1,
        area.path if area.path.startswith("[") else "",
        _page(fields), 2 * _kib(fields, "AnonHugePages") > _kib(fields, "Rss"),
    )  # fmt: skip
    # smaps counts huge TLB pages apart from the others.
    counted = sum(_kib(fields, key) for key in ("Rss", "Swap", "Private_Hugetlb", "Shared_Hugetlb"))
    return Seen.of(area, record, counted > 0)


@functools.lru_cache(256)
def _marks(words: str) -> frozenset[str]:
    """VmFlags as a set: one for all areas that have the same."""
    return frozenset(words.split())


def _kib(fields: dict[str, str], key: str) -> int:
    return int(fields.get(key, "0").split()[0])


def _page(fields: dict[str, str]) -> int:
    return int(fields["KernelPageSize"].split()[0]) * 1024


def own_pages(pid: int, seen: Iterable[Seen]) -> Iterable[list[tuple[int, int]]]:
    """Runs (start, end) of pages of the private memory of a process (or of its copy) that must be saved, area by
    area."""
    some = [
        one for one in seen if one.resident and not one.record.shared and one.record.kind not in (KERNEL, DROPPABLE)
    ]
    if not some:
        return
    pagemap = Pagemap(pid)
    try:
        for area, record, *_ in some:
            if record.kind in (ANONYMOUS, FILE):
                yield pagemap.private(area.start, area.end, not _anonymous(area))
            else:
                # A private mapping of an object that has no path: what was not copied is read through it as well.
                yield pagemap.present(area.start, area.end)
    finally:
        pagemap.close()


def _anonymous(area: proc.Area) -> bool:
    """Is it certain that pages there can only be anonymous? Those of the kernel's own mappings ([uprobes]) are not."""
    return not area.ino and (not area.path or area.path.startswith(_ANONYMOUS))


def guards(pid: int, seen: Iterable[Seen]) -> tuple[tuple[int, int], ...]:
    """Guard pages (MADV_GUARD_INSTALL, Linux 6.13) as (address, size)."""
    areas = [one.area for one in seen if one.record.kind not in (KERNEL, DROPPABLE)]
    if not areas:
        return ()
    pagemap = Pagemap(pid)
    try:
        return tuple((start, end - start) for area in areas for start, end in pagemap.guards(area.start, area.end))
    finally:
        pagemap.close()


class Reader:
    """Reads windows of processes into a buffer of its own; one per thread. A context manager.

    Through /proc/PID/mem, and not by process_vm_readv(2): that pins pages, and so makes a process that shares them with
    another (a copy with what it was made of, a child with its parent) get ones of its own, as if it had written to them
    (mm/gup.c, gup_must_unshare). It takes twice the time, splits huge pages, and all memory would be there twice. Page
    protection is passed over (FOLL_FORCE).
    """

    def __init__(self) -> None:
        self._view = memoryview(mmap.mmap(-1, CHUNK_SIZE))
        self._pid, self._fd = 0, -1

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, *_: object) -> None:
        self._let_go()

    def read(self, pid: int, window: Window) -> memoryview:
        """The pages of a window, one after the other. The view is valid until the next call. Raises OSError."""
        if pid != self._pid:
            self._let_go()
            self._fd, self._pid = proc.open_memory(pid, "mem"), pid
        at = 0
        for address, length in window.ranges():
            end = at + length
            while at < end:
                done = os.preadv(self._fd, [self._view[at:end]], address)
                if not done:
                    raise OSError(errno.EFAULT, f"reading {end - at} bytes at {address:#x} of process {pid}")
                at += done
                address += done
        return self._view[:at]

    def _let_go(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
        self._pid, self._fd = 0, -1


def object_chunks(
    sources: Iterable[tuple[Process, AreaRecord]], sink: Sink, resident: Callable[[Process, AreaRecord], bytes]
) -> tuple[int, list[tuple[int, int, int]]]:
    """The contents of a memory object, read through the mappings `sources` of it: (size, chunks).

    Chunks are (offset, bytes, chunk); what is zero or was never touched is left out.
    """
    size = 0
    have: set[int] = set()
    chunks: list[tuple[int, int, int]] = []
    zero = bytes(CHUNK_SIZE)
    for process, record in sources:
        size = max(size, record.offset + record.size)
        present = resident(process, record)
        for at in range(0, record.size, CHUNK_SIZE):
            offset = record.offset + at
            length = min(CHUNK_SIZE, record.size - at)
            # Different mappings may be shifted against each other; pages are read once each.
            pages = [
                page
                for page in range(offset // PAGE, (offset + length) // PAGE)
                if page not in have and present[(page * PAGE - record.offset) // PAGE]
            ]
            have.update(pages)
            for start, count in _runs(pages):
                address = record.start + start * PAGE - record.offset
                try:
                    data = uio.force_read(process.pid, address, count * PAGE)
                except OSError:
                    continue  # beyond the end of the object
                if data and not zero.startswith(data):
                    chunks.append((start * PAGE, len(data), sink.put(data)))
    return size, sorted(chunks)


def _runs(pages: list[int]) -> list[tuple[int, int]]:
    """(first, count) of runs of consecutive numbers."""
    runs: list[tuple[int, int]] = []
    for page in pages:
        if runs and sum(runs[-1]) == page:
            runs[-1] = (runs[-1][0], runs[-1][1] + 1)
        else:
            runs.append((page, 1))
    return runs


def touched_pages(process: Process, record: AreaRecord) -> bytes:
    """One byte for each page of a shared mapping, not 0 where the object has a page there.

    mincore(2) tells what is in memory; where the machine swaps, a page may also be there, and all are taken.
    """
    count = record.size // PAGE
    if _swaps():
        return b"\x01" * count
    step = 32 * 1024
    calls = [
        call(NR.mincore, record.start + at * PAGE, min(step, count - at) * PAGE, Out(min(step, count - at)), accept=ANY)
        for at in range(0, count, step)
    ]
    parts = []
    for answer, asked in zip(process.run(calls), calls):
        room = asked.args[2]
        assert isinstance(room, Out)
        parts.append(b"\x01" * room.size if answer.error else answer.outs[0])
    return b"".join(parts)


def shown_pages(process: Process, record: AreaRecord) -> bytes:
    """The same for a mapping of any kind: without the pages of a private one that are copies of the process' own, which
    are not what the object holds."""
    seen = touched_pages(process, record)
    if record.shared:
        return seen
    shown = bytearray(seen)
    pagemap = Pagemap(process.pid)
    try:
        for start, end in pagemap.private(record.start, record.end):
            first, count = (start - record.start) // PAGE, (end - start) // PAGE
            shown[first : first + count] = bytes(count)
    finally:
        pagemap.close()
    return bytes(shown)


def _swaps() -> bool:
    """Is any swap space in use?"""
    return any(int(line.split()[3]) for line in proc.text("/proc/swaps").splitlines()[1:])
