"""TCP over IPv4 and IPv6.

The kernel keeps for a connection: two addresses, a state, what has arrived and was not read, what was sent and has
not arrived, options. All of the job is stopped when it is saved, so what is under way between two members arrives by
itself; where the receiver's window is closed, its buffer is enlarged for a moment so that everything can be looked at
in its receive queue (MSG_PEEK: nothing is taken).

Coming back, both ends are connected anew from the same addresses: the end that was accepted through a listener that
stands there for a moment only, the other one bound to its old port. Then the data is sent again from the opposite
end, then directions are shut. The job's own listeners are bound last: they could not be while a temporary one
stands there. Connections whose other end waited to be accepted are made after that, in the order of their age.

Where the other end is on another host of the job, the two hosts make the connection before any of this (inet_far.py,
checkpoint/reunion.py).

An end whose peer was closed gets one that is closed; one whose peer is outside the job is reset, with what had
arrived still to be read.
"""

from __future__ import annotations

import _socket
import select
import struct
from collections.abc import Iterable, Mapping

import msgspec

from torpor.linux import sock_diag
from torpor.linux.sock_diag import (
    CLOSE,
    CLOSE_WAIT,
    CLOSING,
    ESTABLISHED,
    LAST_ACK,
    LISTEN,
    SYN_RECV,
    SYN_SENT,
)  # fmt: skip
from torpor.model.errors import NotNow, Refusal, Refused, RestartFailed
from torpor.posix import inet_create, inet_far, inet_table, inet_turnover, socket_kinds, socket_options, socket_queue
from torpor.posix.backlog import Backlogs
from torpor.posix.descriptors import set_status, status_flags
from torpor.posix.inet_again import Client
from torpor.posix.inet_connect import connector
from torpor.posix.inet_record import (
    BOUND,
    CLOSED,
    CONNECTED,
    CONNECTING,
    FAILED,
    FAR,
    FAR_WAITING,
    FRESH,
    GONE,
    IN_JOB,
    LISTENING,
    OUTSIDE,
    WAITING,
    Gone,
    TcpSocket,
)
from torpor.posix.inet_table import InetTable, TcpSeen
from torpor.posix.inet_window import PATIENCE, arrive, open_window
from torpor.posix.service import Descriptor, DescriptorBase, Job, Restart
from torpor.posix.socket_address import AF_INET, AF_INET6, Address, link, packed
from torpor.posix.socket_peek import peek_tcp, readable
from torpor.posix.socket_queue import Queue
from torpor.posix.socket_works import options_later
from torpor.tracee.process import LivingProcess


class TcpService(DescriptorBase):
    name = "tcp"
    record = TcpSocket

    def claims(self, seen: Descriptor) -> bool:
        return socket_kinds.kind(seen) in ("TCP", "TCPv6")

    def capture(self, fd: int, seen: Descriptor, job: Job) -> TcpSocket:
        socket_kinds.refuse_unusual(fd, seen)
        ulp = socket_options.get(fd, socket_options.TCP, socket_options.TCP_ULP)
        if ulp and ulp.strip(b"\0"):
            raise Refused([seen.refuse(f"a TCP socket with {ulp.strip(bytes(1)).decode()} in the kernel", _WAY_OUT)])
        table = inet_table.of(job)
        me = table.by_ino[seen.ino]
        events = readable(fd)
        record = TcpSocket(
            ino=seen.ino, family=me.family, flags=status_flags(fd), state=FRESH, local=me.local, remote=me.remote,
            options=socket_options.save(fd, me.family, socket_options.TCP), error=bool(events & select.POLLERR),
        )  # fmt: skip
        replace = msgspec.structs.replace
        if me.state == LISTEN:
            return self._listener(record, fd, seen, table, job)
        if me.state == CLOSE:
            if events & select.POLLERR:
                refused = socket_options.get(fd, socket_options.TCP, socket_options.TCP_INFO) or bytes(192)
                never = struct.unpack_from("=I", refused, 68)[0] == 0  # tcpi_rtt: nothing was ever answered
                state = CONNECTING if never else FAILED
                return replace(record, state=state, other=GONE, queue=self._queue(fd, seen, job, record))
            if events & select.POLLRDHUP:
                return replace(record, state=CLOSED, other=GONE, queue=self._queue(fd, seen, job, record))
            bound = me.local is not None and (me.local.port or not me.local.any)
            return replace(record, state=BOUND if bound else FRESH)
        if me.state == SYN_SENT:
            return self._connecting(record, table, job)
        return self._connected(record, fd, me, seen, job, table, events)

    def _listener(self, record: TcpSocket, fd: int, seen: Descriptor, table: InetTable, job: Job) -> TcpSocket:
        assert record.local is not None
        # After all that was accepted here or uses the port; those that wait to be accepted come after the listener.
        info = socket_options.get(fd, socket_options.TCP, socket_options.TCP_INFO) or bytes(192)
        waiting, backlog = struct.unpack_from("=II", info, 24)  # tcpi_unacked, tcpi_sacked of a listener
        first = [other.number for other in table.by_ino.values() if self._before(other, record.local.port, table)]
        gone = 0
        if waiting:
            for end in table.world():
                if (
                    end.ino
                    or end.state not in (ESTABLISHED, CLOSE_WAIT)
                    or packed(*end.local).port != record.local.port
                ):
                    continue
                local, remote = packed(*end.local), packed(*end.remote)
                found = table.listener_at(local)
                if found is None or found[0] != record.ino:
                    continue
                if (local, remote) in job.far_waiting:
                    if not job.backlogs.known and inet_far.holds_data(job.far_waiting[local, remote].arrives):
                        why = NotNow([_unread(seen, f"from {remote}", local)], socket_kinds.holders(record.ino, job))
                        job.backlogs.unread(seen, why)
                    continue
                if job.backlogs.tcp(remote, local) is not None:
                    continue
                held = end.received > (end.state == CLOSE_WAIT)  # the end itself counts as one
                if held and self._from_outside(end, table, job):
                    # The program is to find what it would find if that client had died: nothing is touched.
                    thing = (
                        f"a connection from {remote}, outside the job, waits at {local} to be accepted: what it holds"
                    )
                    job.say(f"{thing} is not in this checkpoint, from which it comes back as one that has ended")
                elif held:
                    why = NotNow([_unread(seen, f"from {remote}", local)], socket_kinds.holders(record.ino, job))
                    job.backlogs.unread(seen, why)
                gone += (remote, local) not in table.by_ends
        return msgspec.structs.replace(
            record, state=LISTENING, remote=None, backlog=backlog, gone_waiting=gone, after=tuple(sorted(set(first))),
            gone_before=self._gone_before(None, record.ino, table, job),
        )  # fmt: skip

    def _from_outside(self, end: sock_diag.InetSeen, table: InetTable, job: Job) -> bool:
        """Does a connection that waits to be accepted here come from a program that is not of the job? One that is
        closed may have been of the job, if it was on this host, or on one that the job is on."""
        local, remote = packed(*end.local), packed(*end.remote)
        if (remote, local) in table.by_ends or (local, remote) in job.far_waiting:
            return False
        there = table.ends_at(remote, local)
        if end.state == ESTABLISHED or (there is not None and there.ino):
            return True
        return not job.far_hosts and not inet_turnover.is_here(remote)

    def _gone_before(self, client: TcpSeen | None, listener: int, table: InetTable, job: Job) -> tuple[Gone, ...]:
        """Those that are gone and wait right in front of a client (None: behind all) of a listener that was looked
        into."""
        found: list[Gone] = []
        for local, remote in job.backlogs.tcp_order():
            at = table.listener_at(remote)
            if at is None or at[0] != listener:
                continue
            if client is not None and (local, remote) == (client.local, client.remote):
                return tuple(found)
            if (local, remote) in table.by_ends:
                found = []
                continue
            family = AF_INET if len(local.ip) == 4 else AF_INET6
            found.append(Gone(local, remote, family, self._sent_by(local, remote, job)))
        return tuple(found) if client is None else ()

    def _sent_by(self, local: Address, remote: Address, job: Job) -> Queue | None:
        return socket_queue.keep(job.backlogs.tcp(local, remote) or (), job, lambda sender: (b"", 0, -1))

    def _before(self, other: TcpSeen, port: int, table: InetTable) -> bool:
        """Must this socket exist before a listener on that port does?"""
        if other.local is None or other.state in (LISTEN, SYN_SENT):
            return False
        if other.remote is None:  # connected once: it has kept the port
            return other.local.port == port and other.state == CLOSE
        return port in (other.local.port, other.remote.port) and not self._waits(other, table)

    def _waits(self, one: TcpSeen, table: InetTable) -> bool:
        """Does its other end wait to be accepted by a listener of the job?"""
        assert one.local is not None and one.remote is not None
        return (one.remote, one.local) not in table.by_ends and self._waits_at(one, table) is not None

    def _waits_at(self, one: TcpSeen, table: InetTable) -> tuple[int, TcpSeen] | None:
        assert one.local is not None and one.remote is not None
        found = table.listener_at(one.remote)
        if found is None:
            return None
        end = table.ends_at(one.remote, one.local)
        # No socket at all: a request that the full backlog has not taken (SYN_RECV).
        if end is None:
            return found if one.state == ESTABLISHED else None
        return found if not end.ino and end.state in (ESTABLISHED, CLOSE_WAIT, SYN_RECV) else None

    def _connecting(self, record: TcpSocket, table: InetTable, job: Job) -> TcpSocket:
        # getpeername does not tell yet where to.
        for end in table.world():
            if end.ino == record.ino:
                remote = packed(*end.remote)
                found = table.listener_at(remote)
                after: tuple[int, ...] = ()
                if found is not None:
                    waiting = [o.number for o in table.by_ino.values() if o.remote and o.state != SYN_SENT]
                    after = (found[1].number, *waiting)
                far = FAR_WAITING if remote.ip in job.far_hosts else OUTSIDE
                return msgspec.structs.replace(
                    record, state=CONNECTING, remote=remote, other=WAITING if found else far, after=after
                )
        return msgspec.structs.replace(record, state=CONNECTING, other=OUTSIDE)

    def _connected(
        self, record: TcpSocket, fd: int, me: TcpSeen, seen: Descriptor, job: Job, table: InetTable, events: int
    ) -> TcpSocket:
        assert me.local is not None
        if me.remote is None:
            return msgspec.structs.replace(record, state=CLOSED, other=GONE, queue=self._queue(fd, seen, job, record))
        replace = msgspec.structs.replace
        record = replace(record, state=CONNECTED, shut=inet_table.shut_of(me))
        ino = table.by_ends.get((me.remote, me.local))
        if ino is not None:
            peer = table.by_ino[ino]
            self._settle(peer.fd, fd, seen)
            accepted = _accepted(me, table)
            return replace(
                record, other=IN_JOB, peer=ino, peer_family=peer.family, accepted=accepted,
                queue=self._queue(fd, seen, job, record),
            )  # fmt: skip
        told = job.far.get(seen.ino)
        if told is not None and not told.orphan:
            host = told.host
            if told.waiting:
                inet_far.refuse_unread(me, told, job)
                return replace(record, other=FAR_WAITING, host=host, sent=self._sent_by(me.local, me.remote, job))
            accepted = inet_far.accepted(me, told, job)
            queue = self._queue(fd, seen, job, record)
            if queue is not None and any(message.urgent for message in queue.messages):
                way_out = "let it be read before the checkpoint"
                raise Refused([seen.refuse(f"a connection with {host} with urgent data in it", way_out)])
            return replace(record, other=FAR, host=host, accepted=accepted, queue=queue)
        found = self._waits_at(me, table)
        if found is not None:
            known = job.backlogs.tcp(me.local, me.remote)
            end = table.ends_at(me.remote, me.local)
            held = end is not None and end.received > (end.state == CLOSE_WAIT)
            if known is None and (sock_diag.to_send(fd) or held):
                why = NotNow([_unread(seen, "to", me.remote)], socket_kinds.holders(found[0], job))
                job.backlogs.unread(found[1].seen, why)
            looked_into = {ends: place for place, ends in enumerate(job.backlogs.tcp_order())}

            def line(one: TcpSeen) -> tuple[int, int, int]:
                assert one.local is not None and one.remote is not None
                return looked_into.get((one.local, one.remote), len(looked_into)), -one.age, one.local.port

            older = [
                other.number
                for ino, other in table.by_ino.items()
                if other is not me and other.remote is not None and other.remote.port == me.remote.port
                and other.state not in (SYN_SENT, LISTEN, CLOSE) and self._waits_at(other, table) == found
                and line(other) < line(me)
            ]  # fmt: skip
            return replace(
                record, other=WAITING, after=(found[1].number, *older), sent=self._sent_by(me.local, me.remote, job),
                gone_before=self._gone_before(me, found[0], table, job),
            )  # fmt: skip
        end = table.ends_at(me.remote, me.local)
        other = GONE if me.state in (CLOSE_WAIT, LAST_ACK, CLOSING) or (end is not None and not end.ino) else OUTSIDE
        if end is not None and end.ino:
            other = OUTSIDE
        if end is not None and not end.ino and end.unsent:
            self._drain(fd, end)
        gone = other == GONE and me.state in (CLOSE_WAIT, LAST_ACK, CLOSING)
        return replace(
            record, other=GONE if gone else OUTSIDE if other == OUTSIDE else GONE, accepted=_accepted(me, table),
            peer_family=me.family, queue=self._queue(fd, seen, job, record),
        )  # fmt: skip

    def _settle(self, sender: int, receiver: int, seen: Descriptor) -> None:
        """Let everything that is under way to `receiver` arrive."""
        if not sock_diag.to_send(sender) or arrive(sender, receiver, 0.05):
            return
        waiting = sock_diag.to_send(sender) + sock_diag.to_read(receiver)
        back = open_window(receiver, 2 * waiting + (1 << 17))
        try:
            if not arrive(sender, receiver):
                left = sock_diag.to_send(sender)
                way_out = "raise net.core.rmem_max (sysctl) above it, or do this as root"
                raise Refused([seen.refuse(f"a TCP connection with {left} bytes that do not fit its buffer", way_out)])
        finally:
            back()

    def _drain(self, fd: int, end: sock_diag.InetSeen) -> None:
        """What a closed peer has still to send: let it arrive."""
        import time

        back = open_window(fd, 2 * (end.unsent + sock_diag.to_read(fd)) + (1 << 17))
        one = link(fd)
        try:
            before = -1
            stop = time.monotonic() + PATIENCE
            while time.monotonic() < stop and before != sock_diag.to_read(fd):
                before = sock_diag.to_read(fd)
                one.recv(1, _socket.MSG_PEEK | _socket.MSG_DONTWAIT)
                time.sleep(0.02)
        except OSError:
            pass
        finally:
            one.detach()
            back()

    def _queue(self, fd: int, seen: Descriptor, job: Job, record: TcpSocket) -> Queue | None:
        inline = any((one.level, one.name) == (1, 10) and any(one.value) for one in record.options.values)
        try:
            found = peek_tcp(fd, inline)
        except OSError as error:
            way_out = "let it be read before the checkpoint, or use Linux 6.9 or later"
            raise Refused([seen.refuse(f"a TCP socket with urgent data ({error.strerror})", way_out)]) from None
        return socket_queue.keep(found, job, lambda sender: (b"", 0, -1))

    def ended(self, fd: int, record: TcpSocket) -> None:
        """The job is about to be ended by us: what is connected within it leaves no TIME_WAIT behind, so that its
        addresses can be had again at once."""
        if record.state == CONNECTED and record.other in (IN_JOB, FAR, WAITING):
            socket_options.try_put(fd, socket_options.SOL_SOCKET, socket_options.SO_LINGER, struct.pack("ii", 1, 0))

    def needs(self, record: TcpSocket) -> Iterable[int]:
        return record.after

    def create(self, record: TcpSocket, restart: Restart) -> int:
        try:
            fd = inet_create.make(record, restart, connector(restart))
        except OSError as error:
            raise RestartFailed(f"a TCP socket at {record.local}: {error.strerror}") from None
        set_status(fd, record.flags)
        options_later(fd, record.options, restart)
        return fd

    def finish(self, record: TcpSocket, fd: int, restart: Restart) -> None:
        inet_create.last(record, fd, restart)

    # Looking into what waits (posix/backlog.py).

    def plan_turns(self, seen: Descriptor, job: Job) -> inet_turnover.Line:
        table = inet_table.of(job)
        listener = table.by_ino[seen.ino]
        info = socket_options.get(listener.fd, socket_options.TCP, socket_options.TCP_INFO) or bytes(192)
        clients = []
        for end in table.world():
            local, remote = packed(*end.local), packed(*end.remote)
            found = table.listener_at(local)
            if end.ino or end.state not in (ESTABLISHED, CLOSE_WAIT) or found is None or found[0] != seen.ino:
                continue
            if (local, remote) in job.far_waiting:
                told = job.far_waiting[local, remote]
                clients.append(Client(remote, local, 0, None, told.arrives, 0, host=told.host))
                continue
            other = table.by_ino.get(table.by_ends.get((remote, local), 0))
            far = table.ends_at(remote, local)
            if self._from_outside(end, table, job) or (other is None and not inet_turnover.is_here(remote)):
                raise NotNow([_in_line(seen, local, remote)], socket_kinds.holders(seen.ino, job))
            family = other.family if other is not None else AF_INET if len(remote.ip) == 4 else AF_INET6
            size = end.received + (far.unsent if far is not None else 0)
            shut = inet_table.shut_of(other) if other is not None else 2
            clients.append(Client(remote, local, family, other.seen if other is not None else None, size, shut))
        waiting = int(struct.unpack_from("=I", info, 24)[0])  # tcpi_unacked of a listener
        return inet_turnover.plan(seen, listener.family, waiting, clients, job)

    def turn(
        self, line: inet_turnover.Line, processes: Mapping[int, LivingProcess], job: Job, backlogs: Backlogs
    ) -> None:
        clients = {one.local: one for one in line.clients}
        for _ in line.clients:
            found = inet_turnover.carry_out(line, processes, job, backlogs.get_ready(line))
            if not clients[found.client].host:  # its own host keeps what was in it
                backlogs.tell_tcp(found.client, clients[found.client].remote, found.messages)


_WAY_OUT = "close it before the checkpoint"


def _accepted(me: TcpSeen, table: InetTable) -> bool:
    """Was this end the one that was accepted? Where no listener tells, the one with the lower port counts as such."""
    assert me.local is not None and me.remote is not None
    if table.listener_at(me.local) is not None:
        return True
    if table.listener_at(me.remote) is not None:
        return False
    return (me.local.port, me.local.ip) < (me.remote.port, me.remote.ip)


def _in_line(seen: Descriptor, local: Address, remote: Address) -> Refusal:
    thing = f"a TCP listener at {local} at which connections of the job wait to be accepted, with data in them, in one "
    thing += f"line with a connection from {remote}, which nobody here can make again"
    return seen.refuse(thing, "try again when the program has accepted what waits there")


def _unread(seen: Descriptor, word: str, address: Address) -> Refusal:
    return seen.refuse(
        f"a TCP connection {word} {address} that waits to be accepted and has data in it already, which cannot be "
        "read before that",
        "try again when the program has accepted it",
    )


SERVICE = TcpService()
