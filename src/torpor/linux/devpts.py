"""A devpts of our own: pseudo-terminals whose numbers are free to choose.

Every mount of devpts is an instance of its own (since Linux 4.7), and /dev/ptmx leads to the one at the `pts` beside
it. The instance is made as a mount that hangs nowhere, by a child that shares our descriptors; whoever has the
descriptor can make pairs in it, and a process with CAP_SYS_ADMIN over its own mount namespace can hang it up there. So
it works without privilege, too: the child is in a user namespace of its own.

Source: Documentation/filesystems/devpts.rst, fsopen(2), fsmount(2), move_mount(2).
"""

from __future__ import annotations

import ctypes
import os

from torpor.linux import clone, masks, namespaces
from torpor.linux.arch.x86_64 import NR
from torpor.linux.libc import syscall

_SET_STRING, _CREATE = 1, 6
_MOVE_EMPTY_PATH = 4
_AT_FDCWD = -100


def make() -> int:
    """A descriptor of a new instance's root. Raises OSError. Masked by TORPOR_WITHOUT=devpts."""
    if masks.masked("devpts"):
        raise OSError(1, masks.REASON)
    user = namespaces.user_needed()
    ids = os.getuid(), os.getgid()

    def mount() -> int:
        if user:
            namespaces.map_ids(*ids)
        name = ctypes.create_string_buffer(b"devpts")
        fs = syscall(NR.fsopen, ctypes.addressof(name), 0)
        for key, value in ((b"ptmxmode", b"0666"), (b"mode", b"0620")):
            one, two = ctypes.create_string_buffer(key), ctypes.create_string_buffer(value)
            syscall(NR.fsconfig, fs, _SET_STRING, ctypes.addressof(one), ctypes.addressof(two), 0)
        syscall(NR.fsconfig, fs, _CREATE, 0, 0, 0)
        made = syscall(NR.fsmount, fs, 0, 0)
        os.close(fs)
        return made

    try:
        return clone.made_apart(mount, clone.NEWNS | (clone.NEWUSER if user else 0))
    except OSError as error:
        raise OSError(error.errno, error.strerror, "devpts") from None


def hang(instance: int, path: str = "/dev/pts") -> None:
    """Hang the instance up in our mount namespace. Raises OSError."""
    empty = ctypes.create_string_buffer(b"")
    target = ctypes.create_string_buffer(os.fsencode(path))
    syscall(NR.move_mount, instance, ctypes.addressof(empty), _AT_FDCWD, ctypes.addressof(target), _MOVE_EMPTY_PATH)


def probe() -> tuple[bool, str]:
    """Can we have one?"""
    os.close(make())
    return True, ""
