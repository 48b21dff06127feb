"""UNIX sockets are made again (what is kept of them: unix_record.py).

Pairs without names are made by socketpair(2). An end that was accepted has the name of its listener and can only get
it by being accepted again, so the listener comes first (one that is gone stands there for a moment), then the pairs,
then those who wait to be accepted, in order. Paths are bound anew: a dead socket file in the place is replaced, a
name that was deleted is deleted again. Names relative to a folder are bound in that folder.

What was sent and not read is sent again from the other end, datagrams from the socket that has the sender's name.
Each is made by a process that has the number of whoever made it, for the sake of SO_PEERCRED (posix/socket_user.py).
An end whose peer is outside the job gets one that is closed.
"""

from __future__ import annotations

import _socket
import os
from itertools import zip_longest
from typing import Any

from torpor.model.errors import RestartFailed
from torpor.posix import socket_queue
from torpor.posix.service import Restart
from torpor.posix.socket_address import AF_UNIX, DATAGRAM, SEQPACKET, STREAM, link
from torpor.posix.socket_queue import Queue
from torpor.posix.socket_send import ask_who, send_message, send_stream
from torpor.posix.socket_user import pair
from torpor.posix.socket_works import Step, close_all, send_later, shut, shut_later, works
from torpor.posix.unix_name import Name, Names, names
from torpor.posix.unix_record import CONNECTED, GONE, IN_JOB, LISTENING, OUTSIDE, WAITING, UnixSocket


def make(record: UnixSocket, restart: Restart) -> int:
    """A descriptor of such a socket; what can wait is left to `socket_works`. Raises OSError, RestartFailed."""
    if record.type == DATAGRAM:
        return _make_datagram(record, restart)
    place = names(restart)
    todo = works(restart)
    if record.state != CONNECTED:
        fd = _new(record.type)
        if record.name.raw:
            place.bind(fd, record.name)
        if record.state == LISTENING:
            place.listen(fd, record.backlog, record.them)
            if record.gone_before:
                todo.add(Step.FILL, lambda: _come_and_go(record, record.name, restart, place))
        if record.shut:
            shut_later(fd, record.shut, restart)
        return fd
    if record.other == WAITING:
        _come_and_go(record, record.peer_name, restart, place)
        fd = _new(record.type)
        if record.name.raw:
            place.bind(fd, record.name)
        place.connect_to(restart.object(record.listener), fd, record.peer_name, record.me, record.them)
        if record.sent is not None:
            send_later(os.dup(fd), record.sent, record.type == SEQPACKET, restart)
        if record.shut:
            shut_later(fd, record.shut, restart)
        return fd
    return _pair(record, restart, place)


def _come_and_go(record: UnixSocket, to: Name, restart: Restart, place: Names) -> None:
    for _, sent in zip_longest(range(record.gone_before), record.gone_sent):
        fd = _new(record.type)
        try:
            place.connect(fd, to)
            if sent is not None:
                send_later(os.dup(fd), sent, record.type == SEQPACKET, restart)
        finally:
            os.close(fd)


def _pair(record: UnixSocket, restart: Restart, place: Names) -> int:
    """A connected stream or sequence of packets; the peer may be somebody whom nobody has any more."""
    todo = works(restart)
    key = min(record.ino, record.peer) if record.other == IN_JOB else record.ino
    server, client = (record.name, record.peer_name) if record.accepted else (record.peer_name, record.name)
    ends: tuple[int, int] = restart.shared(
        ("unix", key), lambda: _ends(record, server, client, restart, place), lambda made: None
    )
    mine, other = ends[::-1] if record.accepted else ends
    if not server.raw and not client.raw and record.other == IN_JOB and record.peer < record.ino:
        mine, other = ends[::-1]
    if record.queue is not None:
        queue = record.queue
        if record.type == STREAM:
            todo.add(Step.FILL, lambda: send_stream(other, mine, queue, restart))
        else:
            todo.add(Step.FILL, lambda: _send_packets(other, mine, queue, restart))
    if record.other == IN_JOB:
        if record.shut and record.ino <= record.peer:
            todo.add(Step.SHUT, lambda: shut(mine, record.shut))
        if record.ino <= record.peer:
            todo.add(Step.LEAVE, lambda: close_all(ends))
    else:
        if record.error:
            todo.add(Step.FILL, lambda: _send(mine, b"\0"))
        if record.other == OUTSIDE:
            restart.say(f"the connection to {record.peer_name} outside the job is closed")
        todo.add(Step.LEAVE, lambda: close_all(ends))
    return os.dup(mine)


def _ends(record: UnixSocket, server: Name, client: Name, restart: Restart, place: Names) -> tuple[int, int]:
    """(the end that connected, the end that was accepted); without a name for the latter, just a pair."""
    if not server.raw:
        return pair(record.them, record.type, restart)
    connects, listens = (record.them, record.me) if record.accepted else (record.me, record.them)
    fd = _new(record.type)
    if client.raw:
        place.bind(fd, client)
    if record.listener >= 0:
        listener = os.dup(restart.object(record.listener))
    else:
        listener = _new(record.type)
        place.borrow(listener, server)
        place.listen(listener, 1, listens)
    place.connect_to(listener, fd, server, connects, listens)
    one = _socket.socket(fileno=listener)
    try:
        accepted, _ = one._accept()  # type: ignore[attr-defined]
    finally:
        one.close()
        if record.listener < 0:
            place.give_back(server)
    return fd, accepted


def _send_packets(fd: int, to: int, queue: Queue, restart: Restart) -> None:
    for message, data in socket_queue.contents(queue, restart):
        ask_who(to, message)
        send_message(fd, message, data, None, restart)


def _make_datagram(record: UnixSocket, restart: Restart) -> int:
    place = names(restart)
    todo = works(restart)
    other = -1
    if record.paired or (record.state == CONNECTED and record.other == GONE and not record.peer_name.raw):
        key = min(record.ino, record.paired) if record.paired else record.ino
        ends: tuple[int, int] = restart.shared(("unix", key), lambda: pair(record.them, DATAGRAM, restart), close_all)
        mine, other = ends[::-1] if record.paired and record.paired < record.ino else ends
        fd = os.dup(mine)
    else:
        fd = _new(DATAGRAM)
    if record.name.raw:
        place.bind(fd, record.name)
    kept = os.dup(fd)
    todo.add(Step.LEAVE, lambda: os.close(kept))
    if record.queue is not None:
        queue = record.queue
        source = os.dup(other) if other >= 0 else -1
        todo.add(Step.FILL, lambda: _fill_datagrams(kept, record, queue, source, restart, place))
        if source >= 0:
            todo.add(Step.LEAVE, lambda: os.close(source))
    if record.state == CONNECTED and other < 0:
        todo.add(Step.CONNECT, lambda: _connect_datagram(kept, record, restart, place))
    if record.shut:
        shut_later(fd, record.shut, restart)
    return fd


def _connect_datagram(fd: int, record: UnixSocket, restart: Restart, place: Names) -> None:
    if record.other in (IN_JOB, OUTSIDE):
        try:
            place.connect(fd, record.peer_name)
            return
        except OSError as error:
            if record.other == IN_JOB:
                raise RestartFailed(f"a UNIX socket to {record.peer_name}: {error.strerror}") from None
            restart.say(f"nobody is at {record.peer_name}, outside the job, any more")
    temporary = _new(DATAGRAM)
    try:
        place.borrow(temporary, record.peer_name)
        place.connect(fd, record.peer_name)
    finally:
        os.close(temporary)
        place.give_back(record.peer_name)


def _fill_datagrams(mine: int, record: UnixSocket, queue: Queue, source: int, restart: Restart, place: Names) -> None:
    borrowed: dict[bytes, int] = {}
    try:
        peer = record.peer_name.raw
        if source < 0 and record.other == IN_JOB and all(one.sender == peer for one in queue.messages):
            # Its own peer may fill its queue further than others (net.unix.max_dgram_qlen).
            place.connect(mine, record.peer_name)
        for message, data in socket_queue.contents(queue, restart):
            to: Any = record.name.raw or None
            if message.origin >= 0 and not (source >= 0 and not record.name.raw):
                fd = restart.object(message.origin)
            elif source >= 0:
                fd, to = source, None
            elif message.sender in borrowed:
                fd = borrowed[message.sender]
            else:
                fd = borrowed[message.sender] = _new(DATAGRAM)
                if message.sender:
                    place.borrow(fd, Name(message.sender, record.name.folder))
            ask_who(mine, message)
            send_message(fd, message, data, to, restart, record.name.place)
    except OSError as error:
        raise RestartFailed(f"a datagram to {record.name}: {error.strerror}") from None
    finally:
        for sender, fd in borrowed.items():
            os.close(fd)
            if sender:
                place.give_back(Name(sender, record.name.folder))


def _new(kind: int) -> int:
    return _socket.socket(AF_UNIX, kind | _socket.SOCK_CLOEXEC).detach()


def _send(fd: int, data: bytes) -> None:
    one = link(fd)
    try:
        one.send(data, _socket.MSG_DONTWAIT | _socket.MSG_NOSIGNAL)
    finally:
        one.detach()
