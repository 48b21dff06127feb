"""timerfd_create(2) and its relatives, and the clocks they run on. All times in nanoseconds.

Source: timerfd_create(2), fs/timerfd.c.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import struct

from torpor.linux.arch.x86_64 import NR
from torpor.linux.libc import syscall
from torpor.linux.masks import REASON, masked
from torpor.named_tuple import NamedTuple

CLOCK_REALTIME = 0
CLOCK_MONOTONIC = 1
CLOCK_BOOTTIME = 7
CLOCK_REALTIME_ALARM = 8
CLOCK_BOOTTIME_ALARM = 9

ABSTIME = 1
CANCEL_ON_SET = 2

_SET_TICKS = 0x40085400  # TFD_IOC_SET_TICKS, _IOW('T', 0, u64)
_SECOND = 1_000_000_000
_ITIMERSPEC = "=qqqq"


class Setting(NamedTuple):
    """struct itimerspec: time until the next expiry (0: not armed) and the interval (0: once)."""

    value: int
    interval: int


def create(clock: int, flags: int) -> int:
    """A new timerfd.

    Flags: os.O_NONBLOCK, os.O_CLOEXEC. Raises OSError (EPERM: an alarm clock, CAP_WAKE_ALARM).
    """
    return syscall(NR.timerfd_create, clock, flags)


def settime(fd: int, flags: int, setting: Setting) -> None:
    """Arm, or with value 0 disarm; forgets unread ticks."""
    raw = struct.pack(_ITIMERSPEC, *divmod(setting.interval, _SECOND), *divmod(setting.value, _SECOND))
    room = ctypes.create_string_buffer(raw, 32)
    syscall(NR.timerfd_settime, fd, flags, ctypes.addressof(room), 0)


def gettime(fd: int) -> Setting:
    """What is left. If an interval timer has expired and was not read, the kernel does the sum of missed
    ticks now
    (it would at the next read) and lets the timer run on."""
    room = ctypes.create_string_buffer(32)
    syscall(NR.timerfd_gettime, fd, ctypes.addressof(room))
    a, b, c, d = struct.unpack(_ITIMERSPEC, room.raw)
    return Setting(c * _SECOND + d, a * _SECOND + b)


def set_ticks(fd: int, ticks: int) -> bool:
    """Make `ticks` (> 0) expiries wait to be read. False: the kernel has no CONFIG_CHECKPOINT_RESTORE (masked by
    TORPOR_WITHOUT=timerfd_ticks)."""
    if masked("timerfd_ticks"):
        return False
    try:
        fcntl.ioctl(fd, _SET_TICKS, struct.pack("=Q", ticks))
    except OSError as error:
        if error.errno in (errno.ENOTTY, errno.EINVAL):
            return False
        raise
    return True


def probe() -> tuple[bool, str]:
    """Can unread ticks be restored exactly?"""
    fd = create(CLOCK_MONOTONIC, os.O_CLOEXEC)
    try:
        if set_ticks(fd, 1):
            return True, ""
        return False, REASON if masked("timerfd_ticks") else "use a kernel with CONFIG_CHECKPOINT_RESTORE"
    finally:
        os.close(fd)
