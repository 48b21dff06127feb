"""Looking into the queue of a socket: nothing is taken, and the socket is afterwards as it was.

MSG_PEEK shows the first message; SO_PEEK_OFF walks on to the next ones, and is put back.

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
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise

from torpor.linux import sock_diag
from torpor.linux.libc import libc
from torpor.linux.uio import IoVec
from torpor.model.errors import NotNow
from torpor.posix import socket_options
from torpor.posix.service import Descriptor
from torpor.posix.socket_address import link
from torpor.posix.socket_options import SO_PEEK_OFF, SOL_SOCKET
from torpor.posix.socket_queue import Credentials, Peeked

_CMSG_CLOEXEC = 0x40000000
_PEEK = _socket.MSG_PEEK | _socket.MSG_DONTWAIT | _CMSG_CLOEXEC
_ANCILLARY = 4096
_SCM_PIDFD = 4


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
        if level == SOL_SOCKET and kind == _socket.SCM_RIGHTS:
            numbers = array.array("i")
            numbers.frombytes(value[: len(value) & ~3])
            fds += numbers
        elif level == SOL_SOCKET and kind == _socket.SCM_CREDENTIALS:
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


@contextmanager
def _looking(fd: int) -> Iterator[tuple[_socket.socket, list[Peeked]]]:
    """The socket, and what was found in its queue so far: its descriptors are closed if looking fails."""
    one = link(fd)
    found: list[Peeked] = []
    try:
        yield one, found
    except BaseException:
        for message in found:
            _close(message.fds)
        raise
    finally:
        one.detach()


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
    with _looking(fd) as (one, found):
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
    with _looking(fd) as (one, found):
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
        # It ends at urgent data, also at such that was read already.
        first = peek_bytes(one, size) if size or not error else b""
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
            after = peek_bytes(one, 1 << 24)
            if urgent and inline:
                byte, after = after[:1], after[1:]
        if not urgent:
            first += after
            return [Peeked(first, [], None, None)] if first else []
        found = [Peeked(first + byte, [], None, None, urgent=True)]
        return [*found, Peeked(after, [], None, None)] if after else found
    finally:
        one.detach()


def peek_bytes(one: _socket.socket, size: int) -> bytes:
    """What recv(2) would give of a stream now, `size` bytes at most; b'' if that is nothing or an error."""
    try:
        return one.recv(max(size, 1), _socket.MSG_PEEK | _socket.MSG_DONTWAIT)
    except OSError:
        return b""
