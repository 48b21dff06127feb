"""What a process does before it becomes the parent of a job. Kept apart from the supervisor because it comes
before the program's start, and everything else can wait until after it."""

from __future__ import annotations

import os

from torpor.linux.libc import syscall

_NR_PRCTL = 157
_PR_SET_CHILD_SUBREAPER = 36


def become_subreaper() -> None:
    """Orphans among our descendants become our children. Call before the job is started."""
    syscall(_NR_PRCTL, _PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def inherited() -> dict[int, int]:
    """The descriptors that our caller gave us and the program will get, those without close-on-exec: as
    `streams`."""
    out = {}
    for number in (int(name) for name in os.listdir("/proc/self/fd")):
        try:
            if os.get_inheritable(number):
                out[number] = number
        except OSError:
            continue  # the one that listed the folder
    return out
