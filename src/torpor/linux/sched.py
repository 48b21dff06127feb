"""Scheduling attributes of one thread, read and set from outside by its tid.

sched_getattr(2), sched_setattr(2), ioprio_set(2). (Affinity and nice: os.sched_getaffinity, os.getpriority.)
"""

from __future__ import annotations

import ctypes
import os
import struct

from torpor.linux.arch.x86_64 import NR
from torpor.linux.libc import syscall
from torpor.named_tuple import NamedTuple

OTHER, FIFO, RR, BATCH, IDLE, DEADLINE = 0, 1, 2, 3, 5, 6

FLAG_RESET_ON_FORK = 0x01
FLAG_RECLAIM = 0x02
FLAG_DL_OVERRUN = 0x04
FLAG_UTIL_CLAMP = 0x20 | 0x40

_ATTR = "=IIQiIQQQII"
SIZE = struct.calcsize(_ATTR)
"""Of struct sched_attr (include/uapi/linux/sched/types.h): 56 bytes; 48 without the clamps."""

WHO_PROCESS = 1
MOST_PROCESSORS = 8192
"""NR_CPUS of x86-64, at most (arch/x86/Kconfig)."""


class Attr(NamedTuple):
    """struct sched_attr; times in nanoseconds."""

    policy: int
    flags: int
    nice: int
    priority: int
    runtime: int
    deadline: int
    period: int
    util_min: int
    util_max: int


def getattr_of(tid: int) -> Attr:
    """The attributes of thread `tid` (0: of the calling one). Raises OSError."""
    room = ctypes.create_string_buffer(SIZE)
    syscall(NR.sched_getattr, tid, ctypes.addressof(room), SIZE, 0)
    return unpack(room.raw)


def unpack(raw: bytes) -> Attr:
    """From struct sched_attr, SIZE bytes of it."""
    return Attr(*struct.unpack(_ATTR, raw)[1:])


def setattr_of(tid: int, attr: Attr) -> None:
    """Set them. Raises OSError (EPERM: more urgent than the caller may make it; EBUSY: no room for the
    deadline)."""
    room = ctypes.create_string_buffer(struct.pack(_ATTR, SIZE, *attr), SIZE)
    syscall(NR.sched_setattr, tid, ctypes.addressof(room), 0)


def get_ioprio(tid: int) -> int:
    """I/O class (bits 13 and up) and priority of a thread; class 0: never set."""
    return syscall(NR.ioprio_get, WHO_PROCESS, tid)


def set_ioprio(tid: int, value: int) -> None:
    """Set them. Raises OSError (EPERM: the real-time class without CAP_SYS_ADMIN)."""
    syscall(NR.ioprio_set, WHO_PROCESS, tid, value)


def online() -> int:
    """How many processors this machine has online."""
    return os.sysconf("SC_NPROCESSORS_ONLN")
