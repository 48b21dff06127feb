"""What of a process' memory has not arrived yet, and where it has to go: pure bookkeeping.

The kernel tells what the process does with its memory (linux/userfaultfd.py): ranges are dropped, unmapped, moved, and
copied into children. As long as something was done that we have not read of, it puts nothing into the process (EAGAIN),
so the books are right whenever something is put in. But the deeds of two threads may be told in another order than they
were done in, since each is told after it was done (all but dropping, which is told before). So between two moments at
which all was told (`settle`):

- What moves to a place that is taken by our books comes after what is there has left: it waits for that (`_late`). If
  more leaves that place than was there, the order cannot be known: `Unclear`.
- What has moved away may be unmapped later than something else has moved there: that stays.
- What a child has is decided at the next `settle`: what there was before is moved and unmapped in it as its own memory
  shows. Dropped is what was dropped before it was told of the child: if that was done at the same time, nobody can know
  which came first, and the child may find zeros; if later, it was told later.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

from torpor.model.data import Ref

Range = tuple[int, int]
"""(start, end)"""


class Run(NamedTuple):
    """Pages that are missing: from `start` to `end`, `skip` bytes into a chunk."""

    start: int
    end: int
    ref: Ref
    skip: int


class Missing:
    """Runs that do not overlap, by address."""

    def __init__(self, runs: Iterable[Run] = ()) -> None:
        self._runs = sorted(runs)
        self._starts = [run.start for run in self._runs]

    def __bool__(self) -> bool:
        return bool(self._runs)

    def __iter__(self) -> Iterator[Run]:
        return iter(self._runs)

    @property
    def size(self) -> int:
        """Bytes."""
        return sum(run.end - run.start for run in self._runs)

    def find(self, address: int) -> Run | None:
        """The run that an address is in."""
        at = bisect_right(self._starts, address) - 1
        return self._runs[at] if at >= 0 and address < self._runs[at].end else None

    def after(self, address: int) -> Run | None:
        """The run that an address is in, or the next one; the first one after the last."""
        if not self._runs:
            return None
        found = self.find(address)
        at = bisect_left(self._starts, address)
        return found or self._runs[at if at < len(self._runs) else 0]

    def take(self, start: int, end: int) -> list[Run]:
        """Remove what is in a range; what that was."""
        first = max(0, bisect_right(self._starts, start) - 1)
        last = bisect_left(self._starts, end)
        taken, kept = [], []
        for run in self._runs[first:last]:
            low, high = max(run.start, start), min(run.end, end)
            if low >= high:
                kept.append(run)
                continue
            if run.start < low:
                kept.append(run._replace(end=low))
            taken.append(Run(low, high, run.ref, run.skip + low - run.start))
            if run.end > high:
                kept.append(Run(high, run.end, run.ref, run.skip + high - run.start))
        if taken:
            self._runs[first:last] = kept
            self._starts[first:last] = [run.start for run in kept]
        return taken

    def add(self, runs: Iterable[Run]) -> None:
        """Put runs in where there is nothing."""
        for run in runs:
            for free in self._free(run):
                at = bisect_left(self._starts, free.start)
                self._runs.insert(at, free)
                self._starts.insert(at, free.start)

    def _free(self, run: Run) -> list[Run]:
        out, at = [], run.start
        for there in self._runs[max(0, bisect_right(self._starts, run.start) - 1) : bisect_left(self._starts, run.end)]:
            if there.start > at:
                out.append(Run(at, there.start, run.ref, run.skip + at - run.start))
            at = max(at, there.end)
        if at < run.end:
            out.append(Run(at, run.end, run.ref, run.skip + at - run.start))
        return out


class Ranges:
    """A set of addresses, as few ranges; there are never many."""

    def __init__(self, ranges: Iterable[Range] = ()) -> None:
        self.ranges = list(ranges)

    def touches(self, start: int, end: int) -> bool:
        return any(low < end and start < high for low, high in self.ranges)

    def add(self, start: int, end: int) -> None:
        self.drop(start, end)
        self.ranges.append((start, end))

    def within(self, start: int, end: int) -> list[Range]:
        return [(max(low, start), min(high, end)) for low, high in self.ranges if low < end and start < high]

    def drop(self, start: int, end: int) -> None:
        self.ranges = [
            part
            for low, high in self.ranges
            for part in ((low, min(high, start)), (max(low, end), high))
            if part[0] < part[1]
        ]


def moved(runs: Iterable[Run], by: int) -> list[Run]:
    """The same runs so many bytes further on."""
    return [run._replace(start=run.start + by, end=run.end + by) for run in runs]


class Unclear(Exception):
    """What has happened cannot be told from what was heard."""


class _Move(NamedTuple):
    """`size` bytes of memory that go from `start` to `to`, and what is missing of them there."""

    start: int
    to: int
    size: int
    runs: list[Run]


REMOVED, UNMAPPED, REMAPPED, FORKED = range(4)


class _Deed(NamedTuple):
    """What was heard: of `start` to `end`, which went to `to`."""

    what: int
    start: int = 0
    end: int = 0
    to: int = 0

    def arrives(self, start: int, end: int) -> bool:
        """Has something come to a range?"""
        return self.what == REMAPPED and self.to < end and start < self.to + self.end - self.start

    def leaves(self, start: int, end: int) -> bool:
        """Has something left it?"""
        return self.what in (UNMAPPED, REMAPPED) and self.start < end and start < self.end


class _Child(NamedTuple):
    """heard: how much was heard before it was told of."""

    books: Books
    heard: int
    wiped: list[Range]


class Books:
    """The memory of one process. areas: the ranges that the kernel asks for. asked_for: does it ask for the page at an
    address? It tells the truth of the moment."""

    def __init__(self, areas: Iterable[Range], runs: Iterable[Run], asked_for: Callable[[int], bool]) -> None:
        self.missing = Missing(runs)
        self._areas = Ranges(areas)
        self._asked_for = asked_for
        self._begin()

    def _begin(self) -> None:
        """All was told; from here on it is kept what is."""
        self._late: list[_Move] = []
        """What has moved to places that are taken."""
        self._left = Ranges()
        """From where something has moved; it may be unmapped, or not."""
        self._doubtful = Ranges()
        """What was unmapped, but may have been so before something has moved there."""
        self._arrived = Ranges()
        self._assumed = Ranges()
        """From where what was there first has moved, if it was not what came late."""
        self._heard: list[_Deed] = []
        self._children: list[_Child] = []
        self._past: tuple[list[Range], list[Run]] | None = None
        """Areas and missing runs as they were before."""

    def _hear(self, deed: _Deed) -> None:
        if self._past is None:
            self._past = list(self._areas.ranges), list(self.missing)
        self._heard.append(deed)

    @property
    def empty(self) -> bool:
        """Has everything arrived?"""
        return not self.missing and not self._heard

    def removed(self, start: int, end: int) -> None:
        """The range reads as zeros from now on."""
        self._hear(_Deed(REMOVED, start, end))
        self._remove(start, end)

    def unmapped(self, start: int, end: int) -> None:
        """The range is gone."""
        self._hear(_Deed(UNMAPPED, start, end))
        self._unmap(start, end)

    def remapped(self, start: int, to: int, size: int) -> None:
        """A range has moved. It may still be there, and reads as zeros then. Raises Unclear."""
        self._hear(_Deed(REMAPPED, start, start + size, to))
        self._remap(start, to, size)

    def forked(self, asked_for: Callable[[int], bool], wiped: Iterable[Range] = ()) -> Books:
        """The books of a child that was just made; nothing is in them before `settle`. wiped: ranges that are empty in
        children (MADV_WIPEONFORK)."""
        self._hear(_Deed(FORKED))
        child = Books((), (), asked_for)
        self._children.append(_Child(child, len(self._heard), list(wiped)))
        return child

    def settle(self) -> list[Books]:
        """Everything that was done so far has been told; the books of the children that can be read now. Raises
        Unclear."""
        for child in self._children:
            assert self._past is not None
            child.books._become(*self._past, self._heard, child)
        self._close()
        ready = [child.books for child in self._children]
        self._begin()
        return ready

    def _close(self) -> None:
        for low, high in self._doubtful.ranges:
            if not self._asked_for(low):
                self._areas.drop(low, high)
                self.missing.take(low, high)
        for move in self._late:
            self._arrive(move)  # what was there has left without a word: that an area has grown is not told
        for low, high in self._left.ranges:
            self._areas.add(low, high)  # it is there still (MREMAP_DONTUNMAP)

    def _become(self, areas: list[Range], runs: list[Run], heard: list[_Deed], child: _Child) -> None:
        """What a child has: what there was, and what has happened to it as far as it shows."""
        self._areas, self.missing = Ranges(areas), Missing(runs)
        for number, deed in enumerate(heard):
            if deed.what == REMOVED and number < child.heard:
                self._remove(deed.start, deed.end)
            elif deed.what == UNMAPPED and self._was_unmapped(deed, heard):
                self._unmap(deed.start, deed.end)
            elif deed.what == REMAPPED and self._areas.touches(deed.start, deed.end) and self._has_moved(deed, heard):
                self._remap(deed.start, deed.to, deed.end - deed.start)
        self._close()
        self._begin()
        for start, end in child.wiped:
            self.missing.take(start, end)

    def _was_unmapped(self, deed: _Deed, heard: Sequence[_Deed]) -> bool:
        if any(other.what == REMAPPED and other.start < deed.end and deed.start < other.end for other in heard):
            return not self._asked_for(deed.start) or self._left.touches(deed.start, deed.end)
        if any(other.arrives(deed.start, deed.end) for other in heard):
            raise Unclear
        return not self._asked_for(deed.start)

    def _has_moved(self, deed: _Deed, heard: Sequence[_Deed]) -> bool:
        """The old place shows it, if nothing else came there and it was unmapped; or the new one, if nothing was there,
        and nothing left it."""
        stayed = not any(other.what == UNMAPPED and other.leaves(deed.start, deed.end) for other in heard)
        if not stayed and not any(other.arrives(deed.start, deed.end) for other in heard):
            return not self._asked_for(deed.start)
        end = deed.to + deed.end - deed.start
        if self._areas.touches(deed.to, end) or any(other.leaves(deed.to, end) for other in heard):
            raise Unclear
        return self._asked_for(deed.to)

    def _remove(self, start: int, end: int) -> None:
        there = Ranges([(start, end)])
        for move in self._late:
            by = move.to - move.start
            late = Missing(move.runs)
            late.take(start - by, end - by)
            move.runs[:] = late
            there.drop(move.to, move.to + move.size)
        for low, high in there.ranges:
            self.missing.take(low, high)

    def _unmap(self, start: int, end: int) -> None:
        gone = Ranges([(start, end)])
        for low, high in self._left.within(start, end):
            # Something else may be there since: this is told of what was there before.
            gone.drop(low, high)
        self._left.drop(start, end)
        if any(self._assumed.touches(low, high) for low, high in gone.ranges):
            raise Unclear
        for low, high in self._arrived.within(start, end):
            self._doubtful.add(low, high)
            gone.drop(low, high)
        for low, high in gone.ranges:
            self.missing.take(low, high)
            self._areas.drop(low, high)
        late, self._late = self._late, []
        for move in late:
            if self._areas.touches(move.to, move.to + move.size):
                self._late.append(move)
            else:
                self._arrive(move)

    def _remap(self, start: int, to: int, size: int) -> None:
        if self._assumed.touches(start, start + size):
            raise Unclear
        if any(move.to < start + size and start < move.to + move.size for move in self._late):
            if self._doubtful.touches(start, start + size):
                raise Unclear
            self._assumed.add(start, start + size)
        move = _Move(start, to, size, self.missing.take(start, start + size))
        self._areas.drop(start, start + size)
        self._arrived.drop(start, start + size)
        self._left.add(start, start + size)
        if self._areas.touches(to, to + size):
            self._late.append(move)
        else:
            self._arrive(move)

    def _arrive(self, move: _Move) -> None:
        start, end = move.to, move.to + move.size
        self.missing.take(start, end)
        self.missing.add(moved(move.runs, move.to - move.start))
        self._areas.add(start, end)
        self._arrived.add(start, end)
        self._doubtful.drop(start, end)
