"""userfaultfd(2): seeing page faults and writes.

Source: Documentation/admin-guide/mm/userfaultfd.rst, include/uapi/linux/userfaultfd.h.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from collections.abc import Iterator

from torpor.linux import proc
from torpor.linux.arch.x86_64 import NR
from torpor.linux.libc import syscall
from torpor.linux.masks import REASON, masked
from torpor.named_tuple import NamedTuple

USER_MODE_ONLY = 1
"""Faults of system calls are not handled; allowed to everybody."""
FEATURE_WP_ASYNC = 1 << 15
"""Writes to protected pages are noted by the kernel itself, and nobody is asked (Linux 6.7)."""

_API = 0xAA
_UFFDIO_API = 0xC018AA3F  # _IOWR(0xAA, 0x3F, struct uffdio_api)
_UFFDIO_REGISTER = 0xC020AA00  # _IOWR(0xAA, 0x00, struct uffdio_register)
_MODE_WP = 2
_MODE_MISSING = 1
_UFFDIO_UNREGISTER = 0x8010AA01  # _IOR(0xAA, 0x01, struct uffdio_range)
_UFFDIO_WAKE = 0x8010AA02  # _IOR(0xAA, 0x02, struct uffdio_range)
_UFFDIO_COPY = 0xC028AA03  # _IOWR(0xAA, 0x03, struct uffdio_copy)
_UFFDIO_ZEROPAGE = 0xC020AA04  # _IOWR(0xAA, 0x04, struct uffdio_zeropage)
_UFFDIO_CONTINUE = 0xC020AA07  # _IOWR(0xAA, 0x07, struct uffdio_continue)
_EVENTS = 1 << 1 | 1 << 2 | 1 << 3 | 1 << 6
"""UFFD_FEATURE_EVENT_FORK, _REMAP, _REMOVE, _UNMAP."""
FAULT, FORK, REMAP, REMOVE, UNMAP = range(0x12, 0x17)
"""Kinds of `Event`."""
_MESSAGE = 32
"""sizeof(struct uffd_msg)."""
_MOST = 64
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


def hand_out_missing(fd: int) -> None:
    """Make a new userfaultfd one by which whoever reads it is asked for pages that are missing, and told what the
    process does with its memory. Raises OSError (EPERM: children are told of only to those with CAP_SYS_PTRACE)."""
    fcntl.ioctl(fd, _UFFDIO_API, bytearray(struct.pack("<QQQ", _API, _EVENTS, 0)))


def fill_missing(fd: int) -> None:
    """Make a new userfaultfd one by which pages that are missing can be put in. Raises OSError."""
    fcntl.ioctl(fd, _UFFDIO_API, bytearray(struct.pack("<QQQ", _API, 0, 0)))


def register_missing(fd: int, start: int, size: int) -> None:
    """From now on pages of this range that are not there are asked for. Raises OSError as `register`."""
    fcntl.ioctl(fd, _UFFDIO_REGISTER, bytearray(struct.pack("<QQQQ", start, size, _MODE_MISSING, 0)))


def unregister(fd: int, start: int, size: int) -> None:
    """The range is ordinary memory again. Raises OSError."""
    fcntl.ioctl(fd, _UFFDIO_UNREGISTER, struct.pack("<QQ", start, size))


class Event(NamedTuple):
    """What a userfaultfd says.

    FAULT: a thread waits for the page at `first`. FORK: `first` is our own new descriptor, of the child's memory.
    REMAP: the `third` bytes at `first` are at `second` now. REMOVE: from `first` to `second` will read as zeros. UNMAP:
    this range is gone.
    """

    kind: int
    first: int
    second: int = 0
    third: int = 0


def events(fd: int) -> list[Event]:
    """All there is to be read, the faults first; a thread that reported something else goes on by being read. Raises
    OSError."""
    found: list[Event] = []
    while True:
        try:
            data = os.read(fd, _MESSAGE * _MOST)
        except BlockingIOError:
            return found
        found += _parse(data)
        if len(data) < _MESSAGE * _MOST:
            return found


def _parse(data: bytes) -> Iterator[Event]:
    for at in range(0, len(data), _MESSAGE):
        kind = data[at]
        first, second, third = struct.unpack_from("<QQQ", data, at + 8)
        if kind == FAULT:
            yield Event(FAULT, second & ~0xFFF)  # struct: flags, address
        elif kind == FORK:
            yield Event(FORK, first & 0xFFFFFFFF)
        else:
            yield Event(kind, first, second, third)


def copy(fd: int, start: int, size: int, local: int) -> int:
    """Put `size` bytes of ours at `local` into missing pages, and let go on who waits for them; the bytes that were
    put in, which may be fewer. Raises OSError if it is none: EEXIST (the first page is there), ENOENT (not registered,
    or not all of it in one mapping), EAGAIN (there are events to be read first), ESRCH (the process has ended)."""
    room = bytearray(struct.pack("<QQQQq", start, local, size, 0, 0))
    try:
        fcntl.ioctl(fd, _UFFDIO_COPY, room)
    except OSError:
        done = int(struct.unpack_from("<q", room, 32)[0])
        if done > 0:
            return done
        raise
    return size


def zero(fd: int, start: int, size: int) -> None:
    """Put zeros into missing pages, and let go on who waits for them. Raises OSError as `copy`."""
    fcntl.ioctl(fd, _UFFDIO_ZEROPAGE, bytearray(struct.pack("<QQQq", start, size, 0, 0)))


def wake(fd: int, start: int, size: int) -> None:
    """Let those who wait for these pages look again. Raises OSError."""
    fcntl.ioctl(fd, _UFFDIO_WAKE, struct.pack("<QQ", start, size))


def asked_for(fd: int, page: int) -> bool:
    """Is the page at an address asked for if it is not there? Raises OSError (EAGAIN: there are events to be read
    first; ESRCH).

    Private memory cannot be continued (UFFDIO_CONTINUE): the kernel says EINVAL, but ENOENT where there is none that is
    registered (mfill_atomic in mm/userfaultfd.c).
    """
    try:
        fcntl.ioctl(fd, _UFFDIO_CONTINUE, bytearray(struct.pack("<QQQq", page, 4096, 0, 0)))
    except OSError as error:
        if error.errno == errno.ENOENT:
            return False
        if error.errno in (errno.EAGAIN, errno.ESRCH):
            raise
    return True


def settled(fd: int) -> bool:
    """Has everything that was done to the memory so far been read as an event? Raises OSError (ESRCH).

    The kernel counts what has been done and not read (mmap_changing in mm/userfaultfd.c and fs/userfaultfd.c), and
    looks at it before it looks at the range, of which there is none here.
    """
    try:
        zero(fd, 0, 0)
    except OSError as error:
        if error.errno == errno.EAGAIN:
            return False
        if error.errno != errno.EINVAL:
            raise
    return True


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


def probe_missing() -> tuple[bool, str]:
    """Can memory be handed out to a process, and to its children, when they ask for it?"""
    able, why = probe_kernel()
    if not able:
        return able, why
    try:
        fd = create(user_mode_only=False)
        try:
            hand_out_missing(fd)
        finally:
            os.close(fd)
    except OSError as error:
        if error.errno == errno.EPERM:
            return False, "needs CAP_SYS_PTRACE on the host (root)"
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
