"""Pipes: tee(2), which duplicates what is in a pipe without consuming it, and the size of a pipe.

tee copies references to the pipe's buffers, at most as many as the receiving pipe has slots; packet
boundaries (O_DIRECT) stay. Source: tee(2), pipe(7), fs/splice.c (link_pipe).
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import struct
import termios

from torpor.linux.libc import libc

O_DIRECT = os.O_DIRECT
NONBLOCK = 2  # SPLICE_F_NONBLOCK

_tee = libc.tee
_tee.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_size_t, ctypes.c_uint]
_tee.restype = ctypes.c_ssize_t


def tee(source: int, target: int, size: int) -> int:
    """Duplicate up to `size` bytes from one pipe into another.

    Never waits. 0: nothing there. Raises OSError.
    """
    done: int = _tee(source, target, size, NONBLOCK)
    if done < 0:
        error = ctypes.get_errno()
        if error == errno.EAGAIN:
            return 0
        raise OSError(error, os.strerror(error))
    return done


def unread(fd: int) -> int:
    """Bytes in a pipe (FIONREAD)."""
    room = fcntl.ioctl(fd, termios.FIONREAD, b"\0\0\0\0")
    return int(struct.unpack("i", room)[0])


def capacity(fd: int) -> int:
    """Size of a pipe in bytes."""
    return fcntl.fcntl(fd, fcntl.F_GETPIPE_SZ)


def set_capacity(fd: int, size: int) -> None:
    """Give a pipe this size.

    Raises PermissionError above fs.pipe-max-size or the user's fs.pipe-user-pages-soft.
    """
    if capacity(fd) != size:
        fcntl.fcntl(fd, fcntl.F_SETPIPE_SZ, size)


def probe() -> tuple[bool, str]:
    """Does this machine have it?"""
    source, target = os.pipe(), os.pipe()
    try:
        os.write(source[1], b"x")
        return tee(source[0], target[1], 1) == 1, ""
    except OSError as error:
        return False, str(error.strerror)
    finally:
        for fd in (*source, *target):
            os.close(fd)
