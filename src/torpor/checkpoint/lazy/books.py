"""What of a process' memory has not arrived yet, and where it has to go: pure bookkeeping.

The kernel tells what the process does with its memory (linux/userfaultfd.py): ranges are dropped, unmapped, moved, and
copied into children. As long as something was done that we have not read of, it puts nothing into the process (EAGAIN).
So what is heard is only kept, until all was told; then the books are brought up to date (`settle`), and are right
whenever something is put in. Until then the deeds of two threads may be told in another order than they were done in,
since each is told after it was done (all but dropping, which is told before):

- What moves to a place that is taken comes after what is there has left: it waits for that. If more has left a place
  than was there before, nobody knows which was which: `Unclear`.
- What a child has is what there was after the first so many of these deeds. Its own memory shows how many: what is
  mapped in it, and what is not. If that leaves a choice that matters, or none: `Unclear`. Dropped is what was dropped
  before it was told of the child: if that was done at the same time, nobody can know which came first, and the child
  may find zeros; if later, it was told later.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence

from torpor.model.data import Ref
from torpor.named_tuple import NamedTuple

Range = tuple[int, int]
"""(start, end)"""
_ASKEW = 4
"""How many others one deed may be told before or after that were done the other way round."""


_MOST = 150
"""So many deeds at most are waited for to be followed by none, or tried one after the other for what a child has; what
may have been becomes too much to be tried."""


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

    def __str__(self) -> str:
        return "what threads did to its memory at the same time cannot be told apart; restart it without --lazy"


class Stirred(Exception):
    """A process does something to its memory in this very moment, which has not been told yet."""


REMOVED, UNMAPPED, MOVED, FORKED = range(4)


class _Deed(NamedTuple):
    """What was done to `start` to `end`, which may have gone to `to`. left: it is not at the old place any more."""

    what: int
    start: int = 0
    end: int = 0
    to: int = 0
    left: bool = True

    @property
    def arrives(self) -> Range:
        return (self.to, self.to + self.end - self.start) if self.what == MOVED else (0, 0)


class _Child(NamedTuple):
    """heard: how much was heard before it was told of."""

    books: Books
    heard: int
    wiped: list[Range]


class _World:
    """Areas and what is missing in them, as deeds change them."""

    def __init__(self, areas: Iterable[Range], runs: Iterable[Run]) -> None:
        self.areas, self.missing = Ranges(areas), Missing(runs)
        self._waiting: list[tuple[Range, list[Run]]] = []
        self._assumed = Ranges()
        """Places that something has left while something else was waiting for them."""

    def do(self, deed: _Deed) -> None:
        if deed.what == REMOVED:
            self._remove(deed.start, deed.end)
        elif deed.what in (UNMAPPED, MOVED):
            runs = self._leave(deed)
            if deed.what == MOVED:
                self._waiting.append((deed.arrives, moved(runs, deed.to - deed.start)))
        self._land()

    @property
    def waits(self) -> bool:
        """Is something waiting for its place?"""
        return bool(self._waiting)

    def end(self) -> None:
        """What still waits comes: what was there has left without a word, since that an area has grown is not told."""
        for (start, end), runs in self._waiting:
            self.missing.take(start, end)
            self.missing.add(runs)
            self.areas.add(start, end)
        self._waiting.clear()

    def _leave(self, deed: _Deed) -> list[Run]:
        if self._assumed.touches(deed.start, deed.end):
            raise Unclear
        if any(low < deed.end and deed.start < high for (low, high), _ in self._waiting):
            self._assumed.add(deed.start, deed.end)
        runs = self.missing.take(deed.start, deed.end)
        if deed.left:
            self.areas.drop(deed.start, deed.end)
        return runs

    def _land(self) -> None:
        waiting, self._waiting = self._waiting, []
        for place, runs in waiting:
            if self.areas.touches(*place):
                self._waiting.append((place, runs))
            else:
                self.missing.add(runs)
                self.areas.add(*place)

    def _remove(self, start: int, end: int) -> None:
        there = Ranges([(start, end)])
        for place, runs in self._waiting:
            late = Missing(runs)
            late.take(start, end)
            runs[:] = late
            there.drop(*place)
        for low, high in there.ranges:
            self.missing.take(low, high)


class Books:
    """The memory of one process. areas: the ranges that the kernel asks for. asked_for: does it ask for the page at an
    address? It tells the truth of the moment, or raises Stirred."""

    def __init__(self, areas: Iterable[Range], runs: Iterable[Run], asked_for: Callable[[int], bool]) -> None:
        self.missing = Missing(runs)
        self._areas = Ranges(areas)
        self._asked_for = asked_for
        self._heard: list[_Deed] = []
        self._children: list[_Child] = []

    @property
    def empty(self) -> bool:
        """Has everything arrived?"""
        return not self.missing and not self._heard

    @property
    def settled(self) -> bool:
        """Is all that was heard in them?"""
        return not self._heard

    def removed(self, start: int, end: int) -> None:
        """The range reads as zeros from now on."""
        self._heard.append(_Deed(REMOVED, start, end))

    def unmapped(self, start: int, end: int) -> None:
        """The range is gone."""
        self._heard.append(_Deed(UNMAPPED, start, end))

    def remapped(self, start: int, to: int, size: int) -> None:
        """A range has moved. It may still be there, and reads as zeros then."""
        self._heard.append(_Deed(MOVED, start, start + size, to))

    def forked(self, asked_for: Callable[[int], bool], wiped: Iterable[Range] = ()) -> Books:
        """The books of a child that was just made; nothing is in them before `settle`. wiped: ranges that are empty in
        children (MADV_WIPEONFORK)."""
        child = Books((), (), asked_for)
        self._children.append(_Child(child, len(self._heard), list(wiped)))
        self._heard.append(_Deed(FORKED))
        return child

    def settle(self) -> list[Books]:
        """Everything that was done so far has been told; the books of the children that can be read now. If the process
        goes on meanwhile nothing is settled, and none: then it is to be called again when that was told as well. Raises
        Unclear."""
        deeds = _paired(self._heard)
        if self._children and len(deeds) > _MOST:
            raise Unclear  # 144 took 3.5 s, which grows with their cube, and meanwhile the job stands still
        touched = Ranges()
        for deed in deeds:
            touched.add(deed.start, deed.end)
            touched.add(*deed.arrives)
        near = [run for low, high in touched.ranges for run in self.missing.take(low, high)]
        areas = list(self._areas.ranges)
        world = _World(areas, near)
        for deed in deeds:
            world.do(deed)
        world.end()
        try:
            self._compare(world.areas, deeds)
        except Stirred:
            if len(deeds) > _MOST:
                raise Unclear from None
            self.missing.add(near)
            return []
        for child in self._children:
            child.books.missing = Missing([*self.missing, *child.books._cut(areas, near, deeds, child.heard)])
            for low, high in child.wiped:
                child.books.missing.take(low, high)
        self.missing.add(world.missing)
        self._areas = world.areas
        ready = [child.books for child in self._children]
        self._heard.clear()
        self._children.clear()
        return ready

    def _compare(self, areas: Ranges, deeds: Iterable[_Deed]) -> None:
        """Is what the books say the truth? What was unmapped before something else moved there may be told later."""
        came = Ranges(deed.arrives for deed in deeds if deed.what == MOVED)
        for start, _ in came.ranges:
            if not areas.touches(start, start + 1) and self._asked_for(start):
                raise Unclear

    def _cut(self, areas: list[Range], runs: list[Run], deeds: list[_Deed], heard: int) -> list[Run]:
        """What of `runs` is missing in this child, and where. Sets its areas. It has nothing less than the right cut
        says; it may have more, since areas have grown, but of two cuts that one is right which explains more of it."""
        known = Ranges(areas)  # that an area has grown is not told: nothing is known of what was unmapped behind it
        points = {deed.start for deed in deeds if deed.what == UNMAPPED and known.touches(deed.start, deed.start + 1)}
        points |= {point for deed in deeds if deed.what == MOVED for point in (deed.start, deed.to)}
        try:
            truth = {point: self._asked_for(point) for point in points}
        except Stirred:
            raise Unclear from None  # what it does is not told before it is known what it has
        found: list[list[Run]] = []
        fewest = len(points)
        for done in _cuts(deeds):
            world = _World(areas, runs)
            try:
                for number, deed in enumerate(deeds):
                    if deed.what == REMOVED and number < heard:
                        world.do(deed)
                    elif deed.what != REMOVED and number in done:
                        if deed.what == MOVED and not world.areas.touches(deed.start, deed.end):
                            raise Unclear  # it was not there to be moved
                        world.do(deed)
            except Unclear:
                continue
            shown = [(world.areas.touches(point, point + 1), there) for point, there in truth.items()]
            grown = sum(there and not known for known, there in shown)
            if world.waits or grown > fewest or any(known and not there for known, there in shown):
                continue
            if grown < fewest:
                found, fewest = [], grown
            missing = list(world.missing)
            if missing not in found:
                found.append(missing)
                self._areas = world.areas
        if len(found) != 1:
            raise Unclear
        return found[0]


def _paired(heard: Sequence[_Deed]) -> list[_Deed]:
    """What was moved is unmapped at the old place, which is told apart: made one. What is not unmapped is still there
    (MREMAP_DONTUNMAP)."""
    deeds = list(heard)
    for number, deed in enumerate(deeds):
        if deed.what == MOVED:
            unmapped = _Deed(UNMAPPED, deed.start, deed.end)
            try:
                deeds[deeds.index(unmapped, number)] = _Deed(FORKED)
            except ValueError:
                deeds[number] = deed._replace(left=False)
    return deeds


def _cuts(deeds: Sequence[_Deed]) -> Iterator[frozenset[int]]:
    """Which deeds may have been done before a child was made: the first of them, but one of these may have been told of
    a little late, or early."""
    moves = [number for number, deed in enumerate(deeds) if deed.what in (UNMAPPED, MOVED)]
    for count in range(len(moves) + 1):
        done = frozenset(moves[:count])
        yield done
        for number in moves[max(0, count - _ASKEW) : count - 1]:
            yield done - {number}
        for number in moves[count + 1 : count + _ASKEW]:
            yield done | {number}
