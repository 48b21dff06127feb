"""What waits in a socket's queue to be read, as it is kept: socket_peek.py looks at it, socket_send.py sends it again.

A queue is a row of messages: one per datagram; for a stream one per run of bytes that belong together because
descriptors (SCM_RIGHTS), a sender's identity (SCM_CREDENTIALS) or urgent data come with them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from torpor.model.data import CHUNK_SIZE
from torpor.named_tuple import NamedTuple
from torpor.posix.service import Job, Restart


class Credentials(msgspec.Struct, frozen=True, array_like=True):
    """Who sent a message, as the job is told: pid 0 where it has no number for the process."""

    pid: int
    uid: int
    gid: int


_UNKNOWN = Credentials(0, 65534, 65534)
"""What recvmsg tells where the kernel has kept nothing (kernel.overflowuid)."""


class Message(msgspec.Struct, frozen=True, array_like=True):
    """One message: its size; the descriptors in it, as objects of the job; urgent: its last byte is (MSG_OOB).

    sender: its address; for UNIX its name. origin: the object of the job that it was sent from, -1 if that is not
    known or closed. destination: the address it was sent to, where known.
    """

    size: int
    objects: tuple[int, ...] = ()
    credentials: Credentials | None = None
    sender: bytes = b""
    port: int = 0
    origin: int = -1
    urgent: bool = False
    destination: bytes = b""

    @property
    def told(self) -> bool:
        """Will it be told who has sent it? (Of what was sent before the receiver asked for that, nobody is known.)"""
        return self.credentials is not None and self.credentials != _UNKNOWN


class Queue(msgspec.Struct, frozen=True):
    """All that waits: its bytes as chunks, and how they are divided."""

    refs: tuple[int, ...]
    messages: tuple[Message, ...]


class Peeked(NamedTuple):
    """A message as it was found; `fds` are ours."""

    data: bytes
    fds: list[int]
    credentials: Credentials | None
    sender: Any
    destination: bytes = b""
    urgent: bool = False


def keep(
    found: Sequence[Peeked],
    job: Job,
    address: Callable[[Any], tuple[bytes, int, int]],
) -> Queue | None:
    """Put a queue into the sink. address: sender to (name or ip, port, object it was sent from or -1)."""
    if not found:
        return None
    messages = []
    for message in found:
        name, port, origin = address(message.sender)
        messages.append(
            Message(
                len(message.data), tuple(job.adopt(fd) for fd in message.fds), message.credentials, name, port,
                origin, message.urgent, message.destination,
            )
        )  # fmt: skip
    whole = memoryview(b"".join(message.data for message in found))
    refs = tuple(job.sink.put(whole[at : at + CHUNK_SIZE]) for at in range(0, len(whole), CHUNK_SIZE))
    return Queue(refs, tuple(messages))


def contents(queue: Queue, restart: Restart) -> list[tuple[Message, memoryview]]:
    """The messages of a queue with their bytes."""
    whole = memoryview(b"".join(bytes(restart.source.get(ref)) for ref in queue.refs))
    out, at = [], 0
    for message in queue.messages:
        out.append((message, whole[at : at + message.size]))
        at += message.size
    return out
