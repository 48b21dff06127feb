"""Anonymous pipes.

The kernel keeps for one: what was written and not read, in pages, each perhaps a packet of its own
(written under O_DIRECT); a capacity; how many descriptions can read and write it. Each end may have
several open file descriptions, with flags of their own: those that were opened through /proc/PID/fd once
more (they carry O_LARGEFILE, the two made by pipe() do not).

What is in a pipe is duplicated with tee(2) into a pipe of ours, which consumes nothing and keeps packets
apart, and read there. One object (the *holder*, the first that can be read) has the data; a pipe that
nobody can read needs none. An end that was closed everywhere is closed again by itself: at the restart
the pair is closed when all objects are made.

A pipe whose other end is open outside the job is not the job's alone: it is an inherited stream or refused.
"""

from __future__ import annotations

import os
import select
import stat

import msgspec

from torpor.linux import pipes, proc
from torpor.model.data import CHUNK_SIZE
from torpor.model.errors import Refusal, Refused, RestartFailed
from torpor.posix import inherited, outside
from torpor.posix.descriptors import (
    O_LARGEFILE,
    O_PATH,
    duplicate,
    first_object,
    is_type,
    reopen,
    set_status,
    siblings,
    status_flags,
)
from torpor.posix.service import Descriptor, DescriptorBase, Job, Restart

_WAY_OUT = "start both ends in one job (torpor run -- sh -c 'a | b'), or close it before the checkpoint"


class PipeData(msgspec.Struct, frozen=True):
    """What is in a pipe: chunks, and, where packet boundaries count, the sizes of the packets."""

    refs: tuple[int, ...]
    size: int
    packets: tuple[int, ...] = ()


class PipeEnd(msgspec.Struct, frozen=True):
    """An open file description of a pipe."""

    pipe: int
    """Its inode number: which pipe of the job it is."""
    flags: int
    capacity: int
    data: PipeData | None = None
    """Here only in the record of the holder, and only if there is any."""


class PipeService(DescriptorBase):
    name = "pipe"
    record = PipeEnd

    def claims(self, seen: Descriptor) -> bool:
        return is_type(seen, stat.S_IFIFO) and seen.target.startswith("pipe:[")

    def survey(self, seen: Descriptor, job: Job) -> Refusal | None:
        if inherited.has_both_ends(seen, job):
            return None
        holder = outside.pipe_holder(seen, job)
        if holder:
            return _refusal(seen, f" (process {holder}, {proc.comm(holder)})")
        return None  # closed everywhere, or held by somebody we may not look at: told in capture

    def capture(self, fd: int, seen: Descriptor, job: Job) -> PipeEnd:
        if not inherited.has_both_ends(seen, job) and not other_end_closed(fd):
            raise Refused([_refusal(seen, "")])
        return PipeEnd(seen.ino, status_flags(fd), pipes.capacity(fd), kept(fd, seen, job))

    def create(self, record: PipeEnd, restart: Restart) -> int:
        pair: _Pair = restart.shared(("pipe", record.pipe), lambda: _Pair(record.capacity), _Pair.close)
        try:
            if record.data is not None:
                fill(pair.ends[1], record.data, restart)
            fd = pair.open(record.flags)
        except OSError as error:
            raise RestartFailed(f"cannot open a pipe again: {error.strerror}") from None
        set_status(fd, record.flags)
        return fd


class _Pair:
    """A pipe that is being made again: both ends, kept open until every object on it exists."""

    def __init__(self, capacity: int) -> None:
        self.ends = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self.given = [False, False]
        try:
            pipes.set_capacity(self.ends[1], capacity)
        except OSError as error:
            self.close()
            raise RestartFailed(
                f"cannot make a pipe of {capacity} bytes: {error.strerror} (see fs.pipe-max-size and "
                "fs.pipe-user-pages-soft in proc_sys_fs(5))"
            ) from None

    def open(self, flags: int) -> int:
        """A description with these flags; the two that pipe() made are for those without O_LARGEFILE."""
        side = int(flags & 3 == os.O_WRONLY)
        if flags & 3 != os.O_RDWR and not flags & O_LARGEFILE and not self.given[side]:
            self.given[side] = True
            return duplicate(self.ends[side])
        return reopen(self.ends[side], flags)

    def close(self) -> None:
        for fd in self.ends:
            os.close(fd)


def kept(fd: int, seen: Descriptor, job: Job) -> PipeData | None:
    """What is in a pipe or FIFO, in the record of its holder: the first object that can be read. None in others."""
    near = [one for one in siblings(seen, job) if not one.flags & O_PATH]
    holder = first_object([one for one in near if one.access != os.O_WRONLY], job)
    if seen.access == os.O_WRONLY or holder not in (job.object_of(seen.pid, seen.number), -1):
        return None
    return store(fd, seen, job, any(one.flags & os.O_DIRECT for one in near))


def store(fd: int, seen: Descriptor, job: Job, packets: bool) -> PipeData | None:
    """What is in the pipe that `fd` can read, put into the sink; None if it is empty. Consumes nothing."""
    found = peek(fd)
    if found is None:
        thing = "a pipe with more in it than can be looked at"
        raise Refused([seen.refuse(thing, "raise fs.pipe-user-pages-soft or fs.pipe-max-size")])
    if not found:
        return None
    whole = memoryview(b"".join(found))
    refs = tuple(job.sink.put(whole[at : at + CHUNK_SIZE]) for at in range(0, len(whole), CHUNK_SIZE))
    # A read of everything at once stops early only at the end of a packet; no packet is larger than PIPE_BUF.
    packets = len(found) > 1 or (packets and len(whole) <= select.PIPE_BUF)
    sizes = tuple(len(one) for one in found) if packets else ()
    return PipeData(refs, len(whole), sizes)


def peek(fd: int) -> list[bytes] | None:
    """What is in the pipe, as reads of unlimited size would give it.

    None if our own pipe cannot hold all of it.
    """
    size = pipes.unread(fd)
    if not size:
        return []
    source, target = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        try:
            pipes.set_capacity(target, max(pipes.capacity(fd), pipes.capacity(target)))
        except OSError:
            pass  # it may fit all the same
        if pipes.tee(fd, target, size) < size:
            return None  # a second tee would start at the front again
        found = []
        while size:
            found.append(os.read(source, size))
            size -= len(found[-1])
        return found
    finally:
        os.close(source)
        os.close(target)


def fill(fd: int, data: PipeData, restart: Restart) -> None:
    """Write what was in the pipe into the new one. Raises RestartFailed where it does not fit."""
    whole = memoryview(b"".join(bytes(restart.source.get(ref)) for ref in data.refs))[: data.size]
    writer = reopen(fd, os.O_WRONLY | os.O_NONBLOCK)
    try:
        at = 0
        for size in data.packets or (data.size,):
            # Larger than a packet can be: bytes written without packets, before one or at the end.
            plain = 0 if size <= select.PIPE_BUF and data.packets else size
            if plain and at + plain < data.size:
                plain -= select.PIPE_BUF
            set_status(writer, os.O_NONBLOCK)
            at += _write(writer, whole[at : at + plain])
            if plain < size:
                set_status(writer, os.O_NONBLOCK | os.O_DIRECT)
                at += _write(writer, whole[at : at + size - plain])
    except BlockingIOError:
        raise RestartFailed(
            f"a pipe cannot take the {data.size} bytes that were in it (see fs.pipe-user-pages-soft in proc_sys_fs(5))"
        ) from None
    finally:
        os.close(writer)


def _write(fd: int, data: memoryview) -> int:
    done = 0
    while done < len(data):
        done += os.write(fd, data[done:])
    return done


def other_end_closed(fd: int) -> bool:
    """Is nobody left who could write to (read from) the pipe that `fd` reads from (writes to)?"""
    poll = select.poll()
    poll.register(fd, select.POLLIN | select.POLLOUT)
    return any(events & (select.POLLHUP | select.POLLERR) for _, events in poll.poll(0))


def _refusal(seen: Descriptor, who: str) -> Refusal:
    return seen.refuse(f"a pipe whose other end is open outside the job{who}", _WAY_OUT)


SERVICE = PipeService()
