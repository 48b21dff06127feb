"""TCP sockets are asked for again (what is kept of them: inet_record.py)."""

from __future__ import annotations

import _socket
import os
import struct

from torpor.model.errors import RestartFailed
from torpor.posix import inet_far, socket_options
from torpor.posix.inet_connect import Connector, failed_connect
from torpor.posix.inet_record import (
    BOUND,
    CLOSED,
    CONNECTED,
    CONNECTING,
    FAILED,
    FAR,
    FAR_WAITING,
    FRESH,
    IN_JOB,
    LISTENING,
    OUTSIDE,
    WAITING,
    TcpSocket,
)
from torpor.posix.service import Restart
from torpor.posix.socket_address import STREAM
from torpor.posix.socket_options import Options
from torpor.posix.socket_send import send_ahead, send_stream
from torpor.posix.socket_works import Step, close_all, listen, send_later, shut, shut_later, works


def make(record: TcpSocket, restart: Restart, connect: Connector) -> int:
    """A descriptor of such a socket; what can wait is left to `socket_works`. Raises OSError, RestartFailed."""
    if record.state in (FRESH, BOUND, LISTENING):
        one = _socket.socket(record.family, STREAM | _socket.SOCK_CLOEXEC, 0)
        fd = one.detach()
        socket_options.restore_early(fd, record.options)
        if record.state == FRESH:
            return fd
        assert record.local is not None
        connect.bind(fd, record.family, record.local, listening=record.state == LISTENING)
        if record.state == LISTENING:
            socket_options.restore_buffers(fd, record.options)
            listen(fd, record.backlog)
            address = record.local
            for _ in range(record.gone_waiting):
                connect.and_close(record.family, address)
            if record.gone_before:
                works(restart).add(Step.FILL, lambda: _come_and_go(record, restart, connect))
        return fd
    if record.state == CONNECTING:
        if record.other == WAITING and record.remote is not None:
            return connect.start(record.family, record.local, record.remote, record.options)
        if record.other == FAR_WAITING:
            return _bound(record)
        return failed_connect(record.family, record.local)
    if record.other == WAITING:
        assert record.local is not None and record.remote is not None
        _come_and_go(record, restart, connect)
        fd = connect.start(record.family, record.local, record.remote, record.options)
        if record.sent is not None:
            send_later(os.dup(fd), record.sent, False, restart)
        if record.shut:
            shut_later(fd, record.shut, restart)
        return fd
    if record.other == FAR:
        return _far(record, restart)
    if record.other == FAR_WAITING:
        return _bound(record)
    if record.other == OUTSIDE and record.state == CONNECTED and (made := restart.far(record.ino)) >= 0:
        return made  # it was connected again, as a policy has it
    return _pair(record, restart, connect)


def _far(record: TcpSocket, restart: Restart) -> int:
    """The end of a connection that was made with another host, with what is in its queue."""
    fd = restart.far(record.ino)
    if fd < 0:
        raise RestartFailed(
            f"the connection {record.local} - {record.remote} leads to {record.host}: restart the whole job"
        )
    if record.shut:
        mine = os.dup(fd)
        works(restart).add(Step.SHUT, lambda: inet_far.shut(mine, record.shut))
        works(restart).add(Step.LEAVE, lambda: os.close(mine))
    return fd


def _bound(record: TcpSocket) -> int:
    """A socket that is connected at the very end."""
    one = _socket.socket(record.family, STREAM | _socket.SOCK_CLOEXEC, 0)
    try:
        one.setsockopt(socket_options.SOL_SOCKET, socket_options.SO_REUSEADDR, 1)
        if record.local is not None:
            one.bind(record.local.of_family(record.family))
    except OSError:
        pass  # it gets another address
    return one.detach()


def _come_and_go(record: TcpSocket, restart: Restart, connect: Connector) -> None:
    for one in record.gone_before:
        fd = connect.start(one.family, one.local, one.remote, Options())
        if one.sent is not None:
            send_later(fd, one.sent, False, restart)
        else:
            os.close(fd)


def _pair(record: TcpSocket, restart: Restart, connect: Connector) -> int:
    todo = works(restart)
    key = min(record.ino, record.peer or record.ino)
    local, remote = record.local, record.remote
    ends: list[int] = restart.shared(
        ("tcp", key),
        lambda: (
            connect.pair(record.peer_family, remote, record.family, local)
            if record.accepted
            else connect.pair(record.family, local, record.peer_family, remote)
        ),
        lambda made: None,
    )
    mine, other = ends[::-1] if record.accepted else ends
    if record.queue is not None:
        queue = record.queue
        todo.add(Step.FILL, lambda: send_stream(other, mine, queue, restart))
    if record.other == IN_JOB:
        if record.shut:
            todo.add(Step.SHUT, lambda: shut(mine, record.shut))
    elif record.state == FAILED or record.other == OUTSIDE:
        linger = struct.pack("ii", 1, 0)
        if record.shut & 2:
            todo.add(Step.SHUT, lambda: shut(mine, 2))
        todo.add(Step.SHUT, lambda: socket_options.put(other, 1, socket_options.SO_LINGER, linger))
        if record.state == CONNECTED:
            restart.say(f"the connection {record.local} - {record.remote} to outside the job is reset")
    elif record.state == CLOSED:
        todo.add(Step.SHUT, lambda: shut(other, 2))
        todo.add(Step.SHUT, lambda: shut(mine, 3))
    else:
        # The other end is closed. Where this one does not know all of it yet, closing tells it.
        todo.add(Step.SHUT, lambda: shut(other, 2))
        if record.shut:
            todo.add(Step.SHUT, lambda: shut(mine, record.shut))
    if record.other != IN_JOB or record.ino <= record.peer:
        # Last, both are closed here: the job has the ends it had.
        todo.add(Step.LEAVE, lambda: close_all(ends))
    return os.dup(mine)


def last(record: TcpSocket, fd: int, restart: Restart) -> None:
    """All of this host exists: what has to wait for the other hosts is left to the release."""
    if record.other == FAR_WAITING:
        remote, kept = record.remote, os.dup(fd)
        assert remote is not None

        def connect() -> None:
            try:
                if record.state == CONNECTING:
                    inet_far.call(kept, remote)
                    return
                inet_far.connect(kept, remote)
                if record.sent is not None:
                    send_ahead(kept, record.sent, restart)
                if record.shut:
                    inet_far.shut(kept, record.shut)
            finally:
                os.close(kept)

        if record.state == CONNECTING:
            # Behind all those that had come in.
            restart.at_release(lambda: restart.at_release(connect))
        else:
            restart.at_release(connect)
