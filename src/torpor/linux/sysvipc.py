"""System V IPC: numbers and structures of shmctl(2), semctl(2) and msgctl(2) as the x86-64 kernel has them.

Source: include/uapi/linux/{ipc,shm,sem,msg}.h, include/uapi/asm-generic/{ipcbuf,shmbuf,msgbuf}.h,
arch/x86/include/uapi/asm/sembuf.h.
"""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Iterator

from torpor.linux.arch.x86_64 import NR
from torpor.linux.libc import syscall
from torpor.named_tuple import NamedTuple

PRIVATE = 0
CREAT, EXCL, NOWAIT = 0o1000, 0o2000, 0o4000
RMID, SET, STAT, INFO = 0, 1, 2, 3

SHM_LOCK, SHM_STAT_ANY = 11, 15
SHM_DEST, SHM_LOCKED = 0o1000, 0o2000
"""Bits of a segment's mode: to be destroyed at the last detach; locked in memory."""
SHM_RDONLY = 0o10000
SHM_REMAP = 0o40000

SEM_GETPID, SEM_GETVAL, SEM_SETVAL, SEM_STAT_ANY = 11, 12, 16, 20
SEM_UNDO = 0x1000
SEM_MAX = 32767
"""Largest value of a semaphore, and of an adjustment (SEMVMX, SEMAEM)."""

MSG_STAT_ANY = 13
MSG_COPY = 0o40000

SEGMENT_SIZE, SET_SIZE, QUEUE_SIZE = 112, 104, 120
"""Bytes of struct shmid64_ds, semid64_ds and msqid64_ds."""

_PERM = struct.Struct("<i5IHHxxxx2Q")


class Perm(NamedTuple):
    """struct ipc64_perm: who may do what. mode: permission bits and, for shared memory, SHM_DEST and SHM_LOCKED."""

    key: int
    uid: int
    gid: int
    cuid: int
    cgid: int
    mode: int


class Segment(NamedTuple):
    """struct shmid64_ds. Times in seconds, sizes in bytes."""

    perm: Perm
    size: int
    atime: int
    dtime: int
    ctime: int
    cpid: int
    lpid: int
    attached: int


class Set(NamedTuple):
    """struct semid64_ds."""

    perm: Perm
    otime: int
    ctime: int
    semaphores: int


class Queue(NamedTuple):
    """struct msqid64_ds. bytes: in the queue now; room: how many may be."""

    perm: Perm
    stime: int
    rtime: int
    ctime: int
    bytes: int
    messages: int
    room: int
    lspid: int
    lrpid: int


def _perm(raw: bytes) -> Perm:
    return Perm(*_PERM.unpack_from(raw)[:6])


def segment(raw: bytes) -> Segment:
    return Segment(_perm(raw), *struct.unpack_from("<4Q2iQ", raw, _PERM.size))


def set_(raw: bytes) -> Set:
    otime, _, ctime, _, semaphores = struct.unpack_from("<5Q", raw, _PERM.size)
    return Set(_perm(raw), otime, ctime, semaphores)


def queue(raw: bytes) -> Queue:
    return Queue(_perm(raw), *struct.unpack_from("<6Q2i", raw, _PERM.size))


def listed(nr: int, stat: int, size: int) -> Iterator[tuple[int, bytes]]:
    """All objects of a kind in our own namespace: (id, structure of `size` bytes).

    nr: shmctl, semctl or msgctl. stat: the command that looks at a place in the kernel's table without asking for
    permission (Linux 4.17).
    """
    room = ctypes.create_string_buffer(max(size, 128))
    at = ctypes.addressof(room)
    between = (0,) if nr == NR.semctl else ()
    for place in range(syscall(nr, 0, *between, INFO, at) + 1):
        try:
            number = syscall(nr, place, *between, stat, at)
        except OSError:
            continue  # there is none at that place
        yield number, room.raw[:size]


def permissions(size: int, uid: int, gid: int, mode: int, room: int = 0) -> bytes:
    """The structure of `size` bytes for IPC_SET: owner and mode; room: msg_qbytes of a message queue."""
    raw = bytearray(size)
    _PERM.pack_into(raw, 0, 0, uid, gid, 0, 0, mode & 0o777, 0, 0, 0, 0)
    if room:
        struct.pack_into("<Q", raw, _PERM.size + 40, room)
    return bytes(raw)


def operation(number: int, change: int, flags: int = 0) -> bytes:
    """struct sembuf."""
    return struct.pack("<Hhh", number, change, flags)


def probe() -> tuple[bool, str]:
    """Is there System V IPC, and can objects be given the numbers they had?"""
    if not os.path.exists("/proc/sysvipc"):
        return False, "use a kernel with CONFIG_SYSVIPC"
    if not os.path.exists("/proc/sys/kernel/shm_next_id"):
        return False, "objects cannot be given their old numbers: use a kernel with CONFIG_CHECKPOINT_RESTORE"
    return True, ""
