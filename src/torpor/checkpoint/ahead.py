"""A program that rewrites its memory while copies of its processes are there: the pages are copied ahead of it.

A page that a process shares with its copy costs it a fault and a copy of the page when it writes to it. Where a
processor is idle, that is done there in its place: the copy of the process is given pages of its own, and then those of
the process are made writable, so that it notices nothing of it. A huge page stays whole in the process.

From the end, since programs mostly go upwards through their memory, and this goes about as fast as they do. It is the
copy that gets the new pages: to take a page from under a program that runs has to be made known to its processor, page
by page, and that costs both of them more than the fault (5 us on a virtual machine, a fault 2 to 3).

No memory is needed for it that was not set aside for the copies (headroom.py): it is for a program that is about to
double these pages itself.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Container, Generator, Iterator, Mapping, Sequence

from torpor.checkpoint import dropping
from torpor.checkpoint.huge_pages import HUGE
from torpor.checkpoint.stretches import Range
from torpor.linux import proc, uio
from torpor.linux.pagemap import Pagemap

STEP = HUGE
"""Bytes that are taken in hand at once: a huge page is shared as long as the copy has any of it."""
LEAST = 16 << 20
"""Bytes of a process that are worth it."""
SHORT = dropping.LEAST
"""Bytes in a row that are worth a call."""
LOOK = 0.005
"""Seconds between two looks at what the programs do."""
BUSY = 50_000
"""Faults per second of a process that loses much by them: an eighth of its time."""
PATIENCE = 0.1
"""Seconds that are waited for the next fault: a program that comes to what has been done for it has none."""
CROWDED = 4
"""Looks in a row at which no processor was idle, after which it is let be."""


class Ahead:
    """Watches the faults of processes, from when it is made. copies: by host pid, the host pid of the copy of each."""

    def __init__(self, copies: Mapping[int, int]) -> None:
        self._copies = copies
        self._faults = {pid: _faults(pid) for pid in copies}
        self._since = time.perf_counter()
        self._last: dict[int, float] = {}
        self._crowded = 0

    def go(self, runs: Mapping[int, Sequence[Range]], mine: Container[int], go_on: Callable[[], bool]) -> None:
        """Copy what is going to be read of the copies, as long as their processes write. runs: of pages, ascending, for
        each process. mine: those of which pages may be made writable, too.  go_on: asked now and then.

        Raises OSError if a copy is gone, and as `go_on` does.
        """
        large = {pid: pages for pid, pages in runs.items() if sum(end - start for start, end in pages) >= LEAST}
        if not large or len(os.sched_getaffinity(0)) < 2:
            return
        self._faults = {pid: self._faults[pid] for pid in large}
        self._look()
        with contextlib.ExitStack() as stack:
            ways = {
                pid: stack.enter_context(contextlib.closing(self._way(pid, pages, pid in mine)))
                for pid, pages in large.items()
            }
            while ways and self._crowded < CROWDED and go_on():
                self._advance(ways)
                self._look()

    def _look(self) -> None:
        """Who has had many faults since the last time?"""
        time.sleep(max(0.0, self._since + LOOK - time.perf_counter()))
        now = time.perf_counter()
        for pid, before in self._faults.items():
            self._faults[pid] = _faults(pid)
            if self._faults[pid] - before > BUSY * (now - self._since):
                self._last[pid] = now
        self._since = now
        self._crowded = self._crowded + 1 if proc.running() > len(os.sched_getaffinity(0)) else 0

    def _advance(self, ways: dict[int, Generator[None, None, None]]) -> None:
        """Until the next look, a step for each in turn; ways that have come to their end are taken out, and all of them
        if there is nobody to go ahead of."""
        until = self._since + LOOK
        while time.perf_counter() < until:
            busy = [pid for pid in ways if self._last.get(pid, -PATIENCE) > self._since - PATIENCE]
            if not busy:
                ways.clear()
                return
            for pid in busy:
                if next(ways[pid], ...) is ...:
                    del ways[pid]

    def _way(self, pid: int, runs: Sequence[Range], mine: bool) -> Generator[None, None, None]:
        """Goes through what there is of a process, step by step."""
        pages = _pagemap(pid) if mine else None
        try:
            for start, end in backwards(runs):
                uio.unshare(self._copies[pid], start, end - start)
                if pages is not None:
                    # It may have something else there by now, which is none of ours to touch.
                    for first, last in pages.anonymous(start, end):
                        with contextlib.suppress(OSError):
                            uio.claim(pid, first, last - first)
                yield
        finally:
            if pages is not None:
                pages.close()


def backwards(runs: Sequence[Range]) -> Iterator[Range]:
    """Ascending runs of pages, cut into steps, from the last. What is too short to be worth it is left out. Pure."""
    for start, end in reversed(runs):
        while end - start >= SHORT:
            at = max(start, (end - 1) // STEP * STEP)
            yield at, end
            end = at


def _pagemap(pid: int) -> Pagemap | None:
    try:
        return Pagemap(pid)
    except OSError:
        return None  # it has ended


def _faults(pid: int) -> int:
    try:
        return proc.faults(pid)
    except OSError:
        return 0
