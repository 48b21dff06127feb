"""UNIX sockets: streams, sequenced packets, datagrams; with a path, an abstract name, or none.

The kernel keeps for one: its name, what it is connected to, which directions are over, what was sent to it and not
read, with descriptors and identities of senders in it. What is connected to what is told by sock_diag(7), in
inode numbers; the queue is looked at with MSG_PEEK.

What is kept of one: unix_record.py. How it comes back: unix_create.py.
"""

from __future__ import annotations

import select
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import msgspec

from torpor.linux import proc, sock_diag
from torpor.linux.sock_diag import LISTEN, UnixSeen
from torpor.model.errors import NotNow, Refused, RestartFailed
from torpor.posix import socket_kinds, socket_options, socket_queue, unix_create, unix_table
from torpor.posix.backlog import Backlogs
from torpor.posix.descriptors import info_value, set_status, status_flags
from torpor.posix.service import Descriptor, DescriptorBase, Job, Restart
from torpor.posix.socket_address import AF_UNIX, DATAGRAM, SEQPACKET, STREAM, own_name, peer_name, unix
from torpor.posix.socket_options import SOL_SOCKET
from torpor.posix.socket_peek import datagrams_of, peek_unix_stream, readable
from torpor.posix.socket_queue import Peeked, Queue
from torpor.posix.socket_user import Who
from torpor.posix.socket_works import options_later
from torpor.posix.unix_name import Name, find_file
from torpor.posix.unix_record import CONNECTED, FREE, GONE, IN_JOB, LISTENING, OUTSIDE, WAITING, UnixSocket
from torpor.posix.unix_table import UnixTable
from torpor.tracee.process import LivingProcess

if TYPE_CHECKING:
    from torpor.posix import unix_turnover


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
        from torpor.posix import unix_turnover  # only here and in `turn`: start-up is restart time

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
        from torpor.posix import unix_turnover

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
            fd = unix_create.make(record, restart)
        except OSError as error:
            raise RestartFailed(f"a UNIX socket ({record.name}): {error.strerror}") from None
        set_status(fd, record.flags)
        options_later(fd, record.options, restart)
        return fd


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


SERVICE = UnixService()
