"""Facilities that may be left unused: for old kernels, for locked-down machines, and for the tests.

TORPOR_WITHOUT=pagemap_scan,time_namespace,... makes torpor behave as if the kernel did not have them.
docs/facilities.md says what happens without each.
"""

from __future__ import annotations

import os

NAMES = (
    "cpuid",
    "devpts",
    "eventfd_semaphore",
    "membarrier_query",
    "multicall",
    "pagemap_scan",
    "pid_namespace",
    "proc_mount",
    "same_vdso",
    "seccomp_notify",
    "set_tid",
    "snapshot",
    "time_namespace",
    "timer_ids",
    "timerfd_ticks",
    "user_namespace",
    "userfaultfd",
    "userfaultfd_kernel",
    "userfaultfd_wp",
)
"""Everything that can be masked."""

REASON = "masked by TORPOR_WITHOUT"
"""What a probe says of a masked facility."""

_masked = frozenset(word.strip() for word in os.environ.get("TORPOR_WITHOUT", "").split(",") if word.strip())


def masked(facility: str) -> bool:
    """Is the facility to be treated as missing?"""
    return facility in _masked


def unknown() -> list[str]:
    """Words of TORPOR_WITHOUT that name no facility."""
    return sorted(_masked.difference(NAMES))
