"""Copies of processes give up what has been saved of them, so that the processes have it to themselves again.

A page that a process and its copy share is copied when the process writes to it; one that only the process has is not,
and huge pages stay whole. And what was doubled already is there once again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from contextlib import AbstractContextManager

from torpor.checkpoint import stretches
from torpor.named_tuple import NamedTuple
from torpor.posix.memory.pages import WINDOW, Window
from torpor.tracee.snapshot import Copy, Range, Snapshot

PORTION = 32 << 20
"""Bytes that are given up at once."""
LEAST = 64 << 10
"""Bytes in a row that are worth a call in the copy."""


class Work(NamedTuple):
    """A window to be read. source: the host pid to read it from."""

    pid: int
    source: int
    window: Window


class Dropping:
    """Has copies give up their memory. work: what is read from them, in this order; pages that our code was in have
    been (`code_apart`). known, stretches: what is not read; these by pid, as (start, end).  guard: what is to be held
    where stops of tracees are waited for (SaveRequest). To be used by the thread that made the copies."""

    def __init__(
        self,
        snapshot: Snapshot,
        work: Sequence[Work],
        known: Sequence[Work],
        stretches: Mapping[int, Iterable[stretches.Range]],
        guard: Callable[[], AbstractContextManager[object]],
    ) -> None:
        self._snapshot, self._work, self._guard = snapshot, work, guard
        self._given = 0
        code = _with_code(snapshot.copies)
        self._known = [each for each in known if _place(each) not in code]
        self._stretches = {
            pid: _without_code(ranges, [at for owner, at in sorted(code) if owner == pid])
            for pid, ranges in stretches.items()
        }

    def saved(self, done: int) -> None:
        """The first `done` windows are saved. Raises OSError if a copy is gone."""
        while self._stretches:
            self._drop(*self._stretches.popitem())
        while (end := portion(self._work, self._given, done)) > self._given:
            part, self._given, self._known = [*self._known, *self._work[self._given : end]], end, []
            for pid in dict.fromkeys(each.pid for each in part):
                self._drop(pid, spans(each.window for each in part if each.pid == pid))

    def _drop(self, pid: int, ranges: Sequence[Range]) -> None:
        if ranges:
            with self._guard():
                self._snapshot.drop(pid, ranges)


def code_apart(work: Iterable[Work], copies: Mapping[int, Copy]) -> tuple[list[Work], list[Work]]:
    """What is read: windows that our code stood in, so that it can be put back later, and all others. Pure."""
    code = _with_code(copies)
    parts: tuple[list[Work], list[Work]] = [], []
    for each in work:
        parts[_place(each) not in code].append(each)
    return parts


def portion(work: Sequence[Work], start: int, done: int) -> int:
    """Up to which window a portion goes that begins with window `start`, if the first `done` may be given up; `start`
    if they are too few. Pure."""
    size = 0
    for at in range(start, done):
        size += work[at].window.size
        if size >= PORTION:
            return at + 1
    return start


def spans(windows: Iterable[Window]) -> list[Range]:
    """(address, bytes) of what ascending windows have in a row, if it is worth it. Pure."""
    found: list[Range] = []
    for window in windows:
        for address, size in window.ranges():
            if found and sum(found[-1]) == address:
                found[-1] = found[-1][0], found[-1][1] + size
            else:
                found.append((address, size))
    return [one for one in found if one[1] >= LEAST]


def _without_code(ranges: Iterable[stretches.Range], code: Iterable[int]) -> list[Range]:
    """(address, bytes) of ranges, those that touch as one, without windows at these addresses."""
    rest = stretches.minus(stretches.merged(ranges), ((at, at + WINDOW) for at in code))
    return [(start, end - start) for start, end in rest]


def _with_code(copies: Mapping[int, Copy]) -> Set[tuple[int, int]]:
    """Windows (pid, address) in which our code was."""
    return {(pid, at - at % WINDOW) for pid, copy in copies.items() for at in copy.code_ends()}


def _place(work: Work) -> tuple[int, int]:
    return work.pid, work.window.address
