"""The contents of a file, as chunks: read without a trace, with its holes, and written again.

A run of data is cut at multiples of CHUNK_SIZE of the file's offset, so that what did not change between two
checkpoints makes the same chunks. Holes (SEEK_DATA, SEEK_HOLE) are not stored.
"""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterator

import msgspec

from torpor.model.data import CHUNK_SIZE, Buffer, Ref, Sink, Source

_FICLONE = 0x40049409


class Extent(msgspec.Struct, frozen=True, array_like=True):
    """A run of data.

    Each chunk of `refs` reaches to the next multiple of CHUNK_SIZE or to the end of the run.
    """

    offset: int
    length: int
    refs: tuple[Ref, ...]


class Contents(msgspec.Struct, frozen=True):
    """All data of a file. What no extent covers reads as zeros."""

    size: int
    extents: tuple[Extent, ...] = ()


def reader(fd: int) -> int:
    """A new open file description of the same file, for reading: using it moves no offset of the other.

    Raises OSError (EACCES where we may not read the file, even if it is open for writing).
    """
    return os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_CLOEXEC | os.O_NOCTTY)


def writer(fd: int) -> int:
    """The same for reading and writing."""
    return os.open(f"/proc/self/fd/{fd}", os.O_RDWR | os.O_CLOEXEC | os.O_NOCTTY)


def reflink(fd: int, path: str) -> int:
    """A nameless clone of a file, made in no time whatever its size; -1 where the filesystem cannot.

    Source: ioctl_ficlone(2). The clone lies in the folder of `path`, as it must be on the same filesystem.
    """
    try:
        clone = os.open(os.path.dirname(path) or "/", os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
    except OSError:
        return -1
    try:
        source = reader(fd)
        try:
            fcntl.ioctl(clone, _FICLONE, source)
        finally:
            os.close(source)
        return clone
    except OSError:
        os.close(clone)
        return -1


def data_runs(fd: int, start: int, end: int) -> Iterator[tuple[int, int]]:
    """The parts of [start, end) of a file that hold data, as (start, end). Moves the offset of `fd`."""
    while start < end:
        try:
            data = os.lseek(fd, start, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:
                return  # only a hole up to the end
            if error.errno == errno.EINVAL:  # the filesystem knows no holes
                yield start, end
                return
            raise
        if data >= end:
            return
        hole = min(os.lseek(fd, data, os.SEEK_HOLE), end)
        if hole <= data:
            return
        yield data, hole
        start = hole


def pieces(start: int, end: int) -> Iterator[tuple[int, int]]:
    """[start, end) cut at multiples of CHUNK_SIZE, as (start, end)."""
    while start < end:
        stop = min(end, (start // CHUNK_SIZE + 1) * CHUNK_SIZE)
        yield start, stop
        start = stop


def store_file(fd: int, sink: Sink) -> Contents:
    """Put a file's data into the sink. `fd` may be any descriptor of it; its offset is not moved.

    The file must not change meanwhile. Raises OSError where the file cannot be read.
    """
    source = reader(fd)
    try:
        size = os.fstat(source).st_size
        room = memoryview(bytearray(min(CHUNK_SIZE, max(size, 1))))
        extents = []
        for start, end in data_runs(source, 0, size):
            refs = []
            stop = start
            for start_piece, stop in pieces(start, end):
                got = read_at(source, start_piece, room[: stop - start_piece])
                if got < stop - start_piece:  # it shrank under us; what is missing reads as zeros
                    room[got : stop - start_piece] = bytes(stop - start_piece - got)
                refs.append(sink.put(room[: stop - start_piece]))
            extents.append(Extent(start, stop - start, tuple(refs)))
        return Contents(size, tuple(extents))
    finally:
        os.close(source)


def chunks(contents: Contents, source: Source) -> Iterator[tuple[int, Buffer]]:
    """The saved data in order, as (offset, bytes). Raises Damaged."""
    for extent in contents.extents:
        for (start, stop), ref in zip(pieces(extent.offset, extent.offset + extent.length), extent.refs):
            data = source.get(ref)
            yield start, memoryview(data)[: stop - start]


def load_file(contents: Contents, source: Source, fd: int) -> None:
    """Give the data to an empty file that `fd` is open for writing. Raises OSError, Damaged."""
    os.ftruncate(fd, contents.size)
    for offset, data in chunks(contents, source):
        write_at(fd, offset, data)


def read_at(fd: int, offset: int, room: memoryview) -> int:
    """Fill `room` from `offset`; how much there was."""
    done = 0
    while done < len(room):
        got = os.preadv(fd, [room[done:]], offset + done)
        if not got:
            break
        done += got
    return done


def write_at(fd: int, offset: int, data: Buffer) -> None:
    """Write all of `data` at `offset`."""
    view = memoryview(data)
    done = 0
    while done < len(view):
        done += os.pwrite(fd, view[done:], offset + done)


def copy_range(source: int, start: int, end: int, target: int, shift: int) -> None:
    """Copy the data in [start, end) of one file to the same place plus `shift` in another.

    Holes stay holes.
    """
    room = memoryview(bytearray(min(1 << 20, max(end - start, 1))))
    for first, last in data_runs(source, start, end):
        at = first
        while at < last:
            got = read_at(source, at, room[: min(len(room), last - at)])
            if not got:
                return
            write_at(target, at + shift, room[:got])
            at += got
