"""signalfd(2)."""

from __future__ import annotations

import ctypes
import os

from torpor.linux.libc import libc

_SIGSET_SIZE = 128  # sigset_t of the C library; the kernel looks at the first 8 bytes

_signalfd = libc.signalfd
_signalfd.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_int]
_signalfd.restype = ctypes.c_int


def create(mask: int, flags: int) -> int:
    """A new signalfd for a set of signals (bit n - 1 is signal n). flags: os.O_NONBLOCK, os.O_CLOEXEC."""
    return _make(-1, mask, flags)


def change(fd: int, mask: int) -> None:
    """From now on it is for another set of signals. Who waits for it is told of one that is pending (fs/signalfd.c)."""
    _make(fd, mask, 0)


def _make(fd: int, mask: int, flags: int) -> int:
    room = ctypes.create_string_buffer(mask.to_bytes(8, "little"), _SIGSET_SIZE)
    made: int = _signalfd(fd, ctypes.addressof(room), flags)
    if made < 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
    return made


def probe() -> tuple[bool, str]:
    """Does this machine have it?"""
    try:
        os.close(create(0, os.O_CLOEXEC))
        return True, ""
    except OSError as error:
        return False, str(error.strerror)
