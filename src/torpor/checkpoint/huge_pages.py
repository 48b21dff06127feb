"""Huge pages that are split while a copy of the process is there are made whole again.

When a process writes to a huge page that it shares with its copy, the kernel does not copy all of it, but splits it and
copies a small page (mm/huge_memory.c, do_huge_pmd_wp_page). So it stays, for hours perhaps, until khugepaged comes by,
which takes 16 MiB every ten seconds; and a program that reads and writes here and there in a GiB took three to five
times as long as before. To make a GiB whole takes 0.3 to 0.7 s, in which a program waits where it comes to a page that
is just being made; so only those are that were split.

Another process may be given this advice only with CAP_SYS_NICE (process_madvise(2)). Where we have not got it, the
process has an adviser for it (tracee/snapshot.py).
"""

from __future__ import annotations

import contextlib
import errno
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from functools import cached_property

from torpor.checkpoint.stretches import Range, minus
from torpor.linux import capability, uio
from torpor.linux.pagemap import Pagemap
from torpor.named_tuple import NamedTuple

HUGE = 2 << 20
"""Bytes of a huge page."""
PIECE = 16 << 20
"""Bytes that are put together by one call, which begins with a round over all processors (lru_add_drain_all)."""
_TRIES, _PAUSE = 5, 0.01
"""How often a page is tried that somebody has in use just then, a copy that ends for instance; and seconds between."""

Advise = Callable[[int, int, int], None]
"""Advice on (address, bytes); raises OSError."""


class _Process(NamedTuple):
    """had: ranges that were huge pages when it was copied. adviser: who gives the advice; None: we do."""

    pidfd: int
    pages: Pagemap
    had: Sequence[Range]
    adviser: Advise | None

    def collapse(self, start: int, end: int) -> None:
        """Raises OSError."""
        if self.adviser is None:
            uio.collapse(self.pidfd, start, end - start)
        else:
            self.adviser(start, end - start, uio.MADV_COLLAPSE)


class HugePages:
    """Those of the processes of one job, in one checkpoint. To be used by the thread that made the copies."""

    def __init__(self) -> None:
        self._processes: list[_Process] = []
        self._thread: threading.Thread | None = None

    @cached_property
    def unaided(self) -> bool:
        """Can it be done without advisers? (In a user namespace it may turn out that it cannot: then nothing is
        done.)"""
        return capability.have(capability.SYS_NICE)

    def note(self, pid: int, copy: int, areas: Iterable[Range], adviser: Advise | None) -> None:
        """Note what huge pages a process has, by its copy (host pids), which nobody has touched yet. areas: where there
        are such. adviser: gives advice in the name of the process.  Raises OSError if the copy is gone."""
        ranges = list(areas)
        if not ranges or (adviser is None and not self.unaided):
            return
        pages = Pagemap(copy)
        try:
            had = [run for start, end in ranges for run in pages.huge(start, end)]
        finally:
            pages.close()
        if not had:
            return
        try:
            pidfd = os.pidfd_open(pid)
        except OSError:
            return  # it has ended
        try:
            self._processes.append(_Process(pidfd, Pagemap(pid), had, adviser))
        except OSError:
            os.close(pidfd)

    def mend(self) -> None:
        """Begin to put together what has been split, beside whatever else is done; not with advisers, who listen to one
        thread alone."""
        if self._processes and all(process.adviser is None for process in self._processes):
            self._thread = threading.Thread(target=self._mend, args=(contextlib.nullcontext(),))
            self._thread.start()

    def close(self, guard: AbstractContextManager[object]) -> None:
        """Wait until that is done. If it has not begun it is done now: a save that failed has split them as well.
        guard: what is to be held where stops of tracees are waited for."""
        if self._thread is None:
            self._mend(guard)
        else:
            self._thread.join()
        for process in self._processes:
            os.close(process.pidfd)
            process.pages.close()
        self._processes.clear()

    def _mend(self, guard: AbstractContextManager[object]) -> None:
        for process in self._processes:
            try:
                for _ in range(_TRIES):
                    if not self._try(process, guard):
                        break
                    time.sleep(_PAUSE)
            except OSError:
                continue  # it has ended, or there are no huge pages to be had

    @staticmethod
    def _try(process: _Process, guard: AbstractContextManager[object]) -> bool:
        """Is it to be tried again? Raises OSError."""
        again = False
        for start, end in pieces(_split(process)):
            try:
                with guard:
                    process.collapse(start, end)
            except OSError as error:
                if error.errno not in (errno.EAGAIN, errno.EINVAL, errno.EBUSY):
                    raise
                again = True
        return again


def _split(process: _Process) -> list[Range]:
    """What was huge pages and is not now, all small pages of it being there. Raises OSError."""
    gone: list[Range] = []
    for start, end in process.had:
        gone += minus([(start, end)], process.pages.huge(start, end))
    return list(whole(run for start, end in gone for run in process.pages.anonymous(start, end)))


def whole(runs: Iterable[Range]) -> Iterator[Range]:
    """What runs of pages have of whole huge ones. Pure."""
    for start, end in runs:
        first, last = -(-start // HUGE) * HUGE, end // HUGE * HUGE
        if first < last:
            yield first, last


def pieces(runs: Iterable[Range]) -> Iterator[Range]:
    """Runs, cut into pieces. Pure."""
    for start, end in runs:
        for at in range(start, end, PIECE):
            yield at, min(at + PIECE, end)
