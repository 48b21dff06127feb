"""What memory was in the last checkpoint and is still, in long stretches.

A process of 4 GiB has 16,384 windows. What is done for each of them takes longer than to save a hundredth of them; so
windows in a row of which nothing has changed are looked for, named and dropped together. Pure.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence

from torpor.named_tuple import NamedTuple
from torpor.posix.memory.pages import FULL, WINDOW, PagesRecord

LEAST = 4
"""Windows in a row that are worth it."""
_FULL = FULL.to_bytes(8, "little")

Range = tuple[int, int]
"""(start, end)"""


class Stretch(NamedTuple):
    """Windows in a row of which all pages are there. first, end: their rows in the record."""

    address: int
    first: int
    end: int

    @property
    def range(self) -> Range:
        """Its addresses."""
        return self.address, self.address + (self.end - self.first) * WINDOW


def stretches(record: PagesRecord, pages: Iterable[Range], changed: Iterable[Range]) -> list[Stretch]:
    """Stretches of the windows of a record that are what they were. pages: ranges of pages that are there. changed:
    what may be otherwise. Both ascending and apart from each other."""
    numbers = record.numbers
    found: list[Stretch] = []
    for start, end in minus(pages, changed):
        found += _whole(record, numbers, -(-start // WINDOW), end // WINDOW)
    return found


def _whole(record: PagesRecord, numbers: Sequence[int], low: int, high: int) -> Iterator[Stretch]:
    """Stretches of windows from the number `low` on, below `high`: all pages of these are there now."""
    count = high - low
    if count < LEAST:
        return
    first = bisect_left(numbers, low)
    end = bisect_left(numbers, high, first)
    if end - first == count and record.bitmaps[8 * first : 8 * end] == _FULL * count:
        yield Stretch(low * WINDOW, first, end)
    elif end > first:
        middle = low + count // 2
        yield from _whole(record, numbers, low, middle)
        yield from _whole(record, numbers, middle, high)


def minus(ranges: Iterable[Range], holes: Iterable[Range]) -> Iterator[Range]:
    """What is left of ranges without others. Both are ascending and apart from each other, and so is what is left."""
    rest = iter(holes)
    hole = next(rest, None)
    for start, end in ranges:
        while hole is not None and hole[0] < end:
            if start < hole[0]:
                yield start, hole[0]
            start = max(start, hole[1])
            if hole[1] > end:
                break  # it may reach into the next one
            hole = next(rest, None)
        if start < end:
            yield start, end


def merged(ranges: Iterable[Range]) -> list[Range]:
    """Ranges in order, those that touch as one."""
    out: list[Range] = []
    for start, end in sorted(ranges):
        if out and start <= out[-1][1]:
            out[-1] = out[-1][0], max(out[-1][1], end)
        else:
            out.append((start, end))
    return out
