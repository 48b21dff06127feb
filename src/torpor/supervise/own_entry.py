"""The job's entry in the registry, in the hands of its supervisor: what changes is written down at once, so that a
command that does without the supervisor knows as much."""

from __future__ import annotations

import time

from torpor.model.errors import TorporError
from torpor.supervise import registry
from torpor.supervise.registry import Entry, Pid


class OwnEntry:
    """entry: as it stands in the registry."""

    def __init__(self, entry: Entry) -> None:
        self.now = entry
        self._skip = entry.skip
        """Children of the supervisor that are not of the job, but for a helper that comes and goes."""
        self._own: tuple[int, ...] = ()
        """Those of them that its membership has."""

    def write(self, entry: Entry) -> None:
        """That is the entry from now on."""
        self.now = entry
        self.write_down()

    def write_down(self) -> None:
        """Once more, also where its folder is gone."""
        if not self.now.folder:
            return
        try:
            self.now = registry.update(self.now)
        except (OSError, TorporError):
            pass  # a full or unwritable runtime folder must not disturb the job

    def saved(self, checkpoint: str) -> None:
        """That is its newest checkpoint."""
        self.write(self.now._replace(saved=checkpoint, saved_at=time.time()))

    def keeper_replaced(self, pid: int) -> None:
        """That process keeps its seats now."""
        self.write(self.now._replace(keeper=Pid.of(pid)))

    def set_aside(self, helper: int) -> None:
        """A child of ours that is not of the job, 0 for none: a command that saves the job without us must know."""
        self.write(self.now._replace(skip=(*self._skip, helper) if helper else self._skip))

    def set_own(self, pids: tuple[int, ...]) -> None:
        """These children of ours are not of the job, in place of those that were said to be so before."""
        others = tuple(pid for pid in self._skip if pid not in self._own)
        self._own = pids
        self._skip = (*others, *pids)
        self.set_aside(0)

    def know_holder(self, holder: int) -> None:
        """A process that is to answer for the filters of the job, which has none yet. Before anything of the job is
        touched: whoever comes after us finds it, and knows that there are filters."""
        self._skip = (*self._skip, holder)
        self.write(self.now._replace(holder=Pid.of(holder), skip=(*self.now.skip, holder)))

    def holder_replaced(self, holder: int) -> None:
        """That process answers now, in place of one that has died."""
        dead = self.now.holder.pid
        self._skip = tuple(holder if pid == dead else pid for pid in self._skip)
        skip = tuple(holder if pid == dead else pid for pid in self.now.skip)
        self.write(self.now._replace(holder=Pid.of(holder), skip=skip))
