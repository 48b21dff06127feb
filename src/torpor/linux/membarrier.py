"""membarrier(2): the commands torpor uses. Source: include/uapi/linux/membarrier.h."""

from __future__ import annotations

from torpor.linux.arch.x86_64 import NR
from torpor.linux.libc import syscall
from torpor.linux.masks import REASON, masked

PRIVATE_EXPEDITED = 1 << 3
PRIVATE_EXPEDITED_SYNC_CORE = 1 << 5
PRIVATE_EXPEDITED_RSEQ = 1 << 7
REGISTER_GLOBAL_EXPEDITED = 1 << 2
REGISTER_PRIVATE_EXPEDITED = 1 << 4
REGISTER_PRIVATE_EXPEDITED_SYNC_CORE = 1 << 6
REGISTER_PRIVATE_EXPEDITED_RSEQ = 1 << 8
GET_REGISTRATIONS = 1 << 9

REGISTRATION_OF = {
    PRIVATE_EXPEDITED: REGISTER_PRIVATE_EXPEDITED,
    PRIVATE_EXPEDITED_SYNC_CORE: REGISTER_PRIVATE_EXPEDITED_SYNC_CORE,
    PRIVATE_EXPEDITED_RSEQ: REGISTER_PRIVATE_EXPEDITED_RSEQ,
}
"""A barrier, and the registration without which it fails with EPERM."""


def tells() -> bool:
    """Does the kernel say what a process is registered for (Linux 6.3)? Masked by
    TORPOR_WITHOUT=membarrier_query."""
    if masked("membarrier_query"):
        return False
    try:
        syscall(NR.membarrier, GET_REGISTRATIONS, 0, 0)
    except OSError:
        return False
    return True


def probe() -> tuple[bool, str]:
    """Can registrations be read?"""
    if tells():
        return True, ""
    return False, REASON if masked("membarrier_query") else "needs Linux 6.3; found out by trying instead"
