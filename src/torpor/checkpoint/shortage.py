"""Memory that becomes short while copies of a job's processes are there: the job is stopped again until these are gone.

Before it is copied, there is room for all that its copies may need (headroom.py). What is written then takes of that
room as much as it takes of the need. So there is too little only where somebody else takes it, or the job itself asks
for more: then it must not double any more pages, or somebody is killed.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

from torpor.checkpoint import headroom
from torpor.linux import cgroup
from torpor.linux.cgroup import Limit
from torpor.model.errors import CheckpointFailed, Refused
from torpor.tracee.freeze import freeze
from torpor.tracee.snapshot import Snapshot

INTERVAL = 0.05
"""Seconds between two looks."""
SHARE = 0.2
"""What part of a thread's time looking may take: for a large copy the kernel walks all of its pages."""


class Shortage:
    """Looks after the memory; to be used by the thread that saves. A context manager: at its end the job goes on.

    why: the reason for which it was stopped, '' if it was not. seconds: how long it stood still.
    """

    def __init__(
        self,
        find: Callable[[], Sequence[int]],
        guard: AbstractContextManager[object],
        needs: Sequence[headroom.Process],
        snapshot: Snapshot,
    ) -> None:
        """find, guard: as in SaveRequest. needs: what there was to know before the copies were made."""
        self.why = ""
        self.seconds = 0.0
        self._find, self._guard, self._snapshot = find, guard, snapshot
        self._needs = headroom.needs(needs, headroom.machine())
        self._due = 0.0
        self._stopped = contextlib.ExitStack()
        self._since = 0.0

    def __enter__(self) -> Shortage:
        return self

    def __exit__(self, *_: object) -> None:
        if self.why:
            self._stopped.close()
            self.seconds = time.perf_counter() - self._since

    def mind(self) -> None:
        """Look, if it is time to, and stop the job if there is too little. Raises CheckpointFailed if that cannot be
        done."""
        began = time.perf_counter()
        if self.why or began < self._due or not self._tight():
            return
        self.why = headroom.lacking(
            headroom.left(copy.pid for copy in self._snapshot.copies.values()), headroom.machine()
        )
        now = time.perf_counter()
        self._due = now + max(INTERVAL, (now - began) / SHARE)
        if self.why:
            self._since = now
            self._stop()

    def enough(self) -> bool:
        """`mind`; does the job still run? Raises as that does."""
        self.mind()
        return not self.why

    def guard(self) -> AbstractContextManager[object]:
        """What is to be held where stops of tracees are waited for: it is held already while the job is stopped."""
        return contextlib.nullcontext() if self.why else self._guard

    @property
    def note(self) -> str:
        """What there is to be said of it, '' if nothing."""
        if not self.why:
            return ""
        return f"stood still again, for {self.seconds * 1000:.0f} ms, until its memory was saved: {self.why}"

    def _tight(self) -> bool:
        """May there be too little? Told without a look at the copies: if none of their pages had been doubled yet."""
        return any(need > _now(limit).free for limit, need in self._needs.items())

    def _stop(self) -> None:
        try:
            self._stopped.enter_context(self._guard)
            self._stopped.enter_context(freeze(self._find))
        except Refused as error:
            raise CheckpointFailed(f"{self.why}, and the job cannot be stopped: {error}") from error


def _now(limit: Limit) -> Limit:
    return cgroup.again(limit) if limit.group else headroom.machine()
