"""prctl(2) and arch_prctl(2): the options that torpor reads and sets, and which of them this kernel has.

Source: include/uapi/linux/prctl.h, arch/x86/include/uapi/asm/prctl.h.
"""

from __future__ import annotations

import ctypes

from torpor.linux.arch.x86_64 import NR
from torpor.linux.libc import syscall
from torpor.linux.masks import REASON, masked

SET_PDEATHSIG = 1
GET_PDEATHSIG = 2
GET_DUMPABLE = 3
SET_DUMPABLE = 4
SET_KEEPCAPS = 8
SET_NAME = 15
GET_NAME = 16
CAPBSET_DROP = 24
GET_TSC = 25
SET_TSC = 26
GET_SECUREBITS = 27
SET_SECUREBITS = 28
SET_TIMERSLACK = 29
GET_TIMERSLACK = 30
MCE_KILL = 33
MCE_KILL_GET = 34
SET_CHILD_SUBREAPER = 36
GET_CHILD_SUBREAPER = 37
SET_NO_NEW_PRIVS = 38
GET_NO_NEW_PRIVS = 39
SET_MM = 35
GET_TID_ADDRESS = 40
SET_THP_DISABLE = 41
GET_THP_DISABLE = 42
CAP_AMBIENT = 47
GET_SPECULATION_CTRL = 52
SET_SPECULATION_CTRL = 53
SET_IO_FLUSHER = 57
GET_IO_FLUSHER = 58
SET_MDWE = 65
GET_MDWE = 66
SET_MEMORY_MERGE = 67
GET_MEMORY_MERGE = 68
TIMER_CREATE_RESTORE_IDS = 77

SET_MM_MAP_SIZE = 15
"""Second argument of SET_MM."""

MCE_KILL_SET = 1
"""Second argument of MCE_KILL."""

AMBIENT_RAISE = 2
AMBIENT_CLEAR_ALL = 4
"""Second argument of CAP_AMBIENT."""

TIMER_IDS_OFF, TIMER_IDS_ON, TIMER_IDS_GET = 0, 1, 2
"""Second argument of TIMER_CREATE_RESTORE_IDS."""

ARCH_GET_CPUID = 0x1011
ARCH_SET_CPUID = 0x1012
ARCH_GET_XCOMP_PERM = 0x1022
ARCH_REQ_XCOMP_PERM = 0x1023


def get_securebits() -> int:
    """The securebits of the calling thread."""
    return syscall(NR.prctl, GET_SECUREBITS, 0, 0, 0, 0)


def can_choose_timer_ids() -> bool:
    """Can a process say which id its next POSIX timer gets (Linux 6.16)? Masked by
    TORPOR_WITHOUT=timer_ids."""
    if masked("timer_ids"):
        return False
    try:
        syscall(NR.prctl, TIMER_CREATE_RESTORE_IDS, TIMER_IDS_GET, 0, 0, 0)
    except OSError:
        return False
    return True


def probe() -> tuple[bool, str]:
    """Do POSIX timers get their ids back at once?"""
    if can_choose_timer_ids():
        return True, ""
    if masked("timer_ids"):
        return False, REASON
    return False, "needs Linux 6.16; ids are counted up to instead"


def probe_mm_map() -> tuple[bool, str]:
    """Can a process say where its arguments, heap and stack are? (Asked for the size of the structure only.)"""
    size = ctypes.c_uint()
    try:
        syscall(NR.prctl, SET_MM, SET_MM_MAP_SIZE, ctypes.addressof(size), 0, 0)
    except OSError as error:
        return False, f"{error.strerror}; use a kernel with CONFIG_CHECKPOINT_RESTORE"
    return True, ""
