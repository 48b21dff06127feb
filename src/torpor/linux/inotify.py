"""inotify: what fdinfo tells of an instance, and the calls that Python has not.

Source: inotify(7), fs/notify/fdinfo.c, proc_pid_fdinfo(5).
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterable

from torpor.linux import mounts, proc
from torpor.linux.libc import libc
from torpor.named_tuple import NamedTuple

ONESHOT, EXCL_UNLINK, IGNORED, DONT_FOLLOW = 0x80000000, 0x04000000, 0x8000, 0x02000000
Q_OVERFLOW = 0x4000


class Watch(NamedTuple):
    """A watch: its number, the inode (dev as st_dev) and the mask."""

    number: int
    ino: int
    dev: int
    mask: int


def watches(info: Iterable[str]) -> list[Watch]:
    """`inotify wd:1 ino:3f7e8 sdev:fe00000 mask:3 ignored_mask:0 ...`, all hexadecimal; the oldest last."""
    found = []
    for line in info:
        if not line.startswith("inotify "):
            continue
        fields = dict(word.split(":", 1) for word in line.split()[1:] if ":" in word)
        dev = int(fields["sdev"], 16)
        found.append(
            Watch(
                int(fields["wd"], 16), int(fields["ino"], 16), os.makedev(dev >> 20, dev & 0xFFFFF),
                int(fields["mask"], 16),
            )
        )  # fmt: skip
    return found


def create(flags: int) -> int:
    """inotify_init1(2). Raises OSError."""
    return _checked(libc.inotify_init1(flags))


def add(fd: int, path: bytes, mask: int) -> int:
    """inotify_add_watch(2); the number of the watch. Raises OSError."""
    return _checked(libc.inotify_add_watch(fd, path, ctypes.c_uint32(mask)))


def remove(fd: int, number: int) -> None:
    """inotify_rm_watch(2). Raises OSError."""
    _checked(libc.inotify_rm_watch(fd, number))


def _checked(result: int) -> int:
    if result < 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
    return result


def path_of_handle(kind: int, handle: bytes, dev: int) -> str:
    """The path of a file by its handle (open_by_handle_at(2)); dev: the filesystem's device number.

    Raises OSError (EPERM without CAP_DAC_READ_SEARCH, ESTALE).
    """
    raw = ctypes.create_string_buffer(len(handle).to_bytes(4, "little") + kind.to_bytes(4, "little") + handle)
    for line in proc.text("/proc/self/mountinfo").splitlines():
        if line.split(" ", 3)[2] != f"{os.major(dev)}:{os.minor(dev)}":
            continue
        mount = os.open(mounts.parse(line).point, os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECTORY)
        try:
            fd = _checked(libc.open_by_handle_at(mount, raw, os.O_PATH | os.O_CLOEXEC))
        finally:
            os.close(mount)
        try:
            return os.readlink(f"/proc/self/fd/{fd}")
        finally:
            os.close(fd)
    raise FileNotFoundError(2, "no mount of that filesystem")
