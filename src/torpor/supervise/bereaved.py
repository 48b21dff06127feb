"""What a member process does about the job on its host once its supervisor is dead (member.py).

The job runs on, though it cannot be saved any more. Somebody has to notice that its first program has ended, and to end
what is left here when the job ends elsewhere: orphans of the job are nobody's now, so which processes there are is
written down while they still have their parents.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable

from torpor.model.errors import TorporError
from torpor.supervise import registry
from torpor.supervise.kill import end_all, send
from torpor.supervise.registry import Entry, Pid
from torpor.supervise.tree import Reach, members, reach

LOOK = 0.5
"""Seconds between two looks at the processes."""
GRACE = 5.0
"""Seconds between SIGTERM and SIGKILL."""

Later = Callable[[float, Callable[[], None]], None]


def left_by(folder: str) -> Entry | None:
    """The job that a supervisor has left behind: its first process runs. None where it has ended in good order.

    folder: of the job's entry in the registry."""
    entry = registry.read(folder) if folder else None
    return entry if entry is not None and entry.root.alive else None


class Bereaved:
    """entry: the job's in the registry.  later: of the caller's loop.  root_ended, emptied: called once, when the first
    process here has ended, and when nothing is left here."""

    def __init__(self, entry: Entry, later: Later, root_ended: Callable[[], None], emptied: Callable[[], None]) -> None:
        self._entry, self._later = registry.update(entry._replace(heir=Pid.of(os.getpid()))), later
        self._known: set[Pid] = set()
        self._told: list[Callable[[], None]] = [emptied, root_ended]
        self._look()

    def _look(self) -> None:
        entry = self._entry
        found = set(members(reach(entry)))
        if entry.door.alive:
            found |= set(members(Reach(entry.door.pid, True, entry.skip, entry.door.pid)))
        self._known = {one for one in self._known | set(map(Pid.of, found)) if one.alive}
        if len(self._told) == 2 and not entry.root.alive:
            self._told.pop()()
        if len(self._told) == 1 and not self._known:
            self._told.pop()()
        if self._told:
            self._later(LOOK, self._look)

    def end(self) -> None:
        """Nothing of the job is to be here any more; returns when it is so."""
        self._told.clear()
        send(self._known, signal.SIGTERM)
        send(self._known, signal.SIGCONT)
        try:
            end_all(self._entry, self._known, GRACE)
        except TorporError:
            pass  # what even SIGKILL does not end, nobody else can either

    def close(self, job_file: str) -> None:
        """Take the job out of the registry, and the file away through which others joined it."""
        if job_file:
            try:
                os.unlink(job_file)
            except OSError:
                pass
        registry.release(self._entry)
