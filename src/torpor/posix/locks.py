"""File locks.

flock(2) and open-file-description locks belong to an open file description and come back with it. POSIX
locks belong to a process and a file, and are set again by the process itself, late: closing any
descriptor of the file would drop them.

All are shown by fdinfo: `lock: 1: POSIX ADVISORY WRITE 7195 fe:00:2146491 5 14` (type, kind, pid, file,
first and last byte). A POSIX lock is shown only with the descriptor it was set through and only in the
process that owns it.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from collections.abc import Iterable, Sequence

import msgspec

from torpor.linux.arch.x86_64 import NR
from torpor.model.errors import Refusal, RestartFailed
from torpor.posix.service import Descriptor, ProcessBase, Stage, Steps
from torpor.tracee.call import Answer, In, call
from torpor.tracee.process import Process

FLOCK = "FLOCK"
OFD = "OFDLCK"
POSIX = "POSIX"

_F_SETLK = 6
_F_OFD_SETLK = 37
_TO_END = 0


class Lock(msgspec.Struct, frozen=True, array_like=True):
    """A lock.

    Its type (FLOCK, OFD, POSIX), whether it excludes readers, first byte and length (0: to the end).
    """

    kind: str
    write: bool
    start: int = 0
    length: int = 0

    def flock(self) -> bytes:
        """struct flock (64 bit)."""
        return struct.pack(
            "=hhxxxxqqixxxx", fcntl.F_WRLCK if self.write else fcntl.F_RDLCK, 0, self.start, self.length, 0
        )


def held(info: Iterable[str]) -> list[Lock]:
    """The locks in the lines of fdinfo; leases and others have kinds of their own."""
    out = []
    for line in info:
        if not line.startswith("lock:"):
            continue
        words = line.split()
        start, end = words[-2:]
        first = int(start)
        out.append(Lock(words[2], "WRITE" in words[4:6], first, _TO_END if end == "EOF" else int(end) - first + 1))
    return out


def refusal(seen: Descriptor) -> Refusal | None:
    """Why what is held through a descriptor cannot be set again."""
    for lock in held(seen.info):
        if lock.kind not in (FLOCK, OFD, POSIX):
            return seen.refuse(f"{seen.target} with a {lock.kind.lower()} on it", "give it back before the checkpoint")
    return None


def of_description(info: Iterable[str]) -> tuple[Lock, ...]:
    """The locks that belong to the open file description."""
    return tuple(lock for lock in held(info) if lock.kind in (FLOCK, OFD))


def set_again(fd: int, locks: Iterable[Lock], path: str) -> None:
    """Lock a new open file description as the old one was.

    Raises RestartFailed where somebody else has it now.
    """
    for lock in locks:
        try:
            if lock.kind == FLOCK:
                fcntl.flock(fd, (fcntl.LOCK_EX if lock.write else fcntl.LOCK_SH) | fcntl.LOCK_NB)
            else:
                fcntl.fcntl(fd, _F_OFD_SETLK, lock.flock())
        except OSError as error:
            taken = error.errno in (errno.EAGAIN, errno.EACCES)
            why = "another process holds a lock on it" if taken else str(error.strerror)
            raise RestartFailed(f"cannot lock {path} again: {why}") from None


def in_the_way(wanted: Lock, dev: int, ino: int, table: str) -> int | None:
    """Who holds a lock that keeps `wanted` from being set: a pid, 0 if it is not known, None if nobody does. Pure.

    dev, ino: of the file. table: the text of /proc/locks (proc_locks(5)), which tells no pid for a lock of a
    description.
    """
    file = f"{os.major(dev):02x}:{os.minor(dev):02x}:{ino}"
    for line in table.splitlines():
        words = line.split()
        if len(words) != 8 or words[5] != file:  # a line of somebody who waits has one word more
            continue
        kind, write, pid, first, last = words[1], words[3] == "WRITE", int(words[4]), int(words[6]), words[7]
        if kind not in (FLOCK, OFD, POSIX) or (kind == FLOCK) != (wanted.kind == FLOCK):
            continue  # flock(2) and fcntl(2) do not see each other
        behind = wanted.length and first >= wanted.start + wanted.length
        before = last != "EOF" and int(last) < wanted.start
        if (write or wanted.write) and (kind == FLOCK or not (behind or before)):
            return max(pid, 0)
    return None


class PosixLocks(msgspec.Struct, frozen=True):
    """The POSIX locks of a process: (descriptor number, lock)."""

    locks: tuple[tuple[int, Lock], ...]


class LockService(ProcessBase):
    """POSIX locks of one process."""

    name = "locks"
    afterwards = True
    record: type[msgspec.Struct] = PosixLocks

    def capture(self, process: Process, answers: Sequence[Answer]) -> PosixLocks | None:
        found = [
            (number, lock) for number, lines in process.fdinfo.items() for lock in held(lines) if lock.kind == POSIX
        ]
        # Duplicates of a descriptor show the same locks; setting one twice does nothing.
        return PosixLocks(tuple(found)) if found else None

    def restore(self, record: PosixLocks, process: Process) -> Steps:
        calls = [call(NR.fcntl, number, _F_SETLK, In(lock.flock())) for number, lock in record.locks]
        return {Stage.CLOCKS: calls}


SERVICE = LockService()
