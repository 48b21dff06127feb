"""TCP connections with other hosts of the job: which ends are here, and how what is under way between hosts arrives.

All hosts are stopped, so what was sent arrives by itself if there is room for it where it goes to. So every host opens
the windows of the connections on which more is to come, and waits until others have acknowledged what was sent from
here. Once all hosts have, everything is in a receive queue, where it can be looked at.
"""

from __future__ import annotations

import _socket
import errno
import os
import select
import struct
import time
from collections.abc import Callable, Collection, Mapping, Sequence

from torpor.linux import sock_diag
from torpor.linux.sock_diag import CLOSE, CLOSE_WAIT, ESTABLISHED, LISTEN, SYN_SENT
from torpor.model.errors import NotNow, Refusal, Refused, RestartFailed
from torpor.posix import inet_table, socket_options
from torpor.posix.far import TCP, End, Told, name
from torpor.posix.inet_table import SENT_ALL, InetTable, TcpSeen
from torpor.posix.inet_window import open_window
from torpor.posix.service import Job
from torpor.posix.socket_address import Address, link, packed

_SLACK = 2
"""SYN and FIN may count in what a host says that it has sent (`far.End`)."""
_SYN = 1
"""What counts as sent on a connection on which nothing was."""


def ends(job: Job) -> list[End]:
    """Every end of a TCP connection of the job that does not have its other end in the job here."""
    table = inet_table.of(job)
    found = []
    for ino, me in table.by_ino.items():
        if me.local is None or me.remote is None or me.state in (LISTEN, CLOSE, SYN_SENT):
            continue
        if (me.remote, me.local) in table.by_ends:
            continue
        found.append(
            End(
                ino, TCP, me.local, me.remote, _sent(me.fd), me.state in SENT_ALL,
                accepted=table.listener_at(me.local) is not None,
            )
        )  # fmt: skip
    if table.listeners or any(end.finished for end in found):
        found += _ownerless(table)
    return found


def await_calls(job: Job, others: Collection[bytes], seconds: float = 0.5) -> bool:
    """A connection that is just being made with another host of the job (addresses, packed) is made in a moment, by the
    kernels: wait for that. Has any changed? What is left then waits for room at the other host's listener."""
    table = inet_table.of(job)
    calling = {ino: me.fd for ino, me in table.by_ino.items() if me.state == SYN_SENT}
    if not calling or not others:
        return False
    found = [calling[end.ino] for end in table.world() if end.ino in calling and packed(*end.remote).ip in others]
    until = time.monotonic() + seconds
    while any(_state(fd) == SYN_SENT for fd in found) and time.monotonic() < until:
        time.sleep(0.001)
    return any(_state(fd) != SYN_SENT for fd in found)


def _ownerless(table: InetTable) -> list[End]:
    """Those that no process has: they wait to be accepted by the job, or the kernel still sends what they had sent.
    Their keys are below zero."""
    found: list[End] = []
    for end in table.world():
        local, remote = packed(*end.local), packed(*end.remote)
        if end.ino or end.state in (LISTEN, CLOSE, SYN_SENT) or (remote, local) in table.by_ends:
            continue
        waits = end.state in (ESTABLISHED, CLOSE_WAIT) and table.listener_at(local) is not None
        if waits or end.unsent:
            key = -1 - len(found)
            found.append(End(key, TCP, local, remote, end.unsent, not waits, waits, orphan=not waits, accepted=waits))
    return found


def waiting(found: Sequence[End], told: Sequence[Told]) -> dict[tuple[Address, Address], Told]:
    """Which connections of other hosts wait here to be accepted: address here, address there; and what is known of the
    end there."""
    ownerless = {end.key: end for end in found if end.waiting}
    here = ((ownerless[one.key], one) for one in told if one.key in ownerless)
    return {(end.local, end.remote): one for end, one in here}


def holds_data(sent: int) -> bool:
    """May there be anything in a connection that waits to be accepted? sent: as in `far.End`."""
    return sent > _SYN


def addresses(found: Sequence[End]) -> list[bytes]:
    """Where other hosts' ends may lead to, packed."""
    return sorted({end.local.ip for end in found})


class Settling:
    """While all of a job is stopped: let what is under way arrive. Use as a context manager: on the way out windows are
    as they were."""

    def __init__(self, job: Job, told: Mapping[int, Told]) -> None:
        self._table = inet_table.of(job)
        # What does not fit a connection that waits to be accepted cannot arrive: whoever looks into it gets that too.
        self._told = {ino: one for ino, one in told.items() if ino in self._table.by_ino and not one.waiting}
        self._back: list[Callable[[], None]] = []

    def __enter__(self) -> Settling:
        return self

    def __exit__(self, *_: object) -> None:
        while self._back:
            self._back.pop()()

    def arrive(self, seconds: float = 30.0) -> None:
        """Wait until nothing is under way on any of the connections. Raises Refused if it does not arrive."""
        until = time.monotonic() + seconds
        coming = {ino: self._table.by_ino[ino] for ino in self._told}
        for ino, me in coming.items():
            told = self._told[ino]
            missing = told.arrives if told.orphan else told.arrives - _received(me.fd)
            if missing > 0:
                waiting = missing + sock_diag.to_read(me.fd)
                self._back.append(open_window(me.fd, 2 * waiting + (1 << 17)))
        pause = 0.0
        while True:
            coming = {ino: me for ino, me in coming.items() if not self._there(me, self._told[ino])}
            if not coming:
                return
            if time.monotonic() > until:
                raise Refused([self._stuck(*next(iter(coming.items())))])
            for me in coming.values():
                _peek(me.fd)  # tells the sender that there is room again (tcp_cleanup_rbuf)
            time.sleep(pause)
            pause = min(pause + 0.0005, 0.01)

    def _there(self, me: TcpSeen, told: Told) -> bool:
        if told.orphan:
            # Its host has nobody who could say that all has arrived; but the end comes last.
            return _state(me.fd) not in (ESTABLISHED, *SENT_ALL[:2])
        return not sock_diag.to_send(me.fd) and _received(me.fd) >= told.arrives - _SLACK

    def _stuck(self, ino: int, me: TcpSeen) -> Refusal:
        host = self._told[ino].host
        left = sock_diag.to_send(me.fd)
        if left:
            thing = f"a connection on which {left} bytes do not reach {host}"
            return me.seen.refuse(thing, f"see whether {host} can be reached, and net.core.rmem_max (sysctl) there")
        way_out = "raise net.core.rmem_max (sysctl), or do this as root"
        return me.seen.refuse(f"a connection with {host} with more under way than fits its buffer", way_out)


def accepted(me: TcpSeen, told: Told, job: Job) -> bool:
    """Of a connection with another host: is this the end that waits at the restart?"""
    assert me.local is not None and me.remote is not None
    mine = inet_table.of(job).listener_at(me.local) is not None
    # Both ends have to come to opposite answers.
    return mine if mine != told.accepted else bool(name(TCP, me.local, me.remote)[1])


def refuse_unread(me: TcpSeen, told: Told, job: Job) -> None:
    """Raises NotNow where a connection waits on another host to be accepted, and something was sent on it that is not
    known: only who accepts it can look at that."""
    assert me.local is not None and me.remote is not None
    if not holds_data(sent(me)) or job.backlogs.tcp(me.local, me.remote) is not None:
        return
    if not told.door or not job.backlogs.may or job.backlogs.known:
        thing = f"a connection to {told.host} that waits there to be accepted, with data in it"
        raise NotNow([me.seen.refuse(thing, "try again")])
    job.backlogs.pending = True


def sent(me: TcpSeen) -> int:
    """How much was sent on a connection: see `far.End`."""
    return _sent(me.fd)


def connect(fd: int, remote: Address, seconds: float = 10.0) -> None:
    """Connect a socket to a listener of another host, which has not run yet. Raises RestartFailed."""
    one = link(fd)
    flags = os.get_blocking(fd)
    try:
        os.set_blocking(fd, False)
        try:
            one.connect(remote.of_family(one.family))
        except BlockingIOError:
            poll = select.poll()
            poll.register(fd, select.POLLOUT)
            poll.poll(seconds * 1000)
        error = one.getsockopt(_socket.SOL_SOCKET, _socket.SO_ERROR)
        if error or _state(fd) != ESTABLISHED:
            raise OSError(error or errno.ETIMEDOUT, os.strerror(error or errno.ETIMEDOUT))
    except OSError as error:
        raise RestartFailed(f"the connection to {remote}: {error.strerror}") from None
    finally:
        os.set_blocking(fd, flags)
        one.detach()


def call(fd: int, remote: Address) -> None:
    """Begin to connect a socket to a listener of another host, where there may be no room for it yet."""
    one = link(fd)
    flags = os.get_blocking(fd)
    try:
        os.set_blocking(fd, False)
        one.connect(remote.of_family(one.family))
    except OSError:
        pass  # it is under way, or the program finds that it is not
    finally:
        os.set_blocking(fd, flags)
        one.detach()


def shut(fd: int, how: int, seconds: float = 10.0) -> None:
    """Close directions (1: it receives no more; 2: it sends no more), and wait until the other host knows."""
    one = link(fd)
    try:
        if how & 1:
            one.shutdown(_socket.SHUT_RD)
        if how & 2:
            one.shutdown(_socket.SHUT_WR)
    finally:
        one.detach()
    until = time.monotonic() + seconds
    while sock_diag.to_send(fd):
        if time.monotonic() > until:
            raise RestartFailed("the other host does not acknowledge the end of a connection")
        time.sleep(0.0005)


def _sent(fd: int) -> int:
    # struct tcp_info, tcpi_bytes_acked.
    return _counter(fd, 120) + sock_diag.to_send(fd)


def _state(fd: int) -> int:
    return (socket_options.get(fd, socket_options.TCP, socket_options.TCP_INFO) or b"\0")[0]


def _received(fd: int) -> int:
    return _counter(fd, 128)


def _counter(fd: int, at: int) -> int:
    info = socket_options.get(fd, socket_options.TCP, socket_options.TCP_INFO) or b""
    return int(struct.unpack_from("=Q", info.ljust(at + 8, b"\0"), at)[0])


def _peek(fd: int) -> None:
    one = link(fd)
    try:
        one.recv(1, _socket.MSG_PEEK | _socket.MSG_DONTWAIT)
    except OSError:
        pass
    finally:
        one.detach()
