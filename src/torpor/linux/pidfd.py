"""pidfd_getfd(2): our own descriptor for an open file description of another process.

Linux 5.6; needs the right to trace the process. Unlike opening /proc/PID/fd/N it gives the same
description (offset, flags), and closing it does not drop fcntl locks of the process.
"""

from __future__ import annotations

import os

from torpor.linux.arch.x86_64 import NR
from torpor.linux.libc import syscall


def copy(pidfd: int, number: int) -> int:
    """A close-on-exec descriptor for what `number` is in the process.

    Raises OSError (EBADF, ESRCH, EPERM).
    """
    return syscall(NR.pidfd_getfd, pidfd, number, 0)


def probe() -> tuple[bool, str]:
    """Does this machine have it?"""
    try:
        pidfd = os.pidfd_open(os.getpid())
    except OSError as error:
        return False, f"pidfd_open: {error.strerror}; needs Linux 5.3"
    try:
        os.close(copy(pidfd, pidfd))
        return True, ""
    except OSError as error:
        return False, f"{error.strerror}; needs Linux 5.6, and no filter on pidfd_getfd(2)"
    finally:
        os.close(pidfd)
