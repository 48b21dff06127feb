"""The C library, and raw system calls through it."""

from __future__ import annotations

import ctypes
import os

libc = ctypes.CDLL(None, use_errno=True)

_syscall = libc.syscall
_syscall.restype = ctypes.c_long
_long = ctypes.c_long


def syscall(nr: int, *args: int) -> int:
    """Make a system call with integer (or address) arguments. Raises OSError.

    Every argument is wrapped: ctypes passes plain Python ints as 32-bit.
    """
    result: int = _syscall(_long(nr), *[_long(arg) for arg in args])
    if result == -1:
        error = ctypes.get_errno()
        if error:
            raise OSError(error, os.strerror(error))
    return result
