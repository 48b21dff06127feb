"""What the descriptor services have in common: open flags, finding descriptors of the same thing, and
tables made once for a job."""

from __future__ import annotations

import fcntl
import os
import stat
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

from torpor.posix.service import Descriptor, Job

Table = TypeVar("Table")

O_ACCMODE = 3
O_ASYNC = 0o20000
O_LARGEFILE = 0o100000
O_PATH = os.O_PATH
O_TMPFILE = os.O_TMPFILE & ~os.O_DIRECTORY
"""The bit of its own; os.O_TMPFILE includes O_DIRECTORY."""

STATUS = os.O_APPEND | os.O_NONBLOCK | os.O_DIRECT | os.O_NOATIME
"""File status flags that fcntl(F_SETFL) changes (O_ASYNC apart, which needs an owner)."""

AT_OPEN = STATUS | os.O_SYNC | os.O_DSYNC | os.O_NOFOLLOW | os.O_DIRECTORY | O_PATH | O_ACCMODE
"""Flags that are given to open() again. Never O_CREAT, O_EXCL or O_TRUNC: what is there is there."""


def status_flags(fd: int) -> int:
    """Flags of an open file description as fcntl(F_GETFL) gives them; O_CLOEXEC is not among them."""
    return fcntl.fcntl(fd, fcntl.F_GETFL)


def set_status(fd: int, flags: int) -> None:
    """Set the file status flags to those in `flags`."""
    now = fcntl.fcntl(fd, fcntl.F_GETFL)
    if (now ^ flags) & STATUS:
        fcntl.fcntl(fd, fcntl.F_SETFL, (now & ~STATUS) | (flags & STATUS))


def duplicate(fd: int) -> int:
    """Another close-on-exec descriptor of the same open file description."""
    return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3)


def reopen(fd: int, flags: int) -> int:
    """A new open file description of what `fd` is open on. Never waits, takes no terminal. Raises OSError."""
    kept = flags & AT_OPEN & ~(os.O_NOFOLLOW | os.O_DIRECTORY)
    new = os.open(f"/proc/self/fd/{fd}", kept | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    set_status(new, flags)
    return new


def is_type(seen: Descriptor, kind: int) -> bool:
    """Is the file of this type (stat.S_IFREG, ...) and open for more than its path?"""
    return stat.S_IFMT(seen.mode) == kind and not seen.flags & O_PATH


def info_value(info: Sequence[str], key: str) -> str | None:
    """The value of the line `key: value` of fdinfo."""
    for line in info:
        head, colon, value = line.partition(":")
        if colon and head == key:
            return value.strip()
    return None


def fresh_info(fd: int) -> list[str]:
    """fdinfo of our own copy of a description, as it is at this moment."""
    with open(f"/proc/self/fdinfo/{fd}") as lines:
        return lines.read().splitlines()


_indexed: tuple[Sequence[Descriptor], int, dict[tuple[int, int], list[Descriptor]]] = ((), 0, {})


def siblings(seen: Descriptor, job: Job) -> list[Descriptor]:
    """All descriptors of the job that are open on the same inode, `seen` among them."""
    global _indexed
    whole = job.descriptors
    if _indexed[0] is not whole or _indexed[1] != len(whole):
        table: dict[tuple[int, int], list[Descriptor]] = {}
        for one in whole:
            table.setdefault((one.dev, one.ino), []).append(one)
        _indexed = (whole, len(whole), table)
    return _indexed[2].get((seen.dev, seen.ino), [seen])


def first_object(descriptors: Sequence[Descriptor], job: Job) -> int:
    """The lowest object number among descriptors, -1 if there is none: who keeps what they have in common."""
    numbers = [job.object_of(one.pid, one.number) for one in descriptors]
    return min((number for number in numbers if number is not None), default=-1)


class PerJob(Generic[Table]):
    """A table that is made once for a job as it is: again when its descriptors have become others."""

    def __init__(self, make: Callable[[Job], Table]) -> None:
        self._make = make
        self._for: tuple[Sequence[Descriptor], int] = ((), -1)
        self._table: Table | None = None

    def of(self, job: Job) -> Table:
        whole = job.descriptors
        if self._table is None or self._for[0] is not whole or self._for[1] != len(whole):
            self._table = self._make(job)
            self._for = (whole, len(whole))
        return self._table
