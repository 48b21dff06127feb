"""A job has crashed: whether it is to be restarted (`--on-crash`), and what is to be done first about what has crashed.
Its supervisor becomes a fresh torpor then (launch/again.py)."""

from __future__ import annotations

import os
from collections.abc import Collection

from torpor.model.errors import TorporError
from torpor.supervise import audit, registry, saving, upkeep
from torpor.supervise.kill import end_all
from torpor.supervise.registry import Entry
from torpor.supervise.say import say
from torpor.supervise.tree import members, reach


def restartable(entry: Entry, status: int, told: Collection[int]) -> bool:
    """Has the job crashed, and can it be restarted? Says so where there is nothing to restart it from.

    status: the wait status of its root.  told: signals that it was sent from outside."""
    if not entry.folder or not upkeep.crashed(status, told):
        return False
    if saving.complete(entry.store, entry.name):
        return True
    say(f"torpor: {entry.name} has crashed, and there is no checkpoint to restart it from")
    return False


def clear_away(entry: Entry, status: int, crashes: int) -> Entry:
    """The root has crashed: what else there is of the job must not meet the restarted one. Returns its entry without
    any of its processes.

    crashes: how often the job has crashed, with this one."""
    audit.record("crash", job=entry.name, status=os.waitstatus_to_exitcode(status), crashes=crashes)
    try:
        end_all(entry, {registry.Pid.of(pid) for pid in members(reach(entry))}, 0.0)
    except TorporError as error:
        say(f"torpor: {error}")
    return entry._replace(
        root=registry.NOBODY,
        root_vpid=0,
        reaper=registry.NOBODY,
        helpers=(),
        anchor=0,
        skip=(),
        holder=registry.NOBODY,
        door=registry.NOBODY,
        bringer=registry.NOBODY,
    )
