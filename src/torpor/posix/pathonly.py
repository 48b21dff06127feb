"""Descriptors that stand for a path only (O_PATH).

The kernel keeps the inode and the name: no offset, no contents, no access. O_PATH with O_NOFOLLOW may
stand for a symbolic link itself.
"""

from __future__ import annotations

import os
import stat

import msgspec

from torpor.model.errors import Refusal
from torpor.posix import paths
from torpor.posix.descriptors import O_PATH, status_flags
from torpor.posix.directory import open_again, unreachable
from torpor.posix.service import Descriptor, DescriptorBase, Job, Restart


class PathOnly(msgspec.Struct, frozen=True):
    """An O_PATH descriptor: path, flags and type (S_IFMT bits of st_mode)."""

    name: bytes
    flags: int
    kind: int


class PathService(DescriptorBase):
    name = "path"
    record = PathOnly

    def claims(self, seen: Descriptor) -> bool:
        return bool(seen.flags & O_PATH) and seen.target.startswith("/")

    def survey(self, seen: Descriptor, job: Job) -> Refusal | None:
        if stat.S_ISLNK(seen.mode):
            try:
                st = os.lstat(seen.target)
            except OSError:
                return seen.refuse(f"a symbolic link that was removed, {seen.target}", "close it before the checkpoint")
            if (st.st_dev, st.st_ino) == (seen.dev, seen.ino):
                return None
        if paths.is_deleted(seen.target, seen.dev, seen.ino):
            return seen.refuse(f"the path of something removed, {seen.target}", "close it before the checkpoint")
        return unreachable(seen, "the path of something")

    def capture(self, fd: int, seen: Descriptor, job: Job) -> PathOnly:
        return PathOnly(os.fsencode(seen.target), status_flags(fd), stat.S_IFMT(seen.mode))

    def create(self, record: PathOnly, restart: Restart) -> int:
        flags = record.flags | O_PATH
        if record.kind == stat.S_IFLNK:
            flags |= os.O_NOFOLLOW
        return open_again(os.fsdecode(record.name), flags, record.kind)


SERVICE = PathService()
