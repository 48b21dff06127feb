"""Which memory of a process may arrive while it runs: pure.

Large private anonymous areas. Everything else is there before the release: files, shared memory, stacks, what is locked
or of huge pages from the pool, small areas; all memory of a process that uses guard pages (of their removal the kernel
tells nobody, and it leaves zeros behind); and in any case the windows that registers point to, and those that the
kernel itself looks at when a thread ends (rseq, the robust list, clear_child_tid): what a program needs at once.
"""

from __future__ import annotations

import struct
from bisect import bisect_left, bisect_right
from collections.abc import Sequence

import msgspec

from torpor.image.manifest import ProcessRecord
from torpor.named_tuple import NamedTuple
from torpor.posix.memory.area import ANONYMOUS, AreaRecord
from torpor.posix.memory.pages import PAGE, WINDOW, PagesRecord, rows_within, split
from torpor.posix.tid_address import ThreadEnd, TidAddressService

SMALLEST = 1 << 20
"""Bytes of an area that is worth it."""
LEAST = 32 << 20
"""Bytes of a process that are worth it: this many are there within some 20 ms."""
_NEVER = frozenset(("lo", "lf", "ht", "gd", "wf", "sl"))
"""VmFlags of areas that are filled: locked, of huge pages, growing, wiped in children, sealed."""


class Chosen(NamedTuple):
    """areas: what may arrive later, as ranges. early: contents that are there before the release; late: those that are
    not. size: bytes of these. robust: heads of the threads' robust lists."""

    areas: list[tuple[int, int]]
    early: PagesRecord
    late: PagesRecord
    size: int
    robust: list[int]


def choose(record: ProcessRecord) -> Chosen | None:
    """What of a process comes later; None if all of it is to be there at once."""
    if record.guards or record.state == "zombie":
        return None
    areas = [area for area in record.areas if _eligible(area)]
    warm = sorted({address // WINDOW for address in hot(record)})
    some, early = split(record.pages, [rows for area in areas for rows in _rows(record.pages, area, warm)])
    size = some.size
    if size < LEAST:
        return None
    places = [(area.start, area.end) for area in areas]
    return Chosen(places, early, some, size, robust_lists(record))


def _rows(pages: PagesRecord, area: AreaRecord, warm: Sequence[int]) -> list[tuple[int, int]]:
    """Rows (first, end) of the windows that are in an area, without those of the numbers `warm`."""
    numbers = pages.numbers
    first, end = rows_within(pages, area.start, area.end)
    found = []
    for number in warm:
        low, high = bisect_left(numbers, number, first, end), bisect_right(numbers, number, first, end)
        if low < high:
            found.append((first, low))
            first = high
    return [*found, (first, end)]


def hot(record: ProcessRecord) -> set[int]:
    """Addresses at which a process will look at once."""
    found: set[int] = set()
    for thread in record.threads:
        count = len(thread.cpu.regs) // 8
        found.update(struct.unpack(f"<{count}Q", thread.cpu.regs[: 8 * count]))
        found.add(thread.cpu.rseq[0])
        found.update(_looked_at(thread.services.get(TidAddressService.name)))
    return found


def robust_lists(record: ProcessRecord) -> list[int]:
    """Where the heads of its threads' robust lists are."""
    ends = [thread.services.get(TidAddressService.name) for thread in record.threads]
    return [robust for robust in (_looked_at(end)[1] for end in ends) if robust]


def _looked_at(state: msgspec.Raw | None) -> tuple[int, int]:
    if state is None:
        return 0, 0
    end = msgspec.msgpack.decode(state, type=ThreadEnd)
    return end.clear_tid, end.robust


def _eligible(area: AreaRecord) -> bool:
    return (
        area.kind == ANONYMOUS
        and not area.shared
        and area.size >= SMALLEST
        and area.page == PAGE
        and not area.name.startswith("[stack")
        and not _NEVER.intersection(area.flags)
    )
