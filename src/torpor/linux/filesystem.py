"""Of what kind the filesystem is that a file is on: statfs(2). Source of the numbers: include/uapi/linux/magic.h."""

from __future__ import annotations

import ctypes
import os

from torpor.linux.libc import libc

MQUEUE = 0x19800202
MADE_UP = {
    "proc": 0x9FA0, "sysfs": 0x62656572, "cgroup": 0x27E0EB, "cgroup2": 0x63677270, "debugfs": 0x64626720,
    "tracefs": 0x74726163, "securityfs": 0x73636673, "configfs": 0x62656570, "bpf": 0xCAFE4A11, "efivarfs": 0xDE5E81E4,
}  # fmt: skip
"""Filesystems whose files the kernel makes up when they are read: they have no length and no past."""
_MADE_UP = frozenset(MADE_UP.values())


def kind_of(path: str) -> int:
    """The number of its kind, 0 if the file is gone. Nothing is opened."""
    room = ctypes.create_string_buffer(128)
    return 0 if libc.statfs(os.fsencode(path), room) else _kind(room)


def is_made_up(fd: int) -> bool:
    """Is an open file on one of the filesystems of MADE_UP?"""
    room = ctypes.create_string_buffer(128)
    return not libc.fstatfs(fd, room) and _kind(room) in _MADE_UP


def _kind(room: ctypes.Array[ctypes.c_char]) -> int:
    """struct statfs begins with it (f_type, a long)."""
    return int.from_bytes(room.raw[:8], "little")
