"""Open directories.

The kernel keeps for one: the inode, flags, and the position of the next entry (`pos` in fdinfo), which
the filesystem defines: a number or, where names are hashed, a hash. Both stay valid for the same
directory. Entries that a program has read ahead are in its own memory.

One that was removed is empty for ever. It is made again, opened and removed again, for each description on its own.
"""

from __future__ import annotations

import os
import stat

import msgspec

from torpor.model.errors import Refusal, Refused, RestartFailed
from torpor.posix import paths
from torpor.posix.descriptors import AT_OPEN, O_PATH, is_type, set_status, status_flags
from torpor.posix.service import Descriptor, DescriptorBase, Job, Restart


class OpenDirectory(msgspec.Struct, frozen=True):
    """An open directory: its path, open flags and position."""

    name: bytes
    flags: int
    position: int = 0
    removed: bool = False


class DirectoryService(DescriptorBase):
    name = "directory"
    record = OpenDirectory

    def claims(self, seen: Descriptor) -> bool:
        return is_type(seen, stat.S_IFDIR)

    def survey(self, seen: Descriptor, job: Job) -> Refusal | None:
        if paths.is_deleted(seen.target, seen.dev, seen.ino):
            return None
        return unreachable(seen, "a directory")

    def capture(self, fd: int, seen: Descriptor, job: Job) -> OpenDirectory:
        position = os.lseek(fd, 0, os.SEEK_CUR)
        removed = paths.is_deleted(seen.target, seen.dev, seen.ino)
        path = seen.target.removesuffix(paths.DELETED) if removed else seen.target
        return OpenDirectory(os.fsencode(path), status_flags(fd), position, removed)

    def create(self, record: OpenDirectory, restart: Restart) -> int:
        path = os.fsdecode(record.name)
        if record.removed:
            path = free_name(path)
            try:
                os.mkdir(path, 0o700)
            except OSError as error:
                raise RestartFailed(f"cannot make the removed directory {path} again: {error.strerror}") from None
        try:
            fd = open_again(path, record.flags, stat.S_IFDIR)
        finally:
            if record.removed:
                os.rmdir(path)
        set_status(fd, record.flags)
        if record.position:
            try:
                os.lseek(fd, record.position, os.SEEK_SET)
            except OSError:
                path = os.fsdecode(record.name)
                restart.say(f"{path}: the position in the open directory could not be set; it is read from its start")
        return fd


def free_name(path: str) -> str:
    """Where something that had been removed can be made again for a moment: its old name, or one like it where that is
    taken, or in the folder for temporary files where its folder is gone."""
    folder, base = os.path.split(path)
    if not os.access(folder, os.W_OK | os.X_OK):
        folder = os.environ.get("TMPDIR", "/tmp")
    name, count = os.path.join(folder, base), 1
    while os.path.lexists(name):
        count += 1
        name = f"{os.path.join(folder, base)}.{count}"
    return name


def unreachable(seen: Descriptor, thing: str) -> Refusal | None:
    """Why something that is opened again by its path would not be found there, if so."""
    if paths.is_deleted(seen.target, seen.dev, seen.ino):
        return seen.refuse(f"{thing} that was removed, {seen.target}", "close it before the checkpoint")
    owner = process_files(seen.target)
    if owner:
        return seen.refuse(f"{seen.target}, which belongs to a process", "close it before the checkpoint")
    if not paths.is_at(seen.target, seen.dev, seen.ino):
        return seen.refuse(
            f"{thing} not found at its path {seen.target} from here (another mount namespace or root, "
            "or something is mounted over it)",
            "run torpor where the path leads to it",
        )
    return None


def process_files(target: str) -> int:
    """The pid in a path below /proc/PID, else 0.

    Such a file is of one process and not found again by its path.
    """
    parts = target.split("/", 3)
    if len(parts) > 2 and parts[0] == "" and parts[1] == "proc" and parts[2].isdigit():
        return int(parts[2])
    return 0


def open_again(path: str, flags: int, kind: int) -> int:
    """Open what was open, by its path; it has to be of this type. Raises Refused, RestartFailed."""
    try:
        follow = not flags & O_PATH
        st = os.stat(path, follow_symlinks=follow)
        if stat.S_IFMT(st.st_mode) != kind:
            raise missing(path, "is of another type now")
        return os.open(path, (flags & AT_OPEN) | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        raise missing(path, "is gone") from None
    except OSError as error:
        how = ("reading", "writing", "reading and writing", "reading")[flags & 3]
        raise RestartFailed(f"cannot open {path} again for {how}: {error.strerror}") from None


def missing(path: str, what: str, way_out: str = "put it back as it was") -> Refused:
    """The refusal of a restart that does not find a file as it must be."""
    return Refused([Refusal(0, "", f"{path} {what}", way_out)], "cannot restart")


SERVICE = DirectoryService()
