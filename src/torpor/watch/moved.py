"""Calls to old addresses, made for the task with the new ones, on the holder's own copy of the task's socket.

What a call does depends on the socket alone, and so is the same as if the task had made it; only the address differs.
No call is waited for here, since others wait for us. A `connect` that blocks is begun, and if it is not over in a
moment the task is let go on with its own: the kernel, which finds the socket connecting, does not look at the address
any more but waits for the end, with whatever signals and time limits there are (net/ipv4/af_inet.c,
__inet_stream_connect).
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import signal
from _socket import AF_INET, AF_INET6, inet_pton

from torpor.linux import uio
from torpor.linux.arch.x86_64 import NR
from torpor.linux.libc import libc
from torpor.linux.seccomp_notify import Notice
from torpor.model.address_map import AddressMap, Place
from torpor.watch import lines, messages
from torpor.watch.lines import V4_IN_V6
from torpor.watch.messages import Message

ADDRESS_MOST = 128
"""sizeof(struct sockaddr_storage)."""
_DATAGRAM_MOST = 65535
_MANY = 1024
"""Messages of one sendmmsg (UIO_MAXIOV)."""
_MSG_NOSIGNAL = 0x4000
_MOMENT = 0.002
"""Seconds that the beginning of a connection may take."""
_IPPROTO_TCP, _TCP_INFO, _TCP_CLOSE = 6, 11, 7
_CONNECTING = (errno.EINTR, errno.EINPROGRESS, errno.EALREADY)

Outcome = tuple[int, int]
"""The result of a call, and its errno, 0 for none."""


class Mover:
    """Makes calls with mapped addresses."""

    def __init__(self, moves: AddressMap) -> None:
        self._moves = moves
        # Python leaves SA_RESTART out: what we wait in is interrupted.
        signal.signal(signal.SIGALRM, lambda *_: None)

    def perform(self, notice: Notice, fd: int, protocol: str) -> Outcome | None:
        """Make the call on our copy of its socket; None if the task is to make it itself, because its address is where
        it was or the kernel will not look at it. Raises OSError where the task's memory cannot be read."""
        nr, args = notice.nr, notice.args
        if nr in (NR.sendmsg, NR.sendmmsg):
            return self._send(notice, fd) if protocol == "udp" else None
        if nr == NR.sendto:
            at, size = args[4], args[5]
        elif nr in (NR.connect, NR.bind):
            at, size = args[1], args[2]
        else:
            return None
        size &= 0xFFFFFFFF
        if not 0 < size <= ADDRESS_MOST:
            return None
        raw = uio.read(notice.task, at, size)
        asked = lines.host_and_port(raw)
        stream = protocol in ("tcp", "mptcp")
        place = self._moves.find(*asked, answer=nr != NR.bind and not stream) if asked is not None else None
        if place is None:
            return None
        address = moved(raw, place)
        if nr == NR.bind:
            return _outcome(libc.bind(fd, address, size))
        if nr == NR.connect:
            return _connect(fd, address, stream)
        if stream or args[2] > _DATAGRAM_MOST:
            return None  # a connection goes where it goes; what is too long is refused whatever the address
        data = uio.read(notice.task, args[1], args[2]) if args[2] else b""
        return _outcome(libc.sendto(fd, data, len(data), (args[3] & 0xFFFFFFFF) | _MSG_NOSIGNAL, address, size))

    def _send(self, notice: Notice, fd: int) -> Outcome | None:
        """sendmsg(2) and sendmmsg(2) of datagrams. Of the latter all messages are sent here if one names an old
        address: up to the first that fails, or that has to be left to the task."""
        task, args = notice.task, notice.args
        if notice.nr == NR.sendmsg:
            message = messages.read(task, args[1])
            moved = self._redirected(message)
            return _outcome(messages.send(fd, moved, args[2])) if moved is not None else None
        found = [messages.read(task, args[1] + at * messages.MANY) for at in range(min(args[2] & 0xFFFFFFFF, _MANY))]
        redirected = [self._redirected(message) for message in found]
        if not any(redirected):
            return None
        sent = 0
        for message, moved in zip(found, redirected):
            there = moved or message
            outcome = _outcome(messages.send(fd, there, args[3])) if there is not None else (0, errno.EAGAIN)
            if outcome[1]:
                return (sent, 0) if sent else outcome if there is not None else None
            uio.write(task, args[1] + sent * messages.MANY + messages.SIZE, outcome[0].to_bytes(4, "little"))
            sent += 1
        return sent, 0

    def _redirected(self, message: Message | None) -> Message | None:
        """A message with the new address; None if it goes to none that has moved."""
        asked = lines.host_and_port(message.name) if message is not None and message.name else None
        place = self._moves.find(*asked, answer=True) if asked is not None else None
        return None if message is None or place is None else message._replace(name=moved(message.name, place))


def moved(address: bytes, place: Place) -> bytes:
    """A struct sockaddr of the Internet with another place in it, of the same family; IPv4 in IPv6 clothes stays so."""
    port = place.port.to_bytes(2, "big")
    if int.from_bytes(address[:2], "little") == AF_INET:
        return address[:2] + port + inet_pton(AF_INET, place.host) + address[8:]
    host = inet_pton(AF_INET6, place.host) if ":" in place.host else V4_IN_V6 + inet_pton(AF_INET, place.host)
    return address[:2] + port + address[4:8] + host + address[24:]


def _outcome(value: int) -> Outcome:
    return (0, ctypes.get_errno()) if value < 0 else (value, 0)


def _connect(fd: int, address: bytes, stream: bool) -> Outcome | None:
    if not stream or fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_NONBLOCK:
        if stream and _begun(fd):
            return None
        return _outcome(libc.connect(fd, address, len(address)))
    if _begun(fd):
        return None
    signal.setitimer(signal.ITIMER_REAL, _MOMENT, _MOMENT)  # again and again: the first may come before we wait
    try:
        outcome = _outcome(libc.connect(fd, address, len(address)))
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    return None if outcome[1] in _CONNECTING else outcome


def _begun(fd: int) -> bool:
    """Is there a connection, or the beginning of one, so that an address is of no use any more?"""
    room, size = ctypes.create_string_buffer(256), ctypes.c_uint(256)
    if libc.getsockopt(fd, _IPPROTO_TCP, _TCP_INFO, room, ctypes.byref(size)):
        return False
    return room.raw[0] != _TCP_CLOSE
