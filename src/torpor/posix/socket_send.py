"""What was in the queue of a socket is sent again, by whoever had sent it."""

from __future__ import annotations

import _socket
import array
import errno
import os
import struct
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from torpor.model.errors import RestartFailed
from torpor.posix import socket_options
from torpor.posix.inet_window import PATIENCE, arrive, open_window
from torpor.posix.service import Restart
from torpor.posix.socket_address import in_folder, link
from torpor.posix.socket_options import SO_SNDBUF, SOL_SOCKET
from torpor.posix.socket_queue import Message, Queue, contents

_FLAGS = _socket.MSG_DONTWAIT | _socket.MSG_NOSIGNAL


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


def ask_who(fd: int, message: Message) -> None:
    """Senders' identities are kept only of what is sent to a socket that asks for them already."""
    asks = socket_options.get(fd, SOL_SOCKET, socket_options.SO_PASSCRED, 4)
    if asks is not None and bool(any(asks)) != message.told:
        socket_options.try_put(fd, SOL_SOCKET, socket_options.SO_PASSCRED, int(message.told))


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
    rights = [(SOL_SOCKET, _socket.SCM_RIGHTS, array.array("i", fds).tobytes())] if fds else []
    told = [(SOL_SOCKET, _socket.SCM_CREDENTIALS, struct.pack("=iii", os.getpid(), *ids))] if ids else []
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
