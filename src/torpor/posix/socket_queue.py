"""What waits in a socket's queue to be read: looked at without taking it, and sent again.

A queue is a row of messages: one per datagram; for a stream one per run of bytes that belong together because
descriptors (SCM_RIGHTS), a sender's identity (SCM_CREDENTIALS) or urgent data come with them. MSG_PEEK shows the
first; SO_PEEK_OFF walks on to the next ones, and is put back.

Peeking at a message with descriptors duplicates them into this process; what they are is for the job's table of
objects to say (`Job.adopt`). Source: unix(7), recv(2), net/unix/af_unix.c.
"""

from __future__ import annotations

import _socket
import array
import ctypes
import errno
import os
import select
import struct
import time
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import msgspec

from torpor.linux import sock_diag
from torpor.linux.libc import libc
from torpor.linux.uio import IoVec
from torpor.model.data import CHUNK_SIZE
from torpor.model.errors import NotNow, RestartFailed
from torpor.named_tuple import NamedTuple
from torpor.posix import socket_options
from torpor.posix.service import Descriptor, Job, Restart
from torpor.posix.socket_address import in_folder, link
from torpor.posix.socket_options import SO_PEEK_OFF, SO_RCVBUF, SO_SNDBUF, SOL_SOCKET

_CMSG_CLOEXEC = 0x40000000
_PEEK = _socket.MSG_PEEK | _socket.MSG_DONTWAIT | _CMSG_CLOEXEC
_ANCILLARY = 4096
_SCM_RIGHTS, _SCM_CREDENTIALS, _SCM_PIDFD = 1, 2, 4
PATIENCE = 3.0
"""Seconds to wait for what is under way between two sockets of this machine."""


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


class _Walk:
    """SO_PEEK_OFF of a socket that is the job's, from 0 on and then what it was."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

        self._before = socket_options.get(fd, SOL_SOCKET, SO_PEEK_OFF, 4)
        self.go(0)

    def __enter__(self) -> _Walk:
        return self

    def go(self, offset: int) -> None:
        socket_options.put(self._fd, SOL_SOCKET, SO_PEEK_OFF, offset)

    def __exit__(self, *_: object) -> None:
        socket_options.put(self._fd, SOL_SOCKET, SO_PEEK_OFF, self._before or -1)


def readable(fd: int) -> int:
    """The events of poll(2) on a socket, those that say what can be read."""
    poll = select.poll()
    poll.register(fd, select.POLLIN | select.POLLPRI | select.POLLRDHUP)
    return next((events for _, events in poll.poll(0)), 0)


def _look(one: _socket.socket, size: int) -> tuple[Peeked | None, int]:
    """The next message, up to `size` bytes of it, and the flags of recvmsg. None: there is no more."""
    try:
        data, ancillary, flags, sender = one.recvmsg(size, _ANCILLARY, _PEEK)
    except BlockingIOError:
        return None, 0
    fds: list[int] = []
    credentials = None
    destination = b""
    for level, kind, value in ancillary:
        if level == SOL_SOCKET and kind == _SCM_RIGHTS:
            numbers = array.array("i")
            numbers.frombytes(value[: len(value) & ~3])
            fds += numbers
        elif level == SOL_SOCKET and kind == _SCM_CREDENTIALS:
            credentials = Credentials(*struct.unpack("=iii", value[:12]))
        elif level == SOL_SOCKET and kind == _SCM_PIDFD:
            _close([fd for fd in struct.unpack("=i", value[:4]) if fd >= 0])  # made for us; SO_PASSPIDFD asks for it
        elif level == socket_options.IP and kind == 8:  # IP_PKTINFO
            destination = value[8:12]
        elif level == socket_options.IPV6 and kind == 50:  # IPV6_PKTINFO
            destination = value[:16]
    return Peeked(data, fds, credentials, sender, destination), flags


def _close(fds: Sequence[int]) -> None:
    for fd in fds:
        os.close(fd)


def peek_datagrams(fd: int, ends: bool = False) -> list[Peeked]:
    """All datagrams in a queue, empty ones included; nothing is taken. ends: nobody can send any more, and an empty
    one may be the end (SOCK_SEQPACKET)."""
    events = readable(fd)
    if not events & select.POLLIN:
        return []
    if events & select.POLLERR:
        if not sock_diag.to_read(fd):
            return []
        raise BrokenPipeError(errno.EPIPE, "an error waits to be told in front of its datagrams")
    one = link(fd)
    found: list[Peeked] = []
    try:
        # An empty datagram that was looked at before is passed over by a walk: look at the first one without.
        first, _ = _look(one, 1) if socket_options.number(fd, SOL_SOCKET, SO_PEEK_OFF) < 0 else (None, 0)
        if first is not None:
            _close(first.fds)
            if not first.data and not (ends and not first.sender and not first.fds):
                found.append(first._replace(fds=[]))
        with _Walk(fd) as walk:
            at, size = 0, 1 << 18
            while True:
                message, flags = _look(one, size)
                if message is None:
                    break
                if flags & _socket.MSG_TRUNC:
                    _close(message.fds)
                    size *= 4
                    walk.go(at)
                    continue
                if ends and not message.data and not message.fds and not message.sender:
                    break
                found.append(message)
                at += len(message.data)
        return found
    except BaseException:
        for message in found:
            _close(message.fds)
        raise
    finally:
        one.detach()


def datagrams_of(fd: int, seen: Descriptor, ends: bool = False) -> list[Peeked]:
    """The same for a socket of the job. Raises Refused where looking would take something away."""
    try:
        return peek_datagrams(fd, ends)
    except BrokenPipeError as error:
        thing = f"a datagram socket that cannot be looked into: {error.strerror}"
        raise NotNow([seen.refuse(thing, "try again")]) from None


def peek_unix_stream(fd: int, pieces: bool = False) -> list[Peeked]:
    """What is in the queue of a UNIX stream, cut where descriptors or another sender's identity begin. pieces: cut
    everywhere between what was sent by one call and the next, as far as the kernel keeps it apart."""
    total = sock_diag.to_read(fd)
    if not total:
        return []
    one = link(fd)
    found: list[Peeked] = []
    try:
        with _Walk(fd) as walk:
            at = 0
            while at < total:
                message, _ = _look(one, total - at)
                if message is None or not message.data:
                    break
                end = at + len(message.data)
                cuts = [at, end]
                if message.fds or pieces:
                    # Bytes that were sent before the ones with descriptors may be in front of them.
                    cuts.insert(1, _start_of(fd, walk, at, end))
                while pieces and cuts[1] > at:
                    cuts.insert(1, _start_of(fd, walk, at, cuts[1]))
                cuts = sorted(set(cuts))
                for start, stop in pairwise(cuts):
                    part = message._replace(data=message.data[start - at : stop - at])
                    found.append(part if stop == end else part._replace(fds=[]))
                at = end
                walk.go(at)
        return found
    except BaseException:
        for message in found:
            _close(message.fds)
        raise
    finally:
        one.detach()


def _start_of(fd: int, walk: _Walk, start: int, end: int) -> int:
    """Where the piece begins that ends at `end`, not before `start`.

    A peek stops in front of a piece whose bytes cannot be copied. So the last byte asked for is to go to an address
    that does not exist, and what is copied ends where its piece begins.
    """
    span = 1 << 16
    while True:
        first = max(start, end - span)
        walk.go(first)
        room = ctypes.create_string_buffer(end - first)
        vectors = (IoVec * 2)()
        vectors[0].base, vectors[0].length = ctypes.addressof(room), end - first - 1
        vectors[1].base, vectors[1].length = 1, 1
        header = struct.pack("=QIIQQQQII", 0, 0, 0, ctypes.addressof(vectors), 2, 0, 0, 0, 0)
        copied = libc.recvmsg(fd, header, _PEEK)
        if copied > 0:
            return int(first + copied)
        if first == start:
            return start
        span *= 4


def peek_tcp(fd: int, inline: bool) -> list[Peeked]:
    """What is in the queue of a TCP connection; the urgent byte, if there is one, ends a message of its own.

    Raises OSError where the kernel cannot look past urgent data (before Linux 6.9).
    """
    one = link(fd)
    try:
        events = readable(fd)
        urgent = events & select.POLLPRI
        size = sock_diag.to_read(fd)
        # Not a byte more where an error waits to be told: looking at it would take it.
        error = events & select.POLLERR
        first = _all(one, size) if size or not error else b""  # ends at urgent data, also at such that was read already
        if error:
            return [Peeked(first, [], None, None)] if first else []
        try:
            walk = _Walk(fd)
        except OSError:
            if urgent:
                raise
            return [Peeked(first, [], None, None)] if first else []
        with walk:
            byte = b""
            if urgent and not inline:
                byte = one.recv(1, _socket.MSG_OOB | _socket.MSG_PEEK | _socket.MSG_DONTWAIT)
            walk.go(len(first))
            after = _all(one, 1 << 24)
            if urgent and inline:
                byte, after = after[:1], after[1:]
        if not urgent:
            first += after
            return [Peeked(first, [], None, None)] if first else []
        found = [Peeked(first + byte, [], None, None, urgent=True)]
        return [*found, Peeked(after, [], None, None)] if after else found
    finally:
        one.detach()


def _all(one: _socket.socket, size: int) -> bytes:
    try:
        return one.recv(max(size, 1), _socket.MSG_PEEK | _socket.MSG_DONTWAIT)
    except BlockingIOError:
        return b""
    except OSError:
        return b""


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


def send_stream(fd: int, to: int, queue: Queue, restart: Restart) -> None:
    """Send what was in a stream's queue, from `fd` to the socket `to` on the other end of it."""
    one = link(fd)
    sender, receiver = socket_options.Room(fd), socket_options.Room(to)
    tcp = one.family != _socket.AF_UNIX
    total = sum(message.size for message in queue.messages)
    sender.grow(SO_SNDBUF, 4 * total + (1 << 16))
    if tcp:
        open_window(to, 2 * total + (1 << 16))
    try:
        _send_stream(one, queue, restart, to)
        if tcp:
            arrive(fd, to)
    finally:
        one.detach()
        sender.back()
        if not tcp:
            receiver.back()


def send_ahead(fd: int, queue: Queue, restart: Restart) -> None:
    """The same where nobody has accepted the connection yet."""
    one = link(fd)
    sender = socket_options.Room(fd)
    sender.grow(SO_SNDBUF, 4 * sum(message.size for message in queue.messages) + (1 << 16))
    try:
        _send_stream(one, queue, restart)
    finally:
        one.detach()
        sender.back()


def _send_stream(one: _socket.socket, queue: Queue, restart: Restart, to: int = -1) -> None:
    for message, data in contents(queue, restart):
        done = 0
        fds = [restart.object(number) for number in message.objects]
        head = len(data) - 1 if message.urgent else len(data)
        if to >= 0:
            ask_who(to, message)
        while done < head:
            done += _send_for(message, one.fileno(), data[done:head], fds, None, "", restart)
            fds = []
        if message.urgent:
            _patiently(partial(one.send, data[head:], _socket.MSG_OOB | _FLAGS))


_FLAGS = _socket.MSG_DONTWAIT | _socket.MSG_NOSIGNAL


def ask_who(fd: int, message: Message) -> None:
    """Senders' identities are kept only of what is sent to a socket that asks for them already."""
    asks = socket_options.get(fd, SOL_SOCKET, socket_options.SO_PASSCRED, 4)
    if asks is not None and bool(any(asks)) != message.told:
        socket_options.try_put(fd, SOL_SOCKET, socket_options.SO_PASSCRED, int(message.told))


def _send_for(
    message: Message, fd: int, data: memoryview, fds: Sequence[int], to: Any, folder: str, restart: Restart
) -> int:
    """Send a message, or a part of it, as whoever sent it: how many bytes of it were taken. Raises OSError."""
    who = message.credentials
    if who is None or not message.told:
        return _send(fd, data, fds, to, folder, None)
    sent = restart.as_process(who.pid, _send, fd, data, fds, to, folder, (who.uid, who.gid))
    return int(sent)


def _send(
    fd: int, data: bytes | memoryview, fds: Sequence[int], to: Any, folder: str, ids: Sequence[int] | None
) -> int:
    """sendmsg(2), once there is room. ids: the user and group that are told as ours."""
    rights = [(SOL_SOCKET, _SCM_RIGHTS, array.array("i", fds).tobytes())] if fds else []
    told = [(SOL_SOCKET, _SCM_CREDENTIALS, struct.pack("=iii", os.getpid(), *ids))] if ids else []
    address = () if to is None else (to,)
    one = link(fd)
    try:
        with in_folder(folder):
            try:
                return _patiently(partial(one.sendmsg, [data], rights + told, _FLAGS, *address))
            except PermissionError:
                if not told:
                    raise
            except OSError as error:
                if not told or error.errno != errno.EINVAL:
                    raise
            # Another user's, which we may not tell.
            return _patiently(partial(one.sendmsg, [data], rights, _FLAGS, *address))
    finally:
        one.detach()


def _patiently(step: Callable[[], int]) -> int:
    """Send once there is room. Raises RestartFailed if there is none."""
    end = time.monotonic() + PATIENCE
    while True:
        try:
            return step()
        except BlockingIOError:
            if time.monotonic() > end:
                raise RestartFailed(
                    "a socket does not take again what was in its queue (see net.core.wmem_max and rmem_max)"
                ) from None
            time.sleep(0.001)


def send_message(fd: int, message: Message, data: memoryview, to: Any, restart: Restart, folder: str = "") -> None:
    """Send one datagram from `fd` to an address (None: to the socket it is connected to). folder: where a relative name
    is looked up. Raises OSError."""
    room = socket_options.Room(fd)
    try:
        room.grow(SO_SNDBUF, 4 * len(data) + (1 << 16))
        fds = [restart.object(number) for number in message.objects]
        _send_for(message, fd, data, fds, to, folder, restart)
    finally:
        room.back()


def open_window(fd: int, size: int) -> Callable[[], None]:
    """Let a TCP socket receive `size` bytes more than are in its queue, as far as that can be had. What puts the
    buffer back; where the kernel tunes it itself it stays as large.

    SO_RCVLOWAT makes the kernel enlarge a buffer that nobody has set, up to net.ipv4.tcp_rmem; that needs no privilege.
    """
    lock = socket_options.number(fd, SOL_SOCKET, socket_options.SO_BUF_LOCK)
    if not lock & 2:
        before = socket_options.number(fd, SOL_SOCKET, socket_options.SO_RCVLOWAT) or 1
        socket_options.try_put(fd, SOL_SOCKET, socket_options.SO_RCVLOWAT, min(size, 1 << 30))
        socket_options.put(fd, SOL_SOCKET, socket_options.SO_RCVLOWAT, before)
        if socket_options.number(fd, SOL_SOCKET, SO_RCVBUF) >= size:
            return lambda: None
    room = socket_options.Room(fd)
    clamp = socket_options.number(fd, socket_options.TCP, socket_options.TCP_WINDOW_CLAMP)
    room.grow(SO_RCVBUF, 2 * size)
    if 0 < clamp < size:
        socket_options.try_put(fd, socket_options.TCP, socket_options.TCP_WINDOW_CLAMP, size)

    def back() -> None:
        room.back()
        if clamp:
            socket_options.try_put(fd, socket_options.TCP, socket_options.TCP_WINDOW_CLAMP, clamp)

    return back


def arrive(sender: int, receiver: int, patience: float = PATIENCE) -> bool:
    """Wait until all that was sent on a TCP connection of this machine has arrived; False if it does not.

    Peeking makes the receiver tell the sender that there is room again (tcp_cleanup_rbuf).
    """
    end = time.monotonic() + patience
    pause = 0.0
    one = link(receiver)
    try:
        while sock_diag.to_send(sender):
            _all(one, 1)
            if time.monotonic() > end:
                return False
            time.sleep(pause)
            pause = min(pause + 0.0002, 0.005)
        return True
    finally:
        one.detach()
