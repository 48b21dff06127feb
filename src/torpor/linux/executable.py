"""Machine code of our own in our own process: a page that is never writable and executable at once (PR_SET_MDWE allows
it), mapped from a memfd. A security module may forbid it (SELinux, execmem)."""

from __future__ import annotations

import ctypes
import mmap
import os

from torpor.linux.libc import libc


def place(code: bytes) -> int:
    """The address of a new page that begins with `code`, for munmap(2) or for good. Raises OSError where it is
    forbidden."""
    mmap_ = libc.mmap
    mmap_.restype = ctypes.c_void_p
    mmap_.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
    fd = os.memfd_create("code", os.MFD_CLOEXEC)
    try:
        os.write(fd, code)
        page = mmap_(None, mmap.PAGESIZE, mmap.PROT_READ | mmap.PROT_EXEC, mmap.MAP_PRIVATE, fd, 0)
    finally:
        os.close(fd)
    if page is None or page == ctypes.c_void_p(-1).value:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error), "executable memory")
    return int(page)
