"""Put the contents of memory back: chunks are fetched, verified and written into the stubs, by a few threads.

Ordinary anonymous memory is filled through a userfaultfd of the stub's, where it has one: the kernel then takes a page
and copies into it. To write to memory that is not there yet costs a page fault for each page, and zeros that nobody
sees: two fifths more.
"""

from __future__ import annotations

from _thread import allocate_lock
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence

from torpor.checkpoint import workers
from torpor.image.manifest import ProcessRecord
from torpor.linux import uio, userfaultfd
from torpor.model.data import Source
from torpor.model.errors import RestartFailed
from torpor.posix.memory.area import ANONYMOUS, PROT_WRITE, AreaRecord, writable_first
from torpor.posix.memory.pages import WINDOW, PagesRecord, Window, for_threads, unpack

_AT_ONCE = 16
"""Windows that a thread takes at a time."""


def fill(
    processes: Sequence[tuple[ProcessRecord, int]], source: Source,
    progress: Callable[[int, int], None] | None = None, faults: Mapping[int, int] = {},
) -> int:  # fmt: skip
    """Fill the memory of all processes (record, host pid); the bytes written. faults: new userfaultfds of some, by pid.
    Raises Damaged or RestartFailed."""
    work = []
    total = 0
    ways = []
    for record, pid in processes:
        way = _Way(pid, record.areas, faults.get(pid, -1))
        ways.append(way)
        for window, ref in unpack(record.pages):
            work.append((way, window, ref))
            total += window.size
    done = 0

    def put(some: Sequence[tuple[_Way, Window, int]]) -> None:
        nonlocal done
        for way, window, ref in some:
            way.write(window, memoryview(source.get(ref)))
        if progress is not None:
            with lock:
                done += sum(window.size for _, window, _ in some)
                progress(done, total)

    lock = allocate_lock()
    # Neighbours in the store are read one after the other.
    try:
        workers.share(
            (work[at : at + _AT_ONCE] for at in range(0, len(work), _AT_ONCE)), put, not for_threads(len(work), total)
        )
    except OSError as error:
        raise RestartFailed(f"memory could not be filled: {error}") from error
    for way in ways:
        way.close()
    return total


def worth_it(pages: PagesRecord) -> bool:
    """Is it so much contents of a process that a userfaultfd is worth its while?"""
    return len(pages.windows) > _FEW


_FEW = 4 * 32
"""Bytes of PagesRecord.windows: 8 MiB of contents."""
_LEAST = 64 << 10
"""Bytes of an area for which two system calls more are made up for by what each page takes less."""


class _Way:
    """How the memory of one process is reached."""

    def __init__(self, pid: int, areas: Sequence[AreaRecord], faults: int) -> None:
        """faults: a userfaultfd, -1 for none."""
        self._pid = pid
        self._starts = [area.start for area in areas]
        self._areas = areas
        self._faults = faults
        self._registered: set[int] = set()
        """Starts of the areas whose missing pages can be put in."""
        if faults < 0:
            return
        try:
            userfaultfd.fill_missing(faults)
            for area in areas:
                # Pages that are put in are small ones.
                small = area.kind == ANONYMOUS and not (area.shared or area.huge or "ht" in area.flags)
                if small and area.size >= _LEAST:
                    userfaultfd.register_missing(faults, area.start, area.size)
                    self._registered.add(area.start)
        except OSError:
            pass  # what is not registered is written

    def close(self) -> None:
        """All is there: it is ordinary memory again. Raises RestartFailed."""
        try:
            for area in self._areas:
                if area.start in self._registered:
                    userfaultfd.unregister(self._faults, area.start, area.size)
        except OSError as error:
            raise RestartFailed(f"memory of process {self._pid} cannot be let go of: {error.strerror}") from error

    def write(self, window: Window, data: memoryview) -> None:
        """Put the pages of a window in. Raises OSError."""
        local = uio.address_of_readonly(data)
        areas = self._reached(window)
        if not any(area.start in self._registered for area in areas) and all(
            area.prot & PROT_WRITE or writable_first(area) for area in areas
        ):
            uio.write_from(self._pid, window.ranges(), local, len(data))
            return
        at = 0
        for start, size in window.ranges():
            for area in areas:
                address, end = max(start, area.start), min(start + size, area.end)
                if address >= end:
                    continue
                from_ = at + address - start
                if area.start not in self._registered or not self._put(address, end - address, local + from_):
                    uio.force_write(self._pid, address, data[from_ : from_ + end - address])
            at += size

    def _put(self, address: int, size: int, local: int) -> bool:
        """Put pages in that are missing; False, with nothing of the range registered, if that does not work."""
        done = 0
        try:
            while done < size:
                done += userfaultfd.copy(self._faults, address + done, size - done, local + done)
        except OSError:
            userfaultfd.unregister(self._faults, address, size)
            return False
        return True

    def _reached(self, window: Window) -> list[AreaRecord]:
        """The areas of which a window has a part."""
        found = []
        at = max(0, bisect_right(self._starts, window.address) - 1)
        while at < len(self._areas) and self._areas[at].start < window.address + WINDOW:
            if self._areas[at].end > window.address:
                found.append(self._areas[at])
            at += 1
        return found
