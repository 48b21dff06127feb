"""By what copies of a job's processes (tracee/snapshot.py) are known to whoever looks at the job from outside: they are
below it, and not of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

COMM = "torpor-snapshot"


def is_copy(comm: str, state: str, descriptors: Callable[[], Sequence[int]]) -> bool:
    """comm, state: as /proc/PID/stat tells them. descriptors: looks up which it has. A copy stands still, or waits for
    us and has none; whatever else has its name runs sometimes, and has some."""
    if comm != COMM:
        return False
    try:
        return state in "tZX" or not descriptors()
    except OSError:
        return False
