"""Named pipes (FIFOs).

The kernel keeps for one what it keeps for an anonymous pipe (posix/pipe.py), for as long as anybody has it open, on
the inode that its name leads to: whoever opens that name gets the same pipe. What is in it is looked at and put back
as there. The FIFO must still be at its path; if it is gone it is made again and that is said. One that has no name
any more is made again without one.

A FIFO whose other end a process outside the job has open is refused. So is, at the restart, one in which something
is: somebody else uses it now. A reader that has not seen a writer yet is not told of an end (POLLHUP); it stays so.

Source: fs/pipe.c (fifo_open), fifo(7).
"""

from __future__ import annotations

import os
import select
import stat

import msgspec

from torpor.linux import pipes, proc
from torpor.model.errors import Refusal, RestartFailed
from torpor.posix import outside, paths
from torpor.posix.descriptors import O_PATH, is_type, reopen, set_status, siblings, status_flags
from torpor.posix.directory import missing
from torpor.posix.inherited import has_both_ends
from torpor.posix.pipe import PipeData, fill, kept
from torpor.posix.service import Descriptor, DescriptorBase, Job, Restart

_WAY_OUT = "start both ends in one job, or close it before the checkpoint"


class NamedPipe(msgspec.Struct, frozen=True):
    """An open file description of a FIFO. name: its path; ino: which FIFO of the job it is."""

    name: bytes
    ino: int
    mode: int
    flags: int
    capacity: int
    deleted: bool = False
    fresh: bool = False
    """Open for reading, and no writer has ever been there since."""
    data: PipeData | None = None
    """Here only in the record of the holder, and only if there is any."""


class FifoService(DescriptorBase):
    name = "fifo"
    record = NamedPipe

    def claims(self, seen: Descriptor) -> bool:
        return is_type(seen, stat.S_IFIFO) and seen.target.startswith("/")

    def survey(self, seen: Descriptor, job: Job) -> Refusal | None:
        if has_both_ends(seen, job):
            return None
        holder = outside.pipe_holder(seen, job)
        if holder:
            who = f"{seen.target}, a named pipe whose other end is open outside the job (process {holder}, "
            return seen.refuse(f"{who}{proc.comm(holder)})", _WAY_OUT)
        return None

    def capture(self, fd: int, seen: Descriptor, job: Job) -> NamedPipe:
        near = [one for one in siblings(seen, job) if not one.flags & O_PATH]
        data = kept(fd, seen, job)
        deleted = paths.is_deleted(seen.target, seen.dev, seen.ino)
        path = seen.target.removesuffix(paths.DELETED) if deleted else seen.target
        fresh = all(one.access == os.O_RDONLY for one in near) and not _hung_up(fd)
        mode = stat.S_IMODE(seen.mode)
        return NamedPipe(
            os.fsencode(path), seen.ino, mode, status_flags(fd), pipes.capacity(fd), deleted, fresh, data
        )  # fmt: skip

    def create(self, record: NamedPipe, restart: Restart) -> int:
        path = os.fsdecode(record.name)
        try:
            both: _Both = restart.shared(("fifo", record.ino), lambda: _Both(record, restart), _Both.close)
            if record.data is not None:
                fill(both.fd, record.data, restart)
            fd = reopen(both.fd, record.flags)
        except OSError as error:
            raise RestartFailed(f"cannot open the named pipe {path} again: {error.strerror}") from None
        set_status(fd, record.flags)
        return fd


class _Both:
    """A FIFO that is being opened again: held open for both (or, where no writer may be seen, for reading) until every
    object on it exists."""

    def __init__(self, record: NamedPipe, restart: Restart) -> None:
        path = os.fsdecode(record.name)
        where, made = path, False
        if record.deleted:
            where, made = _make_beside(path), True
        elif not os.path.lexists(path):
            try:
                os.mkfifo(path, 0o600)
            except FileNotFoundError:
                raise missing(path, "is gone, and so is its folder") from None
            restart.on_failure(lambda: os.unlink(path))
            restart.say(f"{path}: the named pipe was gone and has been made again")
            made = True
        if not stat.S_ISFIFO(os.stat(where).st_mode):
            raise missing(path, "is not a named pipe any more")
        access = os.O_RDONLY if record.fresh else os.O_RDWR
        self.fd = os.open(where, access | os.O_NONBLOCK | os.O_CLOEXEC)
        if record.deleted:
            os.unlink(where)
        if made:
            os.fchmod(self.fd, record.mode)
        if pipes.unread(self.fd):
            self.close()
            raise missing(path, "is in use: a named pipe with something in it", "end whoever uses it")
        if pipes.capacity(self.fd) != record.capacity:
            try:
                pipes.set_capacity(self.fd, record.capacity)
            except OSError as error:
                self.close()
                thing = f"cannot give the named pipe {path} {record.capacity} bytes"
                raise RestartFailed(f"{thing}: {error.strerror} (see fs.pipe-max-size)") from None

    def close(self) -> None:
        os.close(self.fd)


def _make_beside(path: str) -> str:
    """A new FIFO of that name, or of a similar one where it is taken, or in the folder for temporary files."""
    folder, base = os.path.split(path)
    for place in (folder, os.environ.get("TMPDIR", "/tmp")):
        for name in (base, *(f"{base}.{count}" for count in range(2, 100))):
            try:
                os.mkfifo(f"{place}/{name}", 0o600)
                return f"{place}/{name}"
            except FileExistsError:
                continue
            except OSError:
                break
    raise RestartFailed(f"cannot make the named pipe {path} (deleted) again")


def _hung_up(fd: int) -> bool:
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return any(events & select.POLLHUP for _, events in poll.poll(0))


SERVICE = FifoService()
