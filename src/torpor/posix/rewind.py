"""Bringing a file that the job wrote to back to what it was at the checkpoint.

Either its length (`cut_back`: what was written since is kept beside it) or its contents too (`put_back`,
where the checkpoint has them). Both may be called twice for one file; the second call finds nothing to
do. Both are undone if the restart fails later.
"""

from __future__ import annotations

import os

from torpor.model.errors import RestartFailed
from torpor.posix.contents import Contents, chunks, copy_range, read_at, write_at, writer
from torpor.posix.paths import FileIdentity
from torpor.posix.service import Restart


def cut_back(fd: int, file: FileIdentity, restart: Restart) -> None:
    """Cut the file behind `fd` back to its saved length; what was beyond goes to NAME.after-CHECKPOINT.

    `fd` may be any descriptor of the file; its offset is not moved. Raises RestartFailed.
    """
    if os.fstat(fd).st_size <= file.size:
        return
    path = file.path
    try:
        own = writer(fd)
    except OSError as error:
        raise RestartFailed(f"{path} cannot be cut back to its saved length: {error.strerror}") from None
    try:
        st = os.fstat(own)
        size, mtime_ns = st.st_size, st.st_mtime_ns
        try:
            kept = _keep(own, file.size, size, path, restart.checkpoint)
        except OSError as error:
            what = f"the {size - file.size} bytes that {path} has grown by cannot be kept beside it"
            raise RestartFailed(f"{what}: {error.strerror}") from None
        restart.on_failure(lambda: _give_back(path, kept, file, mtime_ns))
        os.ftruncate(own, file.size)
    finally:
        os.close(own)
    restart.say(f"{path}: cut back to {file.size} bytes; the {size - file.size} beyond are in {kept}")


def put_back(fd: int, file: FileIdentity, contents: Contents, restart: Restart) -> None:
    """Make the file behind `fd` hold what was saved, in place; only what differs is written.

    What it has beyond the saved length is kept as by `cut_back`. The time of its last change proves nothing: a store
    to a page of a shared mapping that is dirty already leaves it as it is. Raises RestartFailed, Damaged.
    """
    cut_back(fd, file, restart)
    try:
        own = writer(fd)
    except OSError as error:
        raise RestartFailed(f"the contents of {file.path} cannot be put back: {error.strerror}") from None
    try:
        st = os.fstat(own)
        journal = _Journal(own, st)
        restart.on_failure(journal.undo)
        if st.st_size < contents.size:
            os.ftruncate(own, contents.size)
        room = memoryview(bytearray(1 << 18))
        end = 0
        for offset, data in chunks(contents, restart.source):
            _clear(own, end, offset, journal)
            end = offset + len(data)
            got = read_at(own, offset, room[: len(data)])
            if room[:got] != memoryview(data):
                journal.keep(offset, room[:got])
                write_at(own, offset, data)
        _clear(own, end, contents.size, journal)
        os.utime(own, ns=(st.st_atime_ns, file.mtime_ns))
    except OSError as error:
        raise RestartFailed(f"the contents of {file.path} cannot be put back: {error.strerror}") from None
    finally:
        os.close(own)


def _clear(fd: int, start: int, end: int, journal: _Journal) -> None:
    """Zero what was a hole, where there is something else now."""
    room = memoryview(bytearray(1 << 18))
    while start < end:
        got = read_at(fd, start, room[: min(len(room), end - start)])
        if not got:
            return
        if room[:got] != bytes(got):
            journal.keep(start, room[:got])
            write_at(fd, start, bytes(got))
        start += got


class _Journal:
    """What a file held where it was written over, in a file without a name; gone when the restart is over."""

    def __init__(self, fd: int, st: os.stat_result) -> None:
        self.file = writer(fd)
        self.size, self.mtime_ns = st.st_size, st.st_mtime_ns
        self.runs: list[tuple[int, int]] = []
        self.copy = -1
        self.length = 0

    def keep(self, offset: int, data: memoryview) -> None:
        if not data:
            return
        if self.copy < 0:
            self.copy = _nameless(os.path.dirname(os.readlink(f"/proc/self/fd/{self.file}")))
        write_at(self.copy, self.length, data)
        self.runs.append((offset, len(data)))
        self.length += len(data)

    def undo(self) -> None:
        at = 0
        for offset, length in self.runs:
            write_at(self.file, offset, os.pread(self.copy, length, at))
            at += length
        os.ftruncate(self.file, self.size)
        os.utime(self.file, ns=(self.mtime_ns, self.mtime_ns))

    def __del__(self) -> None:
        for fd in (self.file, self.copy):
            if fd >= 0:
                os.close(fd)


def _nameless(folder: str) -> int:
    """A file without a name, in `folder` or, where that cannot be, in memory."""
    try:
        return os.open(folder, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
    except OSError:
        return os.memfd_create("torpor-undo")


def create_beside(path: str, mode: int) -> tuple[int, str]:
    """A new file called `path`, or `path`.2, .3 ... where there is one. Raises OSError."""
    name, count = path, 1
    while True:
        try:
            return os.open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode), name
        except FileExistsError:
            count += 1
            name = f"{path}.{count}"


def _keep(fd: int, start: int, end: int, path: str, checkpoint: str) -> str:
    """Copy [start, end) into a new file; its name."""
    st = os.fstat(fd)
    copy, name = create_beside(f"{path}.after-{checkpoint.replace('/', '_')}", 0o600)
    try:
        try:
            copy_range(fd, start, end, copy, -start)
            os.ftruncate(copy, end - start)
            if (st.st_uid, st.st_gid) != (os.geteuid(), os.getegid()):
                try:
                    os.fchown(copy, st.st_uid, st.st_gid)
                except OSError:
                    pass  # ours then
            os.fchmod(copy, st.st_mode & 0o777)
        finally:
            os.close(copy)
    except BaseException:
        os.unlink(name)
        raise
    return name


def _give_back(path: str, kept: str, file: FileIdentity, mtime_ns: int) -> None:
    """Undo a cut: what was kept goes back to its place."""
    target = os.open(path, os.O_WRONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        source = os.open(kept, os.O_RDONLY | os.O_CLOEXEC)
        try:
            size = os.fstat(source).st_size
            copy_range(source, 0, size, target, file.size)
            os.ftruncate(target, file.size + size)
            os.utime(target, ns=(mtime_ns, mtime_ns))
        finally:
            os.close(source)
    finally:
        os.close(target)
    os.unlink(kept)
