"""By what copies of a job's processes (tracee/snapshot.py) are known to whoever looks at the job from outside: they are
below it, and not of it."""

from __future__ import annotations

COMM = "torpor-snapshot"


def is_copy(comm: str, state: str) -> bool:
    """comm, state: as /proc/PID/stat tells them. A copy never runs; whatever else has its name does sometimes."""
    return comm == COMM and state in "tZX"
