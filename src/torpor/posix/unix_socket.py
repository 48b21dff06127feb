"""UNIX sockets: streams, sequenced packets, datagrams; with a path, an abstract name, or none.

The kernel keeps for one: its name, what it is connected to, which directions are over, what was sent to it and not
read, with descriptors and identities of senders in it. What is connected to what is told by sock_diag(7), in
inode numbers; the queue is looked at with MSG_PEEK.

Coming back: pairs without names are made by socketpair(2). An end that was accepted has the name of its listener and
can only get it by being accepted again, so the listener comes first (one that is gone stands there for a moment),
then the pairs, then those who wait to be accepted, in order. Paths are bound anew: a dead socket file in the place
is replaced, a name that was deleted is deleted again. Names relative to a folder are bound in that folder.

What was sent and not read is sent again from the other end, datagrams from the socket that has the sender's name.
Each is made by a process that has the number of whoever made it, for the sake of SO_PEERCRED (posix/socket_user.py).
An end whose peer is outside the job gets one that is closed.
"""

from __future__ import annotations

import _socket
import os
import select
from collections.abc import Iterable, Mapping
from itertools import zip_longest
from typing import Any

import msgspec

from torpor.linux import proc, sock_diag
from torpor.linux.sock_diag import LISTEN, UnixSeen
from torpor.model.errors import NotNow, Refused, RestartFailed
from torpor.posix import socket_kinds, socket_options, socket_queue, unix_table, unix_turnover
from torpor.posix.backlog import Backlogs
from torpor.posix.descriptors import info_value, set_status, status_flags
from torpor.posix.service import Descriptor, DescriptorBase, Job, Restart
from torpor.posix.socket_address import AF_UNIX, DATAGRAM, SEQPACKET, STREAM, link, own_name, peer_name, unix
from torpor.posix.socket_options import SOL_SOCKET, Options
from torpor.posix.socket_peek import datagrams_of, peek_unix_stream, readable
from torpor.posix.socket_queue import Peeked, Queue
from torpor.posix.socket_send import ask_who, send_message, send_stream
from torpor.posix.socket_user import Who, pair
from torpor.posix.socket_works import Step, close_all, options_later, send_later, shut, shut_later, works
from torpor.posix.unix_name import Name, Names, find_file, names
from torpor.posix.unix_table import UnixTable
from torpor.tracee.process import LivingProcess

FREE, LISTENING, CONNECTED = "free", "listening", "connected"
IN_JOB, WAITING, GONE, OUTSIDE = "job", "waiting", "gone", "outside"


class UnixSocket(msgspec.Struct, frozen=True, kw_only=True):
    """A UNIX socket.

    state: 'free' (not connected), 'listening', 'connected'. other: what became of the other end: 'job', 'waiting' (to
    be accepted by a listener of the job), 'gone' (closed), 'outside'.
    """

    ino: int
    type: int
    flags: int
    state: str
    name: Name = Name()
    other: str = ""
    peer: int = 0
    peer_name: Name = Name()
    paired: int = 0
    """Inode number of the socket it was made together with (0: it was made alone)."""
    accepted: bool = False
    """It is the end that was accepted, and has its listener's name."""
    listener: int = -1
    """Object number of the listener through which the connection is made again."""
    shut: int = 0
    """1: it receives no more; 2: it sends no more."""
    error: bool = False
    """It has not been told yet that the other end was closed with unread data."""
    backlog: int = 0
    gone_before: int = 0
    """Connections that wait in front of this one, and were closed by the other end already; for a listener, those
    that wait behind all others."""
    sent: Queue | None = None
    """Of one that waits to be accepted: what it has sent."""
    gone_sent: tuple[Queue | None, ...] = ()
    """What those of `gone_before` have sent, where that is known."""
    user: int = -1
    group: int = -1
    pid: int = 0
    groups: tuple[int, ...] | None = None
    """What SO_PEERCRED and SO_PEERGROUPS say of the other end (socket_user.Who)."""
    own_user: int = -1
    own_group: int = -1
    own_pid: int = 0
    own_groups: tuple[int, ...] | None = None
    """What the other end is told of this one."""
    after: tuple[int, ...] = ()
    options: Options = Options()
    queue: Queue | None = None

    @property
    def them(self) -> Who:
        """Who the other end is said to be; of what listens, and of pairs, who made it."""
        return Who(self.pid, self.user, self.group, self.groups)

    @property
    def me(self) -> Who:
        return Who(self.own_pid, self.own_user, self.own_group, self.own_groups)


class UnixService(DescriptorBase):
    name = "unix"
    record = UnixSocket

    def claims(self, seen: Descriptor) -> bool:
        return socket_kinds.kind(seen) in ("UNIX", "UNIX-STREAM")

    def inside(self, fd: int, seen: Descriptor, job: Job) -> None:
        """Make descriptors that are in flight in the queue objects of the job."""
        place = 0
        while (waiting := job.backlogs.unix(seen.ino, place)) is not None:
            for number in (number for message in waiting for number in message.fds):
                job.adopt(number)
            place += 1
        if info_value(seen.info, "scm_fds") == "0":
            return
        for message in self._peek(fd, seen):  # adopt closes what is known already
            for number in message.fds:
                job.adopt(number)

    def _peek(self, fd: int, seen: Descriptor, shut: int = 0, full: bool = False) -> list[Peeked]:
        kind = socket_options.number(fd, SOL_SOCKET, socket_options.SO_TYPE)
        if socket_options.number(fd, SOL_SOCKET, socket_options.SO_ACCEPTCONN):
            return []
        if kind == STREAM:
            return peek_unix_stream(fd, pieces=full)
        return datagrams_of(fd, seen, ends=kind == SEQPACKET and bool(shut & 1))

    def capture(self, fd: int, seen: Descriptor, job: Job) -> UnixSocket:
        socket_kinds.refuse_unusual(fd, seen)
        try:
            table = unix_table.of(job)
        except OSError as error:
            why = f"a UNIX socket, and this kernel does not tell what it is connected to ({error.strerror})"
            raise Refused([seen.refuse(why, "load the kernel module unix_diag")]) from None
        me = table.diag.get(seen.ino)
        if me is None:
            raise Refused([seen.refuse("a UNIX socket in another network namespace", "close it before the checkpoint")])
        events = readable(fd)
        if events & select.POLLPRI:
            raise Refused([seen.refuse("a UNIX socket with urgent data (MSG_OOB)", "let it be read first")])
        them = table.peers[seen.ino]
        record = UnixSocket(
            ino=seen.ino, type=me.type, flags=status_flags(fd), state=FREE, shut=me.shut,
            name=find_file(unix(own_name(fd)), me.file, seen, job), user=them.user, group=them.group,
            pid=them.pid, groups=them.groups, options=socket_options.save(fd, AF_UNIX, 0),
            error=bool(events & select.POLLERR),
        )  # fmt: skip
        replace = msgspec.structs.replace
        if me.state == LISTEN:
            behind = 0
            for client in me.waiting:
                behind = 0 if client in table.seen else behind + 1
            self._note_unread(me, table, seen, job)
            sent = self._sent_by(seen.ino, range(len(me.waiting) - behind, len(me.waiting)), table, job)
            return replace(record, state=LISTENING, backlog=me.limit, gone_before=behind, gone_sent=sent)
        found = table.with_senders(fd, self._peek(fd, seen, me.shut, self._is_full(me, table, job)))
        record = replace(record, queue=socket_queue.keep(found, job, lambda sender: self._sender(sender, table)))
        if not me.connected:
            return record
        far = table.diag.get(me.peer)
        other = unix(peer_name(fd))
        listener = table.listeners.get(other, 0)
        # A relative path means something in one folder only.
        there = self._name_of(table.diag[listener], table, job) if listener else find_file(other, None, seen, job)
        record = replace(record, state=CONNECTED, peer_name=there, peer=me.peer)
        if far is not None:
            record = _for(table.peers[far.ino], replace(record, other=IN_JOB, peer_name=self._name_of(far, table, job)))
        elif seen.ino in table.line:
            return self._waiting(replace(record, other=WAITING), fd, seen, table, job)
        elif me.peer or (me.shut != 3 and me.type != DATAGRAM):
            record = replace(record, other=OUTSIDE)
        else:
            record = replace(record, other=GONE)
        if me.type == DATAGRAM:
            return self._datagram(record, far, seen)
        accepted = _accepted(record, table)
        server = record.name.raw if accepted else other
        listener = table.listeners.get(server, 0)
        return replace(
            record,
            accepted=accepted,
            paired=me.peer if record.other == IN_JOB else 0,
            listener=table.number[listener] if listener else -1,
            after=(table.number[listener],) if listener else (),
        )

    def _is_full(self, me: UnixSeen, table: UnixTable, job: Job) -> bool:
        """Is the queue so full that the other end cannot send? Then it is to be as full again: to the last piece."""
        near = table.seen.get(me.peer)
        if near is None or me.type != STREAM:
            return False
        fd = job.hold(near.pid, near.number)
        return sock_diag.to_send(fd) >= socket_options.number(fd, SOL_SOCKET, socket_options.SO_SNDBUF)

    def _waiting(self, record: UnixSocket, fd: int, seen: Descriptor, table: UnixTable, job: Job) -> UnixSocket:
        """It has connected, and nobody has accepted it."""
        listener, place = table.line[record.ino]
        (sent,) = self._sent_by(listener, (place,), table, job) or (None,)
        if sock_diag.to_send(fd) and sent is None:
            thing = f"a UNIX connection to {record.peer_name} that waits to be accepted and has data in it already"
            way_out = "which cannot be read before that; try again when the program has accepted it"
            why = NotNow([seen.refuse(thing, way_out)], socket_kinds.holders(listener, job))
            job.backlogs.unread(table.seen[listener], why)
        row = table.diag[listener].waiting
        gone = 0
        while place - gone - 1 >= 0 and row[place - gone - 1] not in table.seen:
            gone += 1
        after = [table.number[listener]]
        after += [table.number[ino] for ino in row[:place] if ino in table.seen]
        after += [
            table.number[ino]
            for ino, one in table.diag.items()
            if one.type == record.type and one.connected and ino not in table.line
            and (one.name == table.diag[listener].name or self._goes_to(one, listener, table))
        ]  # fmt: skip
        status = proc.status(seen.pid)  # the best there is: whoever accepts it will be told who connected
        who = Who(
            job.vpid(seen.pid), int(status["Uid"].split()[1]), int(status["Gid"].split()[1]),
            tuple(sorted(int(group) for group in status["Groups"].split())),
        )  # fmt: skip
        record = msgspec.structs.replace(
            record, listener=table.number[listener], gone_before=gone, after=tuple(sorted(set(after))), sent=sent,
            gone_sent=self._sent_by(listener, range(place - gone, place), table, job),
        )  # fmt: skip
        return _for(who, record)

    def _goes_to(self, one: UnixSeen, listener: int, table: UnixTable) -> bool:
        """Was the other end of this connection accepted by that listener?"""
        them = table.diag.get(one.peer)
        return one.peer == 0 or (them is not None and them.name == table.diag[listener].name)

    def _sent_by(self, listener: int, places: Iterable[int], table: UnixTable, job: Job) -> tuple[Queue | None, ...]:
        """What those who wait at these places have sent; () where it is not known."""
        found = [job.backlogs.unix(listener, place) for place in places]
        known = [one for one in found if one is not None]
        if len(known) < len(found):
            return ()
        return tuple(socket_queue.keep(one, job, lambda sender: self._sender(sender, table)) for one in known)

    def _note_unread(self, me: UnixSeen, table: UnixTable, seen: Descriptor, job: Job) -> None:
        """Connections that wait and were closed by the other end: nothing tells whether there is data in them. Or such
        from outside, with data in them."""
        outside = [one for ino in me.waiting if ino and ino not in table.seen for one in table.world.get(ino, ())]
        if (0 in me.waiting or any(one.limit for one in outside)) and job.backlogs.unix(seen.ino, 0) is None:
            what = "whose other end is closed" if 0 in me.waiting else "from outside the job, with data in it"
            thing = f"a UNIX socket on which a connection waits to be accepted {what}"
            why = [seen.refuse(thing, "try again when the program has accepted it")]
            job.backlogs.unread(seen, NotNow(why, socket_kinds.holders(seen.ino, job)))

    # Looking into what waits (posix/backlog.py).

    def plan_turns(self, seen: Descriptor, job: Job) -> unix_turnover.Line:
        table = unix_table.of(job)
        me = table.diag[seen.ino]
        clients = {
            ino: (table.diag[ino], self._name_of(table.diag[ino], table, job))
            for ino in me.waiting
            if ino in table.diag
        }
        return unix_turnover.plan(seen, me, self._name_of(me, table, job), clients, job)

    def turn(
        self, line: unix_turnover.Line, processes: Mapping[int, LivingProcess], job: Job, backlogs: Backlogs
    ) -> None:
        for turn in line.turns:
            backlogs.tell_unix(line.listener.ino, unix_turnover.carry_out(line, turn, processes, job))

    def _datagram(self, record: UnixSocket, them: UnixSeen | None, seen: Descriptor) -> UnixSocket:
        mutual = them is not None and them.peer == record.ino
        nameless = record.other == IN_JOB and not record.peer_name.raw
        if nameless and not mutual:
            thing = "a UNIX datagram socket that is connected to one without a name, which is connected elsewhere"
            raise Refused([seen.refuse(thing, "close it before the checkpoint")])
        paired = nameless or (mutual and not record.name.raw)
        return msgspec.structs.replace(record, paired=record.peer if paired else 0)

    def _name_of(self, them: UnixSeen, table: UnixTable, job: Job) -> Name:
        near = table.seen[them.ino]
        return find_file(unix(own_name(job.hold(near.pid, near.number))), them.file, near, job)

    def _sender(self, sender: Any, table: UnixTable) -> tuple[bytes, int, int]:
        name = unix(sender)
        ino = table.named.get(name, 0) if name else 0
        return name, 0, table.number[ino] if ino else -1

    def needs(self, record: UnixSocket) -> Iterable[int]:
        return record.after

    # Coming back.

    def create(self, record: UnixSocket, restart: Restart) -> int:
        try:
            fd = self._make(record, restart)
        except OSError as error:
            raise RestartFailed(f"a UNIX socket ({record.name}): {error.strerror}") from None
        set_status(fd, record.flags)
        options_later(fd, record.options, restart)
        return fd

    def _make(self, record: UnixSocket, restart: Restart) -> int:
        if record.type == DATAGRAM:
            return self._make_datagram(record, restart)
        place = names(restart)
        todo = works(restart)
        if record.state != CONNECTED:
            fd = _new(record.type)
            if record.name.raw:
                place.bind(fd, record.name)
            if record.state == LISTENING:
                place.listen(fd, record.backlog, record.them)
                if record.gone_before:
                    todo.add(Step.FILL, lambda: self._come_and_go(record, record.name, restart, place))
            if record.shut:
                shut_later(fd, record.shut, restart)
            return fd
        if record.other == WAITING:
            self._come_and_go(record, record.peer_name, restart, place)
            fd = _new(record.type)
            if record.name.raw:
                place.bind(fd, record.name)
            place.connect_to(restart.object(record.listener), fd, record.peer_name, record.me, record.them)
            if record.sent is not None:
                send_later(os.dup(fd), record.sent, record.type == SEQPACKET, restart)
            if record.shut:
                shut_later(fd, record.shut, restart)
            return fd
        return self._pair(record, restart, place)

    def _come_and_go(self, record: UnixSocket, to: Name, restart: Restart, place: Names) -> None:
        for _, sent in zip_longest(range(record.gone_before), record.gone_sent):
            fd = _new(record.type)
            try:
                place.connect(fd, to)
                if sent is not None:
                    send_later(os.dup(fd), sent, record.type == SEQPACKET, restart)
            finally:
                os.close(fd)

    def _pair(self, record: UnixSocket, restart: Restart, place: Names) -> int:
        """A connected stream or sequence of packets; the peer may be somebody whom nobody has any more."""
        todo = works(restart)
        key = min(record.ino, record.peer) if record.other == IN_JOB else record.ino
        server, client = (record.name, record.peer_name) if record.accepted else (record.peer_name, record.name)
        ends: tuple[int, int] = restart.shared(
            ("unix", key), lambda: self._ends(record, server, client, restart, place), lambda made: None
        )
        mine, other = ends[::-1] if record.accepted else ends
        if not server.raw and not client.raw and record.other == IN_JOB and record.peer < record.ino:
            mine, other = ends[::-1]
        if record.queue is not None:
            queue = record.queue
            if record.type == STREAM:
                todo.add(Step.FILL, lambda: send_stream(other, mine, queue, restart))
            else:
                todo.add(Step.FILL, lambda: self._send_packets(other, mine, queue, restart))
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

    def _ends(self, record: UnixSocket, server: Name, client: Name, restart: Restart, place: Names) -> tuple[int, int]:
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

    def _send_packets(self, fd: int, to: int, queue: Queue, restart: Restart) -> None:
        for message, data in socket_queue.contents(queue, restart):
            ask_who(to, message)
            send_message(fd, message, data, None, restart)

    def _make_datagram(self, record: UnixSocket, restart: Restart) -> int:
        place = names(restart)
        todo = works(restart)
        other = -1
        if record.paired or (record.state == CONNECTED and record.other == GONE and not record.peer_name.raw):
            key = min(record.ino, record.paired) if record.paired else record.ino
            ends: tuple[int, int] = restart.shared(
                ("unix", key), lambda: pair(record.them, DATAGRAM, restart), close_all
            )
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
            todo.add(Step.FILL, lambda: self._fill_datagrams(kept, record, queue, source, restart, place))
            if source >= 0:
                todo.add(Step.LEAVE, lambda: os.close(source))
        if record.state == CONNECTED and other < 0:
            todo.add(Step.CONNECT, lambda: self._connect_datagram(kept, record, restart, place))
        if record.shut:
            shut_later(fd, record.shut, restart)
        return fd

    def _connect_datagram(self, fd: int, record: UnixSocket, restart: Restart, place: Names) -> None:
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

    def _fill_datagrams(
        self, mine: int, record: UnixSocket, queue: Queue, source: int, restart: Restart, place: Names
    ) -> None:
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


def _accepted(record: UnixSocket, table: UnixTable) -> bool:
    """Is this the end that was accepted? Both ends come to the same answer, also where nothing tells any more."""
    name, other = record.name.raw, record.peer_name.raw
    for one, answer in ((name, True), (other, False)):
        if one and one in table.listeners:
            return answer
    if not name or not other:
        return bool(name)
    return (name, record.ino) > (other, record.peer)


def _for(who: Who, record: UnixSocket) -> UnixSocket:
    """The record of an end that the other one takes for that."""
    return msgspec.structs.replace(
        record, own_pid=who.pid, own_user=who.user, own_group=who.group, own_groups=who.groups
    )


def _new(kind: int) -> int:
    return _socket.socket(AF_UNIX, kind | _socket.SOCK_CLOEXEC).detach()


def _send(fd: int, data: bytes) -> None:
    one = link(fd)
    try:
        one.send(data, _socket.MSG_DONTWAIT | _socket.MSG_NOSIGNAL)
    finally:
        one.detach()


SERVICE = UnixService()
