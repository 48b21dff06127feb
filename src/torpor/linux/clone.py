"""clone3(2): a fork with a chosen pid, in new namespaces if asked for."""

from __future__ import annotations

import ctypes
import struct

from torpor.linux.arch.x86_64 import NR
from torpor.linux.libc import syscall

NEWTIME = 0x80
VM, FS, FILES, SIGHAND, THREAD, SYSVSEM = 0x100, 0x200, 0x400, 0x800, 0x10000, 0x40000
NEWNS, NEWIPC, NEWUSER, NEWPID = 0x20000, 0x8000000, 0x10000000, 0x20000000

SIZE = 88
"""Bytes of struct clone_args with set_tid and cgroup (CLONE_ARGS_SIZE_VER2)."""


def arguments(flags: int, exit_signal: int, set_tid: int, tids: int) -> bytes:
    """struct clone_args. set_tid: address of an array of `tids` pids, innermost namespace first (0, 0 for none)."""
    return struct.pack("<11Q", flags, 0, 0, 0, exit_signal, 0, 0, 0, set_tid, tids, 0)


def fork(pid: int = 0, flags: int = 0) -> int:
    """Fork; 0 in the child. pid: the number it shall have (0: any). Raises OSError (EEXIST: taken, EPERM).

    Without CAP_CHECKPOINT_RESTORE or CAP_SYS_ADMIN over the pid namespace a pid cannot be chosen. The child must not
    be forked while other threads of ours run: what they hold stays locked in it.
    """
    room = ctypes.c_int(pid)
    args = ctypes.create_string_buffer(
        arguments(flags, 17, ctypes.addressof(room) if pid else 0, 1 if pid else 0), SIZE
    )
    return syscall(NR.clone3, ctypes.addressof(args), SIZE)
