"""POSIX message queues: the system calls behind mq_open(3) and its kin, and what read(2) on a queue tells.

A queue is a file of the filesystem `mqueue`, of which every IPC namespace has one of its own, mounted or not; names are
without the leading slash here, as the kernel wants them. Sizes in bytes.

Source: mq_overview(7), ipc/mqueue.c, include/uapi/linux/mqueue.h.
"""

from __future__ import annotations

import ctypes
import os
import struct

from torpor.linux import clone, namespaces, proc
from torpor.linux.arch.x86_64 import NR
from torpor.linux.libc import syscall
from torpor.named_tuple import NamedTuple

_ATTRIBUTES = struct.Struct("=4q32x")
_LIMITS = ("queues_max", "msg_max", "msgsize_max", "msg_default", "msgsize_default")

NEW_MESSAGES, NEW_SIZE = 10, 8192
"""fs.mqueue.msg_max and msgsize_max of a new IPC namespace (include/linux/ipc_namespace.h)."""

SIGNAL, NONE, THREAD = 0, 1, 2
"""Kinds of notification (sigev_notify)."""


class Attributes(NamedTuple):
    """struct mq_attr: O_NONBLOCK or 0; messages there may be; the size of the largest; messages there are."""

    flags: int
    messages: int
    size: int
    now: int


class Notification(NamedTuple):
    """Who is to be told of the next message: its pid as we see it, and how."""

    pid: int
    kind: int
    signal: int


def open_queue(name: bytes, flags: int, mode: int = 0, shape: tuple[int, int] | None = None) -> int:
    """Open or (O_CREAT) make a queue. shape: (messages, size) of a new one. Raises OSError."""
    text = ctypes.create_string_buffer(name)
    attributes = ctypes.create_string_buffer(_ATTRIBUTES.pack(0, *shape, 0)) if shape else None
    where = ctypes.addressof(attributes) if attributes else 0
    return syscall(NR.mq_open, ctypes.addressof(text), flags, mode, where)


def unlink(name: bytes) -> None:
    """Take a queue's name away. Raises OSError."""
    text = ctypes.create_string_buffer(name)
    syscall(NR.mq_unlink, ctypes.addressof(text))


def attributes(fd: int) -> Attributes:
    """What mq_getattr(3) tells."""
    room = ctypes.create_string_buffer(_ATTRIBUTES.size)
    syscall(NR.mq_getsetattr, fd, 0, ctypes.addressof(room))
    return Attributes(*_ATTRIBUTES.unpack(room.raw))


def receive(fd: int, size: int) -> tuple[int, bytes]:
    """The first message of a queue, taken out: (priority, data). size: of the largest there may be. Raises OSError."""
    room = ctypes.create_string_buffer(size)
    priority = ctypes.c_uint()
    length = syscall(NR.mq_timedreceive, fd, ctypes.addressof(room), size, ctypes.addressof(priority), 0)
    return priority.value, ctypes.string_at(room, length)


def send(fd: int, priority: int, data: bytes) -> None:
    """Put a message into a queue, behind those of its priority. Raises OSError."""
    room = ctypes.create_string_buffer(data, max(1, len(data)))
    syscall(NR.mq_timedsend, fd, ctypes.addressof(room), len(data), priority, 0)


def notification(fd: int) -> Notification | None:
    """The notification that is asked for. fd: can be read. The position of the description stays where it is.

    The line is `QSIZE:129 NOTIFY:2 SIGNO:0 NOTIFY_PID:8260`; NOTIFY_PID is 0 for none, or for a process that has no
    number in our PID namespace.
    """
    fields = dict(word.split(":") for word in os.pread(fd, 128, 0).decode().split())
    pid = int(fields["NOTIFY_PID"])
    return Notification(pid, int(fields["NOTIFY"]), int(fields["SIGNO"])) if pid else None


def open_inside(pid: int, name: bytes, flags: int, shape: tuple[int, int] | None = None, unnamed: bool = False) -> int:
    """`open_queue` in the IPC namespace of a process (which gets our limits, where we may set them), and with all the
    memory for queues that we may have. unnamed: its name is taken away at once. Raises OSError."""
    limits = {limit: proc.sysctl(f"fs/mqueue/{limit}") for limit in _LIMITS}

    def make() -> int:
        import resource

        _, hard = resource.getrlimit(resource.RLIMIT_MSGQUEUE)
        resource.setrlimit(resource.RLIMIT_MSGQUEUE, (hard, hard))
        namespaces.enter(pid, ("user", "ipc"))
        for limit, value in limits.items():
            _allow(limit, value)
        fd = open_queue(name, flags, 0o600, shape)
        if unnamed:
            unlink(name)
        return fd

    return clone.made_apart(make)


def _allow(limit: str, value: str) -> None:
    """Give our IPC namespace a limit; without the right to it stays."""
    if value and proc.sysctl(f"fs/mqueue/{limit}") != value:
        try:
            with open(f"/proc/sys/fs/mqueue/{limit}", "w") as file:
                file.write(value)
        except OSError:
            pass


def probe() -> tuple[bool, str]:
    """Can a queue be made and looked at?"""
    if not os.path.exists("/proc/sys/fs/mqueue"):
        return False, "use a kernel with CONFIG_POSIX_MQUEUE"
    name = f"torpor-probe.{os.getpid()}".encode()
    fd = open_queue(name, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600, (1, 8))
    try:
        unlink(name)
        send(fd, 1, b"x")
        return receive(fd, 8) == (1, b"x") and notification(fd) is None, "messages come out as others"
    finally:
        os.close(fd)
