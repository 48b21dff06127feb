"""kcmp(2): do two processes share a kernel object?

Both processes must be open to us like to a tracer (PTRACE_MODE_READ_REALCREDS); neither is disturbed.
Needs CONFIG_KCMP. Source: kcmp(2), kernel/kcmp.c.
"""

from __future__ import annotations

import ctypes
import os
import struct
from _thread import get_native_id

from torpor.linux import clone
from torpor.linux.arch.x86_64 import NR
from torpor.linux.libc import syscall

FILE = 0
VM = 1
FILES = 2
FS = 3
SYSVSEM = 6
EPOLL_TFD = 7


def file_order(pid1: int, fd1: int, pid2: int, fd2: int) -> int:
    """How the open file descriptions behind two descriptors compare: 0 the same, 1 less, 2 greater.

    The order is arbitrary but total, so that descriptors can be sorted by it. Raises OSError (EBADF,
    ESRCH, EPERM).
    """
    return syscall(NR.kcmp, pid1, pid2, FILE, fd1, fd2)


def same_file(pid1: int, fd1: int, pid2: int, fd2: int) -> bool:
    """Do two descriptors name one open file description? A descriptor or process that is gone names none."""
    try:
        return file_order(pid1, fd1, pid2, fd2) == 0
    except OSError:
        return False


def has_undo(pid: int) -> bool:
    """Has a process a list of System V semaphore adjustments?

    One that has none is compared with it: our thread, which gives up its own first. (It has one as soon as we have ever
    made a thread, and so has every process that has: clone(2), CLONE_SYSVSEM; ipc/sem.c, copy_semundo.)
    Nothing of ours is to be undone. Raises OSError, also where unshare(2) is not allowed.
    """
    syscall(NR.unshare, clone.SYSVSEM)
    return syscall(NR.kcmp, get_native_id(), pid, SYSVSEM, 0, 0) != 0


def shares_files(pid1: int, pid2: int) -> bool:
    """Do two processes have one table of descriptors (CLONE_FILES)?"""
    return syscall(NR.kcmp, pid1, pid2, FILES, 0, 0) == 0


def shares_memory(pid1: int, pid2: int) -> bool:
    """Do two processes have one address space (CLONE_VM, vfork)? Not if one of them is gone."""
    try:
        return syscall(NR.kcmp, pid1, pid2, VM, 0, 0) == 0
    except OSError:
        return False


def is_epoll_target(pid: int, fd: int, owner: int, epoll: int, number: int, which: int) -> bool:
    """Is (pid, fd) what an epoll instance watches?

    The instance is descriptor `epoll` of process `owner`; the watch is the one registered under the
    descriptor `number`, of several registered under the same number the one at place `which`, counted in
    fdinfo's order.
    """
    slot = ctypes.create_string_buffer(struct.pack("=III", epoll, number, which), 12)
    try:
        return syscall(NR.kcmp, pid, owner, EPOLL_TFD, fd, ctypes.addressof(slot)) == 0
    except OSError:
        return False


def probe() -> tuple[bool, str]:
    """Does this machine have it?"""
    me = os.getpid()
    fd = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
    try:
        return file_order(me, fd, me, fd) == 0, ""
    except OSError as error:
        return False, f"{error.strerror}; use a kernel with CONFIG_KCMP, and no filter on kcmp(2)"
    finally:
        os.close(fd)
