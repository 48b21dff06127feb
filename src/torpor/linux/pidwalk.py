"""Walk to a pid: where a number may not be chosen (clone3 with set_tid), make the kernel's counter come to it.

Numbers are handed out in rising order, from a counter that each PID namespace has; those in use are passed over, and
after the highest one the counter goes back to 300 (RESERVED_PIDS; alloc_pid in kernel/pid.c). `clone.feign` makes it
go on by one without a process. Where it stands is the last field of /proc/loadavg.

Everybody else on the machine takes numbers as well: whoever walks must look at what the fork then really got.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable

from torpor.linux import clone, proc

RESERVED = 300
"""After the first round no number below this one is handed out."""

NEVER = 1 << 40
"""More steps than anybody can make."""

_NEAR = 64
"""From here on the counter is looked at after every step."""


def last() -> int:
    """The number that was handed out last in our PID namespace."""
    return int(proc.read("/proc/loadavg").split()[-1])


def highest() -> int:
    """kernel.pid_max: one more than the highest number."""
    return int(proc.sysctl("kernel/pid_max") or 32768)


def distance(at: int, wanted: int, end: int) -> int:
    """How many numbers have to be handed out after `at` until `wanted` is; fewer where some are in use. end: pid_max.

    NEVER or more: it cannot be reached, because the counter does not go back that far.
    """
    if wanted >= end:
        return NEVER
    if wanted > at:
        return wanted - at
    return end - at + wanted - RESERVED if wanted >= RESERVED else NEVER


class Walker:
    """Walks, and counts what it takes. used: numbers known to be in use."""

    def __init__(self, used: Iterable[int], deadline: float) -> None:
        self.used = set(used)
        self.deadline = deadline
        self.end = highest()
        self.steps = 0

    def walk(self, wanted: int, margin: int = 0) -> bool:
        """Make `wanted` the next number, or leave so many steps before it; False if that was missed: somebody was
        quicker, or it is in use.

        Raises TimeoutError after the deadline (time.monotonic), OSError where nothing can be forked at all.
        """
        before = self.end * 2
        while True:
            at = last()
            left = distance(at, wanted, self.end)
            if left >= NEVER or left > before:
                return False
            if left <= margin + 1 or (left <= _NEAR and self._all_used(at, wanted)):
                return True
            if time.monotonic() > self.deadline:
                raise TimeoutError
            before = left
            for _ in range((left - margin - 1) // 2 if left > _NEAR + margin else 1):
                clone.feign()
                self.steps += 1
            if left <= _NEAR:
                # What lies in between was passed over.
                self.used.update(range(at + 1, min(last(), wanted)))

    def avoid(self, numbers: Iterable[int]) -> None:
        """See to it that the next number is none of these."""
        numbers = set(numbers)
        while True:
            following = last() + 1
            while following in self.used:
                following += 1
            if following not in numbers:
                return
            clone.feign()
            self.steps += 1

    def _all_used(self, at: int, wanted: int) -> bool:
        """Would the counter pass over everything between?"""
        return wanted > at and all(n in self.used or os.path.exists(f"/proc/{n}") for n in range(at + 1, wanted))


def price(samples: int = 64) -> float:
    """Seconds that a step takes here. Raises OSError where nothing can be forked at all."""
    began = time.perf_counter()
    for _ in range(samples):
        clone.feign()
    return (time.perf_counter() - began) / samples


def in_use() -> dict[int, int]:
    """All numbers in use in our PID namespace, as far as /proc shows them: of processes, threads, groups and sessions;
    with each, a process that has it (a leader before members)."""
    found: dict[int, int] = {}
    held: dict[int, int] = {}
    for name in os.listdir("/proc"):
        if not name.isdigit():
            continue
        pid = int(name)
        try:
            stat = proc.stat(pid)
            for tid in proc.threads(pid):
                found[tid] = pid
        except (OSError, ValueError):
            continue
        held.setdefault(stat.pgrp, pid)
        held.setdefault(stat.session, pid)
        found[pid] = pid
    return {**{number: pid for number, pid in held.items() if number > 0}, **found}
