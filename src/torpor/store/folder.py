"""A store in a folder of a file system.

An object is a file; it is written without a name (O_TMPFILE) and then linked to its name, so that a writer
that is killed leaves nothing at all, and so that link(2), which fails if the name exists, is the
put-if-absent. File systems without O_TMPFILE (NFS among them) get a file in `tmp/` first. link(2) is atomic
on NFS too.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence

from torpor.model.data import Buffer
from torpor.store.backend import Stat

CLOEXEC = os.O_CLOEXEC
NO_TMPFILE = (errno.EOPNOTSUPP, errno.EISDIR, errno.ENOENT, errno.EINVAL)
"""What kernels and file systems that know no O_TMPFILE answer (open(2))."""
SHARED = ("nfs", "cifs", "smb", "fuse", "9p", "lustre", "ceph", "afs", "gpfs", "beegfs", "glusterfs")
"""File system types whose other users may see a change late; prefixes."""
SHARED_LAG = 120.0
"""Attribute and directory caches of NFS are at most 60 s old by default (nfs(5), acdirmax)."""


class _File:
    """A file that is being written and has no name yet."""

    def __init__(self, root: str, folder: str) -> None:
        self.temporary = ""
        try:
            self.fd = open_unnamed(folder)
        except OSError as error:
            if error.errno not in NO_TMPFILE:
                raise
            os.stat(folder)  # ENOENT of the folder itself is the caller's
            spare = f"{root}/tmp"
            make_folders(spare)
            self.temporary = f"{spare}/{os.urandom(16).hex()}"
            self.fd = os.open(self.temporary, os.O_CREAT | os.O_EXCL | os.O_RDWR | CLOEXEC, 0o600)

    def write(self, offset: int, data: Buffer) -> None:
        done = os.pwrite(self.fd, data, offset)
        if done != len(data):  # a full disk or a quota cuts a write short before it refuses the next
            view = memoryview(data)
            while done < len(view):
                done += os.pwrite(self.fd, view[done:], offset + done)

    def name(self, path: str) -> None:
        """Give it its name. Raises FileExistsError if that is taken."""
        if self.temporary:
            os.link(self.temporary, path)
        else:
            # With src_dir_fd given, Python calls linkat(AT_SYMLINK_FOLLOW), which open(2) prescribes for
            # this.
            os.link(f"/proc/self/fd/{self.fd}", path, src_dir_fd=self.fd, follow_symlinks=True)

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
        if self.temporary:
            try:
                os.unlink(self.temporary)
            except FileNotFoundError:
                pass
            self.temporary = ""


class FolderUpload:
    """See backend.Upload."""

    def __init__(self, root: str, path: str) -> None:
        self._path = path
        folder = os.path.dirname(path)
        try:
            self._file = _File(root, folder)
        except FileNotFoundError:
            make_folders(folder)
            self._file = _File(root, folder)
        self.write = self._file.write

    def finish(self) -> None:
        try:
            os.fdatasync(self._file.fd)
            self._file.name(self._path)
        finally:
            self._file.close()

    def discard(self) -> None:
        self._file.close()


class Folder:
    """See backend.Backend. `place` is an absolute path; it need not exist yet."""

    lanes = 1
    pack_size = 32 << 20

    def __init__(self, place: str) -> None:
        self.place = place

    def prepare(self) -> None:
        make_folders(self.place)

    def lag(self) -> float:
        return SHARED_LAG if kind(self.place).startswith(SHARED) else 0.0

    def put(self, name: str, pieces: Sequence[Buffer], durable: bool = True) -> bool:
        path = f"{self.place}/{name}"
        folder = os.path.dirname(path)
        try:
            file = _File(self.place, folder)
        except FileNotFoundError:
            make_folders(folder)
            file = _File(self.place, folder)
        try:
            offset = 0
            for piece in pieces:
                file.write(offset, piece)
                offset += len(piece)
            if durable:
                os.fsync(file.fd)
            try:
                file.name(path)
            except FileExistsError:
                return False
            if durable:
                sync_folder(folder)
            return True
        finally:
            file.close()

    def create(self, name: str, lane: int = 0) -> FolderUpload:
        return FolderUpload(self.place, f"{self.place}/{name}")

    def sync(self, folder: str) -> None:
        sync_folder(f"{self.place}/{folder}")

    def get(self, name: str, offset: int = 0, length: int = -1) -> bytes:
        fd = os.open(f"{self.place}/{name}", os.O_RDONLY | CLOEXEC)
        try:
            left = max(0, os.fstat(fd).st_size - offset)
            if length >= 0:
                left = min(left, length)
            parts = []
            while left and (part := os.pread(fd, left, offset)):
                parts.append(part)
                left -= len(part)
                offset += len(part)
            return parts[0] if len(parts) == 1 else b"".join(parts)
        finally:
            os.close(fd)

    def list(self, folder: str) -> list[str]:
        try:
            return os.listdir(f"{self.place}/{folder}")
        except (FileNotFoundError, NotADirectoryError):
            return []

    def stat(self, name: str) -> Stat:
        found = os.stat(f"{self.place}/{name}")
        return Stat(found.st_size, found.st_mtime)

    def touch(self, name: str) -> None:
        os.utime(f"{self.place}/{name}")

    def delete(self, name: str) -> None:
        try:
            os.unlink(f"{self.place}/{name}")
        except FileNotFoundError:
            pass

    def path(self, name: str) -> str | None:
        return f"{self.place}/{name}"

    def tidy(self, before: float) -> None:
        for name in self.list("tmp"):
            try:
                if os.stat(f"{self.place}/tmp/{name}").st_mtime < before:
                    os.unlink(f"{self.place}/tmp/{name}")
            except FileNotFoundError:
                pass

    def close(self) -> None:
        pass


def open_unnamed(folder: str) -> int:
    """A new file in `folder` that has no name. Raises OSError (NO_TMPFILE) where the file system has no such
    thing."""
    return os.open(folder, os.O_TMPFILE | os.O_RDWR | CLOEXEC, 0o600)


def make_folders(path: str) -> None:
    """Make `path` and what is missing above it, each 0700 and durable."""
    above = os.path.dirname(path)
    try:
        os.mkdir(path, 0o700)
    except FileExistsError:
        return
    except FileNotFoundError:
        if os.path.isdir(above):  # what mkdir says in places like /proc
            raise
        make_folders(above)
        try:
            os.mkdir(path, 0o700)
        except FileExistsError:
            return
    sync_folder(above)


def sync_folder(path: str) -> None:
    """Names in the folder outlive a loss of power when this returns."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | CLOEXEC)
    try:
        os.fsync(fd)
    except OSError as error:
        # File systems that cannot, and need not.
        if error.errno not in (errno.EINVAL, errno.EROFS, errno.ENOTSUP):
            raise
    finally:
        os.close(fd)


def kind(path: str) -> str:
    """The type of the file system `path` is on ('ext4', 'nfs4'), from mountinfo; '' if it cannot be told."""
    try:
        while not os.path.exists(path):
            path = os.path.dirname(path)
        device = os.stat(path).st_dev
        with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as lines:
            for line in lines:
                left, _, right = line.partition(" - ")
                major, _, minor = left.split()[2].partition(":")
                if os.makedev(int(major), int(minor)) == device:
                    return right.split()[0]
    except OSError:
        pass
    return ""
