"""Streams that the job inherited from outside at its start: a terminal, pipe, socket or file.

The other end is not ours to save, so a stream is never a reason to refuse: at the restart it is the
restarter's own standard stream of the same number. Only what the job itself had set comes with it:
O_NONBLOCK and O_APPEND; and if the restarter's stream is the very file that it was, the position (and the
length, as for any file that was written).

A pipe that still had something in it, and that nobody outside can write to any more, is the job's alone:
what is left is saved and read before the end of the stream.

Which descriptors are streams: torpor.posix.inherited.
"""

from __future__ import annotations

import os
import stat

import msgspec

from torpor.model.errors import RestartFailed
from torpor.posix import inherited, paths
from torpor.posix import pipe as pipes
from torpor.posix.descriptors import STATUS, duplicate, reopen, set_status, siblings, status_flags
from torpor.posix.paths import FileIdentity
from torpor.posix.rewind import cut_back
from torpor.posix.service import Descriptor, DescriptorBase, Job, Restart

_KEPT = os.O_NONBLOCK | os.O_APPEND
_KINDS = {
    stat.S_IFREG: "file",
    stat.S_IFIFO: "pipe",
    stat.S_IFSOCK: "socket",
    stat.S_IFDIR: "directory",
    stat.S_IFCHR: "device",
    stat.S_IFBLK: "device",
}


class InheritedStream(msgspec.Struct, frozen=True):
    """A stream from outside."""

    number: int
    """Its number at the start of the job; inherited.TERMINAL: the controlling terminal."""
    kind: str
    """'terminal', 'pipe', 'socket', 'file', 'directory', 'device'."""
    flags: int
    reopened: bool = False
    """Opened once more (/dev/tty, /proc/self/fd/N): a description of its own with flags of its own."""
    file: FileIdentity | None = None
    offset: int = 0
    """For a file: where the job stood in it."""
    known: bool = True
    """It was inherited for certain; False where a job was attached to by pid, and only the number speaks for it."""
    pipe: int = 0
    left: pipes.PipeData | None = None
    """What was left in a pipe that nobody could write to any more."""


class StreamService(DescriptorBase):
    name = "stream"
    record = InheritedStream

    def claims(self, seen: Descriptor) -> bool:
        return False  # not to be told from one descriptor alone: see inherited.role and services.choose

    def capture(self, fd: int, seen: Descriptor, job: Job) -> InheritedStream:
        number = inherited.role(seen, job)
        st = os.fstat(fd)
        kind = _KINDS.get(stat.S_IFMT(st.st_mode), "device")
        if inherited.is_terminal(st.st_mode, st.st_rdev):
            kind = "terminal"
        one = InheritedStream(number, kind, status_flags(fd), inherited.is_reopened(seen, job))
        if kind == "file":
            path = seen.target.removesuffix(paths.DELETED)
            offset = os.lseek(fd, 0, os.SEEK_CUR)
            known = any(stream.number == number and stream.fd >= 0 for stream in job.streams)
            return msgspec.structs.replace(one, file=paths.identity(fd, path), offset=offset, known=known)
        if kind == "pipe" and seen.access != os.O_WRONLY and pipes.other_end_closed(fd):
            packets = any(near.flags & os.O_DIRECT for near in siblings(seen, job))
            return msgspec.structs.replace(one, pipe=st.st_ino, left=pipes.store(fd, seen, job, packets))
        return one

    def create(self, record: InheritedStream, restart: Restart) -> int:
        if record.left is not None:
            return self._left_over(record, record.left, restart)
        source = self._source(record, restart)
        if record.file is not None and not record.known and _nothing_given(source):
            try:
                fd = os.open(record.file.path, (record.flags & (3 | STATUS)) | os.O_NOCTTY | os.O_CLOEXEC)
            except OSError as error:
                restart.say(f"{record.file.path}, standard stream {record.number}, cannot be opened: {error.strerror}")
            else:
                restart.say(f"standard stream {record.number} goes on in {record.file.path}, as no other was given")
                return fd
        if source < 0:
            if record.kind == "terminal":
                try:  # the restarter's own terminal, though none of its streams is one
                    fd = os.open("/dev/tty", (record.flags & 3) | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
                    set_status(fd, record.flags)
                    return fd
                except OSError:
                    pass
            restart.say(_lost(record))
            # A pipe in packets (pipe(2)) has O_DIRECT, which no device is opened with.
            return os.open("/dev/null", (record.flags & (3 | STATUS) & ~os.O_DIRECT) | os.O_CLOEXEC)
        if record.reopened:
            try:
                return reopen(source, record.flags)
            except OSError:
                pass  # a socket, or another user's terminal: share the description then
        fd = duplicate(source)
        now = status_flags(fd)
        if record.flags & _KEPT & ~now:
            restart.on_failure(lambda: set_status(source, now))
            set_status(fd, now | (record.flags & _KEPT))
        return fd

    def finish(self, record: InheritedStream, fd: int, restart: Restart) -> None:
        file = record.file
        if file is None:
            return
        st = os.fstat(fd)
        if (st.st_dev, st.st_ino) != (file.dev, file.ino):
            return
        was = os.lseek(fd, 0, os.SEEK_CUR)
        restart.on_failure(lambda: _seek(fd, was))
        writable = record.flags & 3 != os.O_RDONLY
        if writable and st.st_size < file.size:
            # Most often emptied by the shell that gave it to us (> FILE).
            restart.say(f"{file.path} is shorter than at the checkpoint: output goes on at its end")
            os.lseek(fd, 0, os.SEEK_END)
            return
        if writable and restart.files != "keep":
            cut_back(fd, file, restart)
        os.lseek(fd, record.offset, os.SEEK_SET)

    def _source(self, record: InheritedStream, restart: Restart) -> int:
        """Our descriptor that stands for it now, -1 if there is none."""
        if 0 <= record.number < len(restart.standard):
            return restart.standard[record.number]
        if record.kind == "terminal":
            return next((fd for fd in restart.standard if os.isatty(fd)), -1)
        return -1

    def _left_over(self, record: InheritedStream, left: pipes.PipeData, restart: Restart) -> int:
        """A pipe with what was left in it and nobody to write to it."""

        def make() -> tuple[int, int]:
            ends = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
            try:
                pipes.fill(ends[1], left, restart)
            finally:
                os.close(ends[1])
            return ends

        try:
            ends: tuple[int, int] = restart.shared(("stream", record.pipe), make, lambda made: os.close(made[0]))
            fd = reopen(ends[0], record.flags) if record.reopened else duplicate(ends[0])
        except OSError as error:
            raise RestartFailed(f"cannot open standard input again: {error.strerror}") from None
        set_status(fd, record.flags)
        return fd


def _nothing_given(fd: int) -> bool:
    """Has nobody said where this stream shall lead? (A terminal or /dev/null is what one has without saying.)"""
    if fd < 0:
        return True
    st = os.fstat(fd)
    null = stat.S_ISCHR(st.st_mode) and st.st_rdev == os.makedev(1, 3)
    return null or inherited.is_terminal(st.st_mode, st.st_rdev)


def _seek(fd: int, offset: int) -> None:
    try:
        os.lseek(fd, offset, os.SEEK_SET)
    except OSError:
        pass  # closed already: the description was given back


def _lost(record: InheritedStream) -> str:
    if record.number == inherited.TERMINAL:
        return "the job's terminal is /dev/null now"
    return f"descriptor {record.number} ({record.kind}), inherited from outside, is /dev/null now"


SERVICE = StreamService()
