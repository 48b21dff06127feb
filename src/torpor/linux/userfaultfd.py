"""userfaultfd(2): seeing page faults and writes.

Source: Documentation/admin-guide/mm/userfaultfd.rst, include/uapi/linux/userfaultfd.h.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct

from torpor.linux import proc
from torpor.linux.arch.x86_64 import NR
from torpor.linux.libc import syscall
from torpor.linux.masks import REASON, masked

USER_MODE_ONLY = 1
"""Faults of system calls are not handled; allowed to everybody."""
FEATURE_WP_ASYNC = 1 << 15
"""Writes to protected pages are noted by the kernel itself, and nobody is asked (Linux 6.7)."""

_API = 0xAA
_UFFDIO_API = 0xC018AA3F  # _IOWR(0xAA, 0x3F, struct uffdio_api)
_UFFDIO_REGISTER = 0xC020AA00  # _IOWR(0xAA, 0x00, struct uffdio_register)
_MODE_WP = 2
_IOC_NEW = 0xAA00  # _IO(0xAA, 0x00), on /dev/userfaultfd (Linux 6.1)
_DEVICE = "/dev/userfaultfd"


def create(user_mode_only: bool = True) -> int:
    """A new close-on-exec userfaultfd. Raises OSError (EPERM: kernel faults without privilege; ENOSYS)."""
    if masked("userfaultfd") or (not user_mode_only and masked("userfaultfd_kernel")):
        raise OSError(errno.EPERM, REASON)
    try:
        return syscall(NR.userfaultfd, os.O_CLOEXEC | os.O_NONBLOCK | (USER_MODE_ONLY if user_mode_only else 0))
    except PermissionError:
        if user_mode_only or not os.access(_DEVICE, os.R_OK | os.W_OK):
            raise
    device = os.open(_DEVICE, os.O_RDWR | os.O_CLOEXEC)
    try:
        return fcntl.ioctl(device, _IOC_NEW, os.O_CLOEXEC | os.O_NONBLOCK)
    finally:
        os.close(device)


def features(fd: int) -> int:
    """The features (UFFD_FEATURE_*) that the kernel has; the descriptor is of no use afterwards. Raises OSError."""
    room = bytearray(struct.pack("<QQQ", _API, 0, 0))
    fcntl.ioctl(fd, _UFFDIO_API, room)
    return int(struct.unpack("<QQQ", room)[1])


def note_writes(fd: int) -> None:
    """Make a new userfaultfd one by which writes are noted and nothing else is done. Raises OSError (EINVAL: before
    Linux 6.7)."""
    fcntl.ioctl(fd, _UFFDIO_API, bytearray(struct.pack("<QQQ", _API, FEATURE_WP_ASYNC, 0)))


def register(fd: int, start: int, size: int) -> None:
    """Let writes to these pages be noted (`Pagemap.written`); what was written before counts as written. The memory is
    that of the process in which the userfaultfd was made. Raises OSError (ESRCH: that process has ended or executed
    another program; EINVAL: there is something in the range that cannot be noted)."""
    fcntl.ioctl(fd, _UFFDIO_REGISTER, bytearray(struct.pack("<QQQQ", start, size, _MODE_WP, 0)))


def probe() -> tuple[bool, str]:
    """Can faults in user mode be handled?"""
    try:
        os.close(create())
    except OSError as error:
        return False, _why_not(error)
    return True, ""


def probe_kernel() -> tuple[bool, str]:
    """Can faults of system calls be handled, too?"""
    try:
        os.close(create(user_mode_only=False))
    except OSError as error:
        if error.errno == errno.EPERM and error.strerror != REASON:
            value = proc.sysctl("vm/unprivileged_userfaultfd")
            return False, f"vm.unprivileged_userfaultfd is {value or 'absent'}: sysctl it to 1, or open {_DEVICE} to us"
        return False, _why_not(error)
    return True, ""


def probe_wp() -> tuple[bool, str]:
    """Can writes be tracked without anybody handling faults (WP_ASYNC)?"""
    if masked("userfaultfd_wp"):
        return False, REASON
    try:
        fd = create()
        try:
            found = features(fd)
        finally:
            os.close(fd)
    except OSError as error:
        return False, _why_not(error)
    return (True, "") if found & FEATURE_WP_ASYNC else (False, "needs Linux 6.7")


def _why_not(error: OSError) -> str:
    if error.strerror == REASON:
        return REASON
    if error.errno == errno.ENOSYS:
        return "use a kernel with CONFIG_USERFAULTFD"
    return f"{error.strerror}; in a container: another seccomp profile"
