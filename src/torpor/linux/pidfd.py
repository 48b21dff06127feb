"""pidfd_getfd(2): our own descriptor for an open file description of another process.

Linux 5.6; needs the right to trace the process. Unlike opening /proc/PID/fd/N it gives the same
description (offset, flags), and closing it does not drop fcntl locks of the process.
"""

from __future__ import annotations

import errno
import os

from torpor.linux import proc
from torpor.linux.arch.x86_64 import NR
from torpor.linux.libc import syscall


def copy(pidfd: int, number: int) -> int:
    """A close-on-exec descriptor for what `number` is in the process.

    Raises OSError (EBADF, ESRCH, EPERM).
    """
    return syscall(NR.pidfd_getfd, pidfd, number, 0)


def exactly(tid: int) -> int:
    """A descriptor for a thread, which never means another one (PIDFD_THREAD). Raises OSError (ESRCH; EINVAL before
    Linux 6.9)."""
    return os.pidfd_open(tid, os.O_EXCL)


def of_thread(tid: int) -> int:
    """A descriptor for the process of a thread, good for `copy`. Raises OSError (ESRCH)."""
    try:
        return exactly(tid)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
    return os.pidfd_open(int(proc.status(tid)["Tgid"]))


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
