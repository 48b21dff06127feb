"""clone(2), clone3(2): a fork with a chosen pid, in new namespaces if asked for."""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from collections.abc import Callable

from torpor.linux import masks, proc
from torpor.linux.arch.x86_64 import NR
from torpor.linux.libc import syscall

NEWTIME = 0x80
PIDFD = 0x1000
PTRACE = 0x2000
"""Traced from its birth by whoever traces its maker, who is not told of it."""
VM, FS, FILES, SIGHAND, VFORK, THREAD, SYSVSEM = 0x100, 0x200, 0x400, 0x800, 0x4000, 0x10000, 0x40000
NEWNS, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET = 0x20000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000
SHARED = VM | FS | FILES | SIGHAND | SYSVSEM
"""Everything that a child need not copy."""

_SIGCHLD = 17
_NOWHERE = -4096
"""An address that no process can write to."""

_MASKS = ((NEWUSER, "user_namespace"), (NEWPID, "pid_namespace"))

SIZE = 88
"""Bytes of struct clone_args with set_tid and cgroup (CLONE_ARGS_SIZE_VER2)."""


def arguments(flags: int, exit_signal: int, set_tid: int, tids: int) -> bytes:
    """struct clone_args. set_tid: address of an array of `tids` pids, innermost namespace first (0, 0 for none)."""
    return struct.pack("<11Q", flags, 0, 0, 0, exit_signal, 0, 0, 0, set_tid, tids, 0)


def fork(pid: int = 0, flags: int = 0) -> int:
    """Fork; 0 in the child. pid: the number it shall have (0: any). Raises OSError (EEXIST: taken, EPERM).

    Without CAP_CHECKPOINT_RESTORE or CAP_SYS_ADMIN over the pid namespace a pid cannot be chosen. The child must not
    be forked while other threads of ours run: what they hold stays locked in it. Namespaces may be masked by
    TORPOR_WITHOUT=user_namespace, pid_namespace: EPERM.
    """
    _mind_masks(flags)
    if not pid:
        # Filters of containers let clone through, but not clone3, whose arguments they cannot look at.
        return syscall(NR.clone, flags | _SIGCHLD, 0, 0, 0, 0)
    room = ctypes.c_int(pid)
    args = ctypes.create_string_buffer(arguments(flags, _SIGCHLD, ctypes.addressof(room), 1), SIZE)
    return syscall(NR.clone3, ctypes.addressof(args), SIZE)


def made_apart(make: Callable[[], int], flags: int = 0) -> int:
    """The descriptor that `make` gives, called in a child which shares our descriptors: whatever else it changes
    (session, namespaces) is its own. flags: of the clone. Raises OSError as it does."""
    place = os.open("/", os.O_PATH | os.O_CLOEXEC)
    try:
        pid = fork(flags=FILES | flags)
        if pid == 0:
            _make_apart(make, place)
        _, status = os.waitpid(pid, 0)
        error = os.waitstatus_to_exitcode(status)
        if error:
            error = error if error > 0 else errno.EIO
            raise OSError(error, os.strerror(error))
    except BaseException:
        os.close(place)
        raise
    return place


def _make_apart(make: Callable[[], int], place: int) -> None:
    """In the child: it ends with the errno. Never returns."""
    code = errno.EIO
    try:
        fd = make()
        os.dup2(fd, place, inheritable=False)
        os.close(fd)
        code = 0
    except OSError as error:
        code = error.errno or code
    finally:
        os._exit(code)


def feign(pid: int = 0, flags: int = SHARED) -> None:
    """Fail to fork, at the last moment: when permissions have been looked at, namespaces been made and a number been
    taken from the counter, which thereby goes on by one (about 20 us). No child ever exists.

    pid: the number it would have (the counter then stays). Raises what a real fork would raise: EPERM, EEXIST, ...

    The kernel stores the child's pidfd through a pointer after it has allocated the number (copy_process in
    kernel/fork.c); the pointer is none, so that it takes everything back and says EFAULT.
    """
    _mind_masks(flags)
    try:
        if pid:
            room = ctypes.c_int(pid)
            raw = bytearray(arguments(flags | PIDFD, 0, ctypes.addressof(room), 1))
            raw[8:16] = _NOWHERE.to_bytes(8, "little", signed=True)
            args = ctypes.create_string_buffer(bytes(raw), SIZE)
            syscall(NR.clone3, ctypes.addressof(args), SIZE)
        else:
            syscall(NR.clone, flags | PIDFD, 0, _NOWHERE, 0, 0)
    except OSError as error:
        if error.errno != errno.EFAULT:
            raise


def _mind_masks(flags: int) -> None:
    if any(flags & flag and masks.masked(name) for flag, name in _MASKS):
        raise OSError(errno.EPERM, masks.REASON)


WALK = 25e-6
"""Seconds that it takes to go on by one number, where numbers cannot be chosen (`feign`), more or less."""


def can_choose() -> tuple[bool, str]:
    """Does `fork` take a number in the PID namespace we are in? Tried with a free one. Masked by
    TORPOR_WITHOUT=set_tid."""
    if masks.masked("set_tid"):
        return False, masks.REASON
    highest = int(proc.sysctl("kernel/pid_max") or 32768)
    for pid in range(highest - 1, max(300, highest - 100), -1):
        if os.path.exists(f"/proc/{pid}"):
            continue
        try:
            feign(pid)
        except FileExistsError:
            continue
        except OSError as error:
            way = "needs CAP_CHECKPOINT_RESTORE (root); else numbers are walked to"
            return False, f"{error.strerror}; {way}, up to {highest * WALK:.1f} s with kernel.pid_max {highest}"
        return True, ""
    return False, "no free number was found"


def probe() -> tuple[bool, str]:
    """Can a number be chosen right here, without a namespace?"""
    return can_choose()


def probe_copy() -> tuple[bool, str]:
    """Can a process make copies of its memory that keep none of its descriptors (tracee/snapshot.py)?"""
    if masks.masked("snapshot"):
        return False, masks.REASON
    try:
        feign(flags=VM | FILES | FS)
        # From the highest number on: nothing is closed.
        syscall(NR.close_range, (1 << 32) - 1, (1 << 32) - 1, 0)
    except OSError as error:
        return False, f"{error.strerror}; memory is saved while the job is stopped; needs Linux 5.9"
    return True, ""


def choose_inside() -> tuple[bool, str]:
    """To be called by PID 1 of a new PID namespace: can it choose the numbers of its children?"""
    feign(300)
    return True, ""
