"""The contents of memory, as chunks: which pages, in windows of 64, and how they are named in the manifest.

A window is 64 pages on a fixed grid of addresses (256 KiB), so that pages never shift between checkpoints. A window's
chunk is the concatenation of those of its pages that hold data; a 64-bit bitmap says which. All is kept in columns,
since a process may have a hundred thousand windows.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence

import msgspec

from torpor.named_tuple import NamedTuple

PAGE = 4096
WINDOW_PAGES = 64
WINDOW = PAGE * WINDOW_PAGES
FULL = (1 << WINDOW_PAGES) - 1
"""The bitmap of a window of which all pages are there."""


class Window(NamedTuple):
    """Pages of one window: its address, and the bitmap of the pages that are meant (bit 0: the first)."""

    address: int
    bitmap: int

    @property
    def size(self) -> int:
        """Bytes of the pages."""
        return self.bitmap.bit_count() * PAGE

    def ranges(self) -> list[tuple[int, int]]:
        """(address, size) runs, ascending."""
        return [(self.address + start * PAGE, count * PAGE) for start, count in runs_of(self.bitmap)]


def runs_of(bitmap: int) -> list[tuple[int, int]]:
    """(first bit, number of bits) of each run of ones."""
    runs = []
    at = 0
    while bitmap:
        zeros = (bitmap & -bitmap).bit_length() - 1
        bitmap >>= zeros
        at += zeros
        ones = (~bitmap & (bitmap + 1)).bit_length() - 1
        runs.append((at, ones))
        bitmap >>= ones
        at += ones
    return runs


def windows(runs: Iterable[tuple[int, int]]) -> Iterator[Window]:
    """Cut ascending runs (start, end) of pages into windows."""
    address, bitmap = -1, 0
    for start, end in runs:
        while start < end:
            base = start - start % WINDOW
            stop = min(end, base + WINDOW)
            if base != address:
                if bitmap:
                    yield Window(address, bitmap)
                address, bitmap = base, 0
            count = (stop - start) // PAGE
            bitmap |= ((1 << count) - 1) << ((start - base) // PAGE)
            start = stop
    if bitmap:
        yield Window(address, bitmap)


def for_threads(count: int, size: int) -> bool:
    """Are so many windows, of so many bytes in all, worth more than one thread? What there is to do for small ones is
    mostly Python's own, of which one thread runs at a time: others only wait for each other (30,000 windows of a page:
    twice the time, now and then five times)."""
    return count > 64 and size > count * 16384


class PagesRecord(msgspec.Struct, frozen=True):
    """Contents: column by column, little-endian. windows: u32, address / 256 KiB. bitmaps: u64. refs: u32."""

    windows: bytes = b""
    bitmaps: bytes = b""
    refs: bytes = b""

    @property
    def numbers(self) -> memoryview:
        """The column `windows` as numbers, ascending."""
        return memoryview(self.windows).cast("I")

    @property
    def size(self) -> int:
        """Bytes of all pages."""
        return int.from_bytes(self.bitmaps, "little").bit_count() * PAGE

    def bitmap(self, row: int) -> int:
        return int.from_bytes(self.bitmaps[8 * row : 8 * row + 8], "little")

    def ref(self, row: int) -> int:
        return int.from_bytes(self.refs[4 * row : 4 * row + 4], "little")

    def cut(self, first: int, end: int) -> PagesRecord:
        """The rows from `first` on, before `end`."""
        return PagesRecord(
            self.windows[4 * first : 4 * end], self.bitmaps[8 * first : 8 * end], self.refs[4 * first : 4 * end]
        )


def rows_within(pages: PagesRecord, start: int, end: int) -> tuple[int, int]:
    """The rows (first, end) of a record's windows all of whose pages are in a range that begins and ends with a page.
    Not window by window: a large process has many."""
    numbers = pages.numbers
    first, last = bisect_left(numbers, start // WINDOW), bisect_left(numbers, -(-end // WINDOW))
    while first < last and not _within(pages, first, start, end):
        first += 1  # it has pages of what is before
    while first < last and not _within(pages, last - 1, start, end):
        last -= 1
    return first, last


def _within(pages: PagesRecord, row: int, start: int, end: int) -> bool:
    address, bitmap = pages.numbers[row] * WINDOW, pages.bitmap(row)
    low = (bitmap & -bitmap).bit_length() - 1
    return start <= address + low * PAGE and address + bitmap.bit_length() * PAGE <= end


def split(pages: PagesRecord, rows: Iterable[tuple[int, int]]) -> tuple[PagesRecord, PagesRecord]:
    """Some rows (first, end) of a record, ascending, and all others."""
    some = list(rows)
    ends = [0, *(row for both in some for row in both), len(pages.numbers)]
    return (
        joined([pages.cut(first, end) for first, end in some]),
        joined([pages.cut(first, end) for first, end in zip(ends[::2], ends[1::2])]),
    )


def joined(parts: Sequence[PagesRecord]) -> PagesRecord:
    """One record of several, in this order."""
    return PagesRecord(
        b"".join([part.windows for part in parts]),
        b"".join([part.bitmaps for part in parts]),
        b"".join([part.refs for part in parts]),
    )


def pack(found: Sequence[tuple[Window, int]], stretches: Iterable[tuple[int, PagesRecord]] = ()) -> PagesRecord:
    """Ascending windows with the chunk that holds each, as a record. stretches: such records, ascending by the address
    of their first window, with other windows in a row."""
    parts: list[PagesRecord] = []
    done = 0
    for address, record in stretches:
        end = bisect_left(found, address, done, key=lambda one: one[0].address)
        parts += _columns(found[done:end]), record
        done = end
    parts.append(_columns(found[done:]))
    return joined(parts)


def _columns(found: Iterable[tuple[Window, int]]) -> PagesRecord:
    numbers, bitmaps, refs = array("I"), array("Q"), array("I")
    for window, ref in found:
        numbers.append(window.address // WINDOW)
        bitmaps.append(window.bitmap)
        refs.append(ref)
    return PagesRecord(numbers.tobytes(), bitmaps.tobytes(), refs.tobytes())


def unpack(record: PagesRecord) -> list[tuple[Window, int]]:
    """The inverse of `pack`."""
    return [(Window(address, bitmap), ref) for address, bitmap, ref in rows(record)]


def rows(record: PagesRecord) -> Iterator[tuple[int, int, int]]:
    """The same as (address, bitmap, chunk)."""
    numbers, bitmaps, refs = array("I"), array("Q"), array("I")
    numbers.frombytes(record.windows)
    bitmaps.frombytes(record.bitmaps)
    refs.frombytes(record.refs)
    return zip((number * WINDOW for number in numbers), bitmaps, refs)
