"""Memory of another process: process_vm_readv(2), process_vm_writev(2), process_madvise(2) and /proc/PID/mem."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import struct
from collections.abc import Iterator
from typing import Any

from torpor.linux import proc
from torpor.linux.arch.x86_64 import NR
from torpor.linux.libc import libc, syscall


class IoVec(ctypes.Structure):
    """struct iovec."""

    _fields_ = [("base", ctypes.c_void_p), ("length", ctypes.c_size_t)]


_arguments: list[Any] = [ctypes.c_int, ctypes.c_void_p, ctypes.c_ulong, ctypes.c_void_p, ctypes.c_ulong, ctypes.c_ulong]
_readv = libc.process_vm_readv
_readv.argtypes, _readv.restype = _arguments, ctypes.c_ssize_t
_writev = libc.process_vm_writev
_writev.argtypes, _writev.restype = _arguments, ctypes.c_ssize_t


def _vectors(ranges: list[tuple[int, int]]) -> Any:
    """An iovec array from (address, size) pairs."""
    vectors = (IoVec * len(ranges))()
    for vector, (address, size) in zip(vectors, ranges):
        vector.base, vector.length = address, size
    return vectors


def _move(function: Any, what: str, pid: int, local: int, size: int, ranges: list[tuple[int, int]]) -> None:
    near = IoVec(local, size)
    far = _vectors(ranges)
    done = function(pid, ctypes.addressof(near), 1, ctypes.addressof(far), len(ranges), 0)
    if done != size:
        error = ctypes.get_errno() if done < 0 else 14  # a partial transfer ends at a bad page: EFAULT
        raise OSError(error, f"{os.strerror(error)}: {what} {size} bytes at {ranges[0][0]:#x} of process {pid}")


def read(pid: int, address: int, size: int) -> bytes:
    """`size` bytes at `address`. Raises OSError (EFAULT where any of it cannot be read)."""
    room = ctypes.create_string_buffer(size)
    _move(_readv, "reading", pid, ctypes.addressof(room), size, [(address, size)])
    return room.raw


MOST = 1024
"""Ranges that one call takes (UIO_MAXIOV)."""


def read_words(pid: int, addresses: list[int]) -> list[int]:
    """Words of eight bytes, at one to `MOST` addresses. Raises OSError (EFAULT where one of them cannot be read)."""
    count = len(addresses)
    room = bytearray(8 * count)
    near = IoVec(address_of(room), len(room))
    far = bytearray(struct.pack(f"<{2 * count}Q", *[word for address in addresses for word in (address, 8)]))
    done = _readv(pid, ctypes.addressof(near), 1, address_of(far), count, 0)
    if done != len(room):
        error = ctypes.get_errno() if done < 0 else errno.EFAULT
        raise OSError(error, f"{os.strerror(error)}: reading {count} words of process {pid}")
    return list(struct.unpack(f"<{count}Q", room))


def write(pid: int, address: int, data: bytes) -> None:
    """Write to memory that the process itself could write. Raises OSError (EFAULT)."""
    if data:
        room = ctypes.create_string_buffer(data, len(data))
        _move(_writev, "writing", pid, ctypes.addressof(room), len(data), [(address, len(data))])


def write_from(pid: int, ranges: list[tuple[int, int]], local: int, size: int) -> None:
    """Scatter `size` bytes of our memory at `local` to at most 1024 (address, size) ranges."""
    _move(_writev, "writing", pid, local, size, ranges)


def unshare(pid: int, address: int, size: int) -> None:
    """Have a process take pages of its own for those that it shares with another since a fork, as if it had written to
    them. Its memory must be there: a page that is not may come to be. Raises OSError if the process is gone.

    It is read into nowhere. To read, the kernel pins a page, and one that is shared is not pinned: it is copied first,
    since Linux 5.19 (mm/gup.c, gup_must_unshare). 4 MiB at once (mm/process_vm_access.c), of which only the first are
    taken in hand if there are more.
    """
    _touch(_readv, pid, address, size)


def claim(pid: int, address: int, size: int) -> None:
    """Have the kernel do now what it would do at a process' first write to each of these pages, at most 4 MiB of them;
    no byte is written. Raises OSError if the process is gone.

    Something from nowhere is written there: to write, the kernel makes a page writable, and pins it; to read what is to
    be written fails, at the first byte (mm/process_vm_access.c, process_vm_rw_pages; lib/iov_iter.c fills nothing up).
    """
    _touch(_writev, pid, address, size)


_NOWHERE = 4096
"""Never mapped: below vm.mmap_min_addr."""


def _touch(function: Any, pid: int, address: int, size: int) -> None:
    near, far = IoVec(_NOWHERE, size), IoVec(address, size)
    if function(pid, ctypes.addressof(near), 1, ctypes.addressof(far), 1, 0) < 0:
        error = ctypes.get_errno()
        if error != errno.EFAULT:
            raise OSError(error, f"{os.strerror(error)}: {size} bytes at {address:#x} of process {pid}")


MADV_COLLAPSE = 25


def collapse(pidfd: int, address: int, size: int) -> None:
    """Have the kernel make huge pages of the pages of a process there, whole ones (Linux 6.1, needs CAP_SYS_NICE). The
    process has to wait where it comes to one that is just being made. Raises OSError: EPERM, ESRCH; ENOMEM where there
    are none to be had, EAGAIN or EINVAL where some could not be made."""
    range_ = IoVec(address, size)
    syscall(NR.process_madvise, pidfd, ctypes.addressof(range_), 1, MADV_COLLAPSE, 0)


class Memory:
    """The memory of a process as a file, /proc/PID/mem: what passes over page protection of private mappings
    (FOLL_FORCE). A program that the process executes later has other memory.

    It is opened at the first use and kept open, but for those that are one too many: a job may have more processes than
    we may have descriptors. Raises OSError: ESRCH where the process has ended, EIO for an address that is not mapped.
    """

    MOST = 200
    """So many are kept open."""

    _kept = 0

    def __init__(self, pid: int) -> None:
        self._pid, self._fd = pid, -1

    def read(self, address: int, size: int) -> bytes:
        """As many bytes as there are, `size` at most."""
        fd = self._fd if self._fd >= 0 else self._open()
        try:
            return os.pread(fd, size, address)
        finally:
            if fd != self._fd:
                os.close(fd)

    def write(self, address: int, data: bytes | memoryview) -> None:
        """All of `data`."""
        fd = self._fd if self._fd >= 0 else self._open()
        try:
            written = os.pwrite(fd, data, address)
            while written < len(data):
                part = os.pwrite(fd, memoryview(data)[written:], address + written)
                if not part:
                    raise ProcessLookupError(errno.ESRCH, os.strerror(errno.ESRCH))  # its memory is gone
                written += part
        finally:
            if fd != self._fd:
                os.close(fd)

    @contextlib.contextmanager
    def opened(self) -> Iterator[int]:
        """A descriptor of it, which stays open meanwhile."""
        fd = self._fd if self._fd >= 0 else self._open()
        try:
            yield fd
        finally:
            if fd != self._fd:
                os.close(fd)

    def _open(self) -> int:
        fd = proc.open_memory(self._pid, "mem", os.O_RDWR)
        if Memory._kept < Memory.MOST:
            Memory._kept += 1
            self._fd = fd
        return fd

    def close(self) -> None:
        """Idempotent."""
        if self._fd >= 0:
            Memory._kept -= 1
            os.close(self._fd)
            self._fd = -1


def force_write(pid: int, address: int, data: bytes | memoryview) -> None:
    """One write to the `Memory` of a process. Raises OSError."""
    memory = Memory(pid)
    try:
        memory.write(address, data)
    finally:
        memory.close()


def force_read(pid: int, address: int, size: int) -> bytes:
    """Read through /proc/PID/mem: also what the process itself may not read (PROT_NONE)."""
    fd = proc.open_memory(pid, "mem")
    try:
        return os.pread(fd, size, address)
    finally:
        os.close(fd)


def address_of(buffer: Any) -> int:
    """The address of a writable buffer (bytearray, mmap); it must be kept alive by the caller."""
    return ctypes.addressof(ctypes.c_char.from_buffer(buffer))


def address_of_readonly(view: memoryview) -> int:
    """The address of a contiguous buffer that may be read-only, for as long as its owner lives."""
    return _address_of_object(view)


class _PyBuffer(ctypes.Structure):
    """Py_buffer (Include/cpython/object.h)."""

    _fields_ = [
        ("buf", ctypes.c_void_p),
        ("obj", ctypes.py_object),
        ("len", ctypes.c_ssize_t),
        ("itemsize", ctypes.c_ssize_t),
        ("readonly", ctypes.c_int),
        ("ndim", ctypes.c_int),
        ("format", ctypes.c_char_p),
        ("shape", ctypes.c_void_p),
        ("strides", ctypes.c_void_p),
        ("suboffsets", ctypes.c_void_p),
        ("internal", ctypes.c_void_p),
    ]


def _address_of_object(thing: object) -> int:
    view = _PyBuffer()
    ctypes.pythonapi.PyObject_GetBuffer(ctypes.py_object(thing), ctypes.byref(view), 0)
    try:
        return int(view.buf or 0)
    finally:
        ctypes.pythonapi.PyBuffer_Release(ctypes.byref(view))


def probe() -> tuple[bool, str]:
    """Can another process' memory be read? (Tried with our own.)"""
    here = ctypes.create_string_buffer(b"memory", 6)
    try:
        return read(os.getpid(), ctypes.addressof(here), 6) == b"memory", ""
    except OSError as error:
        return False, f"{error.strerror}; needs CONFIG_CROSS_MEMORY_ATTACH, and no filter on process_vm_readv(2)"
