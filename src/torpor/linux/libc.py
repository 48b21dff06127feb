"""The C library, and raw system calls through it."""

from __future__ import annotations

import ctypes
import os

libc = ctypes.CDLL(None, use_errno=True)

_syscall = libc.syscall
_syscall.restype = ctypes.c_long
_syscall.argtypes = [ctypes.c_long] * 7
_ZEROS = (0,) * 6


def syscall(nr: int, *args: int) -> int:
    """Make a system call with at most six integer (or address) arguments, those not given being 0. Raises OSError.

    (Their type is declared: without that, ctypes passes Python ints as 32-bit.)
    """
    result: int = _syscall(nr, *args, *_ZEROS[len(args) :])
    if result == -1:
        error = ctypes.get_errno()
        if error:
            raise OSError(error, os.strerror(error))
    return result
