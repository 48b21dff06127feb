"""Files that are found again by their path: what identifies one, and whether it is still the same.

Used for open files, for mapped files and for inherited streams. A device number may change over a reboot,
so a file counts as unchanged if what is at its path now has the size and modification time that it had;
as replaced if the inode is another.
"""

from __future__ import annotations

import os
import stat

import msgspec

DELETED = " (deleted)"
"""What /proc writes behind the path of a file that has no name any more."""
GONE = "is gone"
"""What `changed` and `replaced` say if nothing is at the path."""


class FileIdentity(msgspec.Struct, frozen=True):
    """A file as it was at the checkpoint. `name` is its path as the kernel has it: bytes of any encoding."""

    name: bytes
    dev: int
    ino: int
    size: int
    mtime_ns: int
    mode: int
    """st_mode: type and permissions."""

    @property
    def path(self) -> str:
        return os.fsdecode(self.name)


def identity(what: str | int, path: str | None = None) -> FileIdentity:
    """The identity of a file given by path or by descriptor. Raises OSError.

    path: what it is called, where `what` is a descriptor and the caller knows; else /proc/self/fd is asked.
    """
    st = os.stat(what)
    if path is None:
        path = what if isinstance(what, str) else os.readlink(f"/proc/self/fd/{what}")
    return FileIdentity(os.fsencode(path), st.st_dev, st.st_ino, st.st_size, st.st_mtime_ns, st.st_mode)


def changed(file: FileIdentity) -> str | None:
    """What has become of a file that was to stay as it was, in words that follow its path; None: nothing."""
    try:
        st = os.stat(file.path)
    except OSError as error:
        return _gone(error)
    if stat.S_IFMT(st.st_mode) != stat.S_IFMT(file.mode):
        return "is of another type now"
    if st.st_size != file.size:
        return f"has changed since the checkpoint: it had {file.size} bytes and has {st.st_size}"
    if st.st_mtime_ns != file.mtime_ns:
        return "has been written to or replaced since the checkpoint (another modification time)"
    return None


def replaced(file: FileIdentity) -> str | None:
    """Why what is at the path now cannot be the file of the checkpoint, even written to since; or None."""
    try:
        st = os.stat(file.path)
    except OSError as error:
        return _gone(error)
    if stat.S_IFMT(st.st_mode) != stat.S_IFMT(file.mode):
        return "is of another type now"
    if st.st_ino != file.ino:
        return "has been replaced by another file since the checkpoint"
    if st.st_size < file.size:
        return f"is shorter than at the checkpoint: it had {file.size} bytes and has {st.st_size}"
    return None


def is_at(path: str, dev: int, ino: int) -> bool:
    """Does `path`, as we see it, lead to this inode?"""
    try:
        st = os.stat(path)
    except (OSError, ValueError):
        return False
    return (st.st_dev, st.st_ino) == (dev, ino)


def is_deleted(target: str, dev: int, ino: int) -> bool:
    """Does the target of a /proc/PID/fd link say that the file has no name? (A name may end like that.)"""
    return target.endswith(DELETED) and not is_at(target, dev, ino)


def other_name(target: str, dev: int, ino: int) -> str:
    """Another name, in the same folder, of a file whose name `target` ('PATH (deleted)') is gone; '' if there is none.

    sem_open(3) makes a file under a temporary name, gives it its own and removes the first.
    """
    try:
        with os.scandir(os.path.dirname(target) or "/") as entries:
            for entry in entries:
                if entry.inode() == ino and is_at(entry.path, dev, ino):
                    return entry.path
    except OSError:
        pass
    return ""


def _gone(error: OSError) -> str:
    if isinstance(error, (FileNotFoundError, NotADirectoryError)):
        return GONE
    return f"cannot be looked at: {error.strerror}"
