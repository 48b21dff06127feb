"""Signals to the processes of a job, and their end: it is waited for, and forced where it does not come."""

from __future__ import annotations

import os
import signal
import time

from torpor.model.errors import TorporError
from torpor.supervise.registry import Entry, Pid
from torpor.supervise.tree import Reach, members


def end_all(entry: Entry, found: set[Pid], grace: float) -> bool:
    """Wait for those processes of a job to end, kill what is left after `grace` seconds; whether that was needed.

    Raises TorporError if that fails.
    """
    deadline = time.monotonic() + grace
    pause = 0.01
    while left := _living(found):
        if time.monotonic() >= deadline:
            break
        time.sleep(pause)
        pause = min(0.1, pause * 1.5)
    else:
        return False
    for _ in range(100):  # as long as something is forked faster than we look
        for one in list(left):
            left |= {Pid.of(pid) for pid in members(Reach(one.pid, True, entry.skip, one.pid))}
        send(left | {entry.reaper}, signal.SIGKILL)
        time.sleep(0.02)
        left = _living(left)
        if not left:
            return True
    raise TorporError(f"{entry.name}: {len(left)} processes cannot be killed")


def send(pids: set[Pid], number: int) -> None:
    """Send those that are there a signal."""
    for one in pids:
        if one.alive:
            try:
                os.kill(one.pid, number)
            except OSError:
                continue


def _living(pids: set[Pid]) -> set[Pid]:
    return {one for one in pids if one.alive}
