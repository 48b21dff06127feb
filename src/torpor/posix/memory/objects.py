"""Memory objects: memory that several mappings share and that no path leads to any more.

Shared anonymous memory ('/dev/zero (deleted)'), a memfd or a deleted file that is mapped but not open. The kernel
keeps an inode for each; mappings of the same inode are the same memory. Its contents are read through the memory of a
task that maps it, since /proc/PID/map_files needs privilege. It comes back as a new object of the same kind, made
once in the restarting process and inherited or mapped by everyone who had it.
"""

from __future__ import annotations

import msgspec

ANONYMOUS = "anonymous"
MEMFD = "memfd"
DELETED = "deleted"
HUGE = "huge"

STAND_IN = "torpor:/dev/zero"
"""Name of a memfd that stands for shared anonymous memory, where that could not be inherited (restart in place). It
counts as what it stands for."""


class MemoryObjectRecord(msgspec.Struct, frozen=True):
    """kind: one of the constants above. name: a memfd's name, or the path a deleted file had. size: bytes that matter
    (the end of the last mapping). chunks: (offset, bytes, chunk) of what is not zero."""

    kind: str
    name: str
    size: int
    chunks: tuple[tuple[int, int, int], ...] = ()


def kind_of(path: str) -> str:
    """The kind of an object, from the path that maps shows for it."""
    if path in ("/dev/zero (deleted)", f"/memfd:{STAND_IN} (deleted)"):
        return ANONYMOUS
    if path == "/anon_hugepage (deleted)":
        return HUGE
    if path.startswith("/memfd:"):
        return MEMFD
    return DELETED


def name_of(path: str) -> str:
    """The name to make the object by."""
    path = path.removesuffix(" (deleted)")
    return path.removeprefix("/memfd:") if path.startswith("/memfd:") else path
