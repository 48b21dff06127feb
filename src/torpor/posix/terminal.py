"""The terminal a job was started on: its settings, and which process group is in front.

The terminal itself is outside the job; what comes back is how the job had set it (termios), so that an editor in raw
mode finds it raw again. Read and set by ioctl(TCGETS, TCSETS), see ioctl_tty(2).
"""

from __future__ import annotations

import fcntl
import os
import stat

from torpor.posix.service import Job

_TCGETS, _TCSETS = 0x5401, 0x5402
_SIZE = 60
"""Bytes of struct termios of the kernel, rounded up."""


def settings(fd: int) -> bytes:
    """The termios of a terminal, as the kernel lays it out; b'' if it is none any more."""
    try:
        return fcntl.ioctl(fd, _TCGETS, bytes(_SIZE))
    except OSError:
        return b""


def apply(fd: int, termios: bytes) -> None:
    """Set what `settings` gave. Raises OSError."""
    if termios:
        fcntl.ioctl(fd, _TCSETS, termios)


def settings_of(job: Job, tty: int) -> bytes:
    """The settings of the terminal with device number `tty`, through any descriptor the job has of it."""
    for seen in job.descriptors:
        if stat.S_ISCHR(seen.mode) and seen.rdev == tty:
            return settings(job.hold(seen.pid, seen.number))
    return b""


def device_of(tty_nr: int) -> int:
    """st_rdev for the tty_nr of /proc/PID/stat (new_encode_dev, include/linux/kdev_t.h)."""
    major, minor = (tty_nr >> 8) & 0xFFF, (tty_nr & 0xFF) | ((tty_nr >> 12) & 0xFFF00)
    return os.makedev(major, minor)
