"""Looking into UNIX connections that wait to be accepted (posix/turnover.py says how and why).

A UNIX socket that was connected once cannot be connected again, so the client gets another one in the same place: a
new socket, connected to the listener by the same process (SO_PEERCRED is told of whoever connects), with the same
options and flags, which takes the place of the old one under every number of every process that had it, and
is watched by every epoll instance that watched the old one. Where there is room in the line it is connected
before the old one is accepted, so that nothing has happened yet if that fails.

Messages keep their boundaries, and descriptors in them go along: what recvmmsg(2) has filled in is what sendmmsg(2) is
given. Before it is read, the accepted end is shown to us: we look at it as at any other queue, and say where to cut
it. If we are killed, a child of ours does that (posix/apart.py).

A client that is gone (it was closed, with data unread) is connected again by a process that has the listener, and
closed again.

Different afterwards, also for a job that goes on: the inode number of the client's end, and its SO_COOKIE. Of a
client that is gone, SO_PEERCRED tells the process that has the listener.
"""

from __future__ import annotations

import _socket
import os
import select
import struct
from collections.abc import Mapping, Sequence

from torpor.linux import epoll, uio
from torpor.linux.arch.x86_64 import NR
from torpor.linux.sock_diag import UnixSeen
from torpor.model.errors import CheckpointFailed, NotNow
from torpor.named_tuple import NamedTuple
from torpor.posix import owner, socket_options, turnover
from torpor.posix.apart import Deputy
from torpor.posix.descriptors import status_flags
from torpor.posix.service import Descriptor, Job
from torpor.posix.socket_address import AF_UNIX, SEQPACKET
from torpor.posix.socket_options import SO_BUF_LOCK, SO_RCVBUF, SO_SNDBUF, SO_SNDBUFFORCE, SOL_SOCKET
from torpor.posix.socket_peek import peek_datagrams, peek_unix_stream
from torpor.posix.socket_queue import Peeked
from torpor.posix.turnover import DONTWAIT, NOSIGNAL, Gate, Meeting, Numbers, Run, Script, argument, result
from torpor.posix.unix_name import Name
from torpor.tracee.call import In, Out
from torpor.tracee.process import LivingProcess

_HEADER, _VECTOR, _CONTROL = 64, 16, 1152
"""struct mmsghdr, struct iovec, and room for the 253 descriptors that one message can carry."""
_SMALLEST = 768
"""What a message without bytes takes of the sender's buffer, at least (SKB_TRUESIZE(0) on x86-64)."""
_EMPTY = 32
_MOST = 1000
_PAGE = 4096


class Watch(NamedTuple):
    """An epoll watch on a client's end, by descriptor numbers of one process."""

    instance: int
    number: int
    events: int
    data: int


class Client(NamedTuple):
    """The client's end of a connection that waits. holders: by process, the first one acts; empty if it is gone."""

    holders: dict[int, list[Descriptor]]
    name: Name
    flags: int
    shut: int
    send_buffer: int
    options: tuple[tuple[int, int, bytes], ...]
    watches: dict[int, list[Watch]]


class Turn(NamedTuple):
    """One connection. queued: bytes in it, at most (what they take of the sender's buffer, or may take of it)."""

    client: Client
    queued: int


class Line(NamedTuple):
    """All that waits at a listener, the oldest first. room: one more can wait."""

    listener: Descriptor
    kind: int
    address: bytes
    room: bool
    holders: tuple[int, ...]
    turns: tuple[Turn, ...]

    @property
    def processes(self) -> set[int]:
        """All that take part (host pids)."""
        return {self.holders[0], *(pid for turn in self.turns for pid in turn.client.holders)}


NOBODY = Client({}, Name(), 0, 0, 0, (), {})


def plan(
    listener: Descriptor,
    me: UnixSeen,
    name: Name,
    clients: Mapping[int, tuple[UnixSeen, Name]],
    job: Job,
) -> Line:
    """How a line is turned over. Raises NotNow for what is in the way.

    clients: of those who wait, by inode number.
    """
    turns = []
    for ino in me.waiting:
        if not ino:
            turns.append(Turn(NOBODY, 2 * turnover.buffer_limit()))
        elif ino not in clients:
            _refuse(listener, "at which a program outside the job waits to be accepted", job)
        else:
            turns.append(Turn(_client(ino, *clients[ino], me.type, job), clients[ino][0].limit))
    who = tuple(turnover.holders(listener.ino, job.descriptors))
    if name.is_path and not name.mode:
        _refuse(listener, f"bound to {name}, which is not there any more", job)
    path = os.path.join(os.fsencode(name.folder), name.raw) if name.is_path else name.raw
    if len(path) > 107:
        _refuse(listener, f"bound to {name}, a path that is too long when written from the root folder", job)
    address = struct.pack("=H", AF_UNIX) + path + (b"\0" if name.is_path else b"")
    room = len(me.waiting) <= me.limit
    return Line(listener, me.type, address, room, who, tuple(turns))


def _refuse(seen: Descriptor, thing: str, job: Job) -> None:
    raise NotNow(
        [seen.refuse(f"a UNIX socket {thing}", "try again when the program has accepted what waits there")],
        turnover.holders(seen.ino, job.descriptors),
    )


def _client(ino: int, me: UnixSeen, name: Name, kind: int, job: Job) -> Client:
    """What is to be known of a client. Raises NotNow."""
    holders = turnover.holders(ino, job.descriptors)
    first = next(iter(holders.values()))[0]
    fd = job.hold(first.pid, first.number)
    if any(one.pid == os.getpid() for one in job.descriptors if one.ino == ino):
        _refuse(first, "that waits to be accepted and is on its way through another socket", job)
    if owner.capture(fd, job) is not None or any(line.startswith("lock:") for line in first.info):
        _refuse(first, "that waits to be accepted, with an owner (F_SETOWN) or a lock", job)
    if name.is_path:
        _refuse(first, f"that waits to be accepted and has a file of its own ({name})", job)
    if name.raw and len(holders) > 1:
        _refuse(first, f"that waits to be accepted, has a name of its own ({name}) and several processes", job)
    if len(holders) > 1 and turnover.share_descriptors(list(holders)):
        _refuse(first, "that waits to be accepted, of processes that share their descriptors (CLONE_FILES)", job)
    saved = socket_options.save(fd, AF_UNIX, 0)
    fresh = _socket.socket(AF_UNIX, kind | _socket.SOCK_CLOEXEC)
    try:
        values = [
            (one.level, one.name, one.value)
            for one in saved.values
            if socket_options.get(fresh.fileno(), one.level, one.name) != one.value
        ]
    finally:
        fresh.close()
    if saved.receive_buffer:
        values.append((SOL_SOCKET, SO_RCVBUF, struct.pack("i", saved.receive_buffer // 2)))
    size = socket_options.number(fd, SOL_SOCKET, SO_SNDBUF)
    values.append((SOL_SOCKET, SO_SNDBUF, struct.pack("i", size // 2)))
    lock = socket_options.get(fd, SOL_SOCKET, SO_BUF_LOCK, 4)
    if lock is not None:
        values.append((SOL_SOCKET, SO_BUF_LOCK, lock))
    if size > 2 * turnover.buffer_limit() or size // _SMALLEST + 8 > _MOST:
        _refuse(first, f"that waits to be accepted, with a send buffer of {size} bytes", job)
    return Client(holders, name, status_flags(fd), me.shut, size, tuple(values), _watches(ino, holders, first, job))


def _watches(ino: int, holders: dict[int, list[Descriptor]], first: Descriptor, job: Job) -> dict[int, list[Watch]]:
    """The epoll watches on it, by the process that is to make them again. Raises NotNow."""
    found: dict[int, list[Watch]] = {}
    known: set[tuple[int, int]] = set()
    for seen in job.descriptors:
        if seen.target != "anon_inode:[eventpoll]":
            continue
        for watch in epoll.watches(seen.info):
            if watch.ino != ino:
                continue
            number = job.object_of(seen.pid, seen.number)
            if number is None or (number, watch.number) in known:
                continue
            if all(one.number != watch.number for one in holders.get(seen.pid, ())):
                continue  # perhaps another process has both
            known.add((number, watch.number))
            if not watch.events & ~epoll.HOW:
                _refuse(first, "that waits to be accepted, with a one-shot epoll watch that has fired", job)
            found.setdefault(seen.pid, []).append(Watch(seen.number, watch.number, watch.events, watch.data))
    every = {
        (job.object_of(seen.pid, seen.number), watch.number)
        for seen in job.descriptors
        if seen.target == "anon_inode:[eventpoll]"
        for watch in epoll.watches(seen.info)
        if watch.ino == ino
    }
    if every - known:
        _refuse(first, "that waits to be accepted, watched by an epoll instance under a number it does not have", job)
    return found


class _Tables(NamedTuple):
    """Addresses of what recvmmsg and sendmmsg are given, and their contents."""

    headers: int
    vectors: int
    buffers: int
    lengths: tuple[int, int]
    """Two tables of struct iovec: where the lengths of buffers are, and where those of messages."""
    messages: int
    size: int
    image: bytes


def _tables(at: int, count: int, room: int) -> _Tables:
    """count: messages; room: bytes of each."""
    vectors = at + count * _HEADER
    into, out = vectors + count * _VECTOR, vectors + 2 * count * _VECTOR
    controls = (out + count * _VECTOR + _PAGE - 1) & ~(_PAGE - 1)
    buffers = (controls + count * _CONTROL + _PAGE - 1) & ~(_PAGE - 1)
    headers = b"".join(
        struct.pack("<QIIQQQQIIII", 0, 0, 0, vectors + i * _VECTOR, 1, controls + i * _CONTROL, _CONTROL, 0, 0, 0, 0)
        for i in range(count)
    )
    rows = b"".join(struct.pack("<QQ", buffers + i * room, room) for i in range(count))
    to = b"".join(struct.pack("<QQ", vectors + i * _VECTOR + 8, 4) for i in range(count))
    source = b"".join(struct.pack("<QQ", at + i * _HEADER + 56, 4) for i in range(count))
    return _Tables(at, vectors, buffers, (into, out), count, buffers + count * room - at, headers + rows + to + source)


def _count(line: Line, turn: Turn) -> int:
    """How many messages there can be."""
    most = min((turn.client.send_buffer or 2 * 212992) // _SMALLEST + 8, _MOST)
    over = not turn.client.holders or turn.client.shut & 2
    return min(most, turn.queued + _EMPTY) if over and line.kind == SEQPACKET else most


def carry_out(line: Line, turn: Turn, processes: Mapping[int, LivingProcess], job: Job) -> list[Peeked]:
    """Turn the oldest one of a line over; what was in it, with descriptors that are the caller's.

    Raises CheckpointFailed if it did not come about.
    """
    client = turn.client
    pids = list(client.holders) or list(line.holders)
    actor = processes[pids[0]]
    listener = os.dup(job.hold(line.listener.pid, line.listener.number))
    for pid, seens in client.holders.items():
        for seen in seens:
            processes[pid].forget(seen.number)  # the old one is to end when the job has closed it
    meeting = Meeting(line.kind)
    run = Run(meeting)
    try:
        gates = [_gate(processes[pid], meeting, client, pid) for pid in client.holders if pid != pids[0]]
        count = _count(line, turn)
        size = max(turn.queued + _PAGE - 1 & ~(_PAGE - 1), _PAGE)
        at = turnover.room(actor.pid, actor.leader.tid, (count + 2) * (size + _CONTROL + 128) + 16 * _PAGE)
        tables = _tables(at, count, size)
        script, rows = _script(line, turn, actor, meeting, tables, len(gates))
        run.hold(gates)
        link = run.start(actor, script)
        uio.write(actor.pid, at, tables.image)
        over = not client.holders or bool(client.shut & 2)
        cutter = _Cutter(link, actor.pid, tables, size, run.address(argument(rows.received, 2)), line.kind, over)
        deputy = Deputy(cutter.instead)
        try:
            run.commit([listener])
            found = cutter.cut()
        finally:
            deputy.dismiss()
        cutter.go_on()
        answers = run.finish()
        if answers[rows.connected].error or answers[rows.accepted].error:
            raise CheckpointFailed(f"a connection to {line.listener.target} cannot be looked into; try again")
        if found is None or answers[rows.received].value != len(found) or answers[rows.sent].value != len(found):
            raise CheckpointFailed(f"a connection to {line.listener.target} does not take again what it held")
        return found
    finally:
        os.close(listener)
        run.close()


class _Cutter:
    """Looks at the end that the actor has accepted, and says to its batch where to cut what is in it.

    Twice at hand: should we be killed, a child of ours does it. Without any cut a stream would be read in one piece,
    and give its descriptors together with bytes that were sent in front of them.
    """

    def __init__(
        self, link: _socket.socket, pid: int, tables: _Tables, size: int, count_at: int, kind: int, over: bool
    ) -> None:
        self._link, self._tables, self._size, self._count_at = link, tables, size, count_at
        self._packets, self._over = kind == SEQPACKET, over
        # Open as long as this object lives: who is not the tracer may not open it everywhere (Yama).
        self._memory = open(f"/proc/{pid}/mem", "rb+", buffering=0)

    def cut(self) -> list[Peeked] | None:
        """What is in the connection, None if the actor shows us nothing. over: nobody sends more."""
        _, ancillary, _, _ = self._link.recvmsg(1, 64, turnover.CMSG_CLOEXEC)
        fds = [fd for _, _, data in ancillary for fd in struct.unpack(f"{len(data) // 4}i", data)]
        if not fds:
            return None
        try:
            found = peek_datagrams(fds[0], self._over) if self._packets else peek_unix_stream(fds[0])
        finally:
            os.close(fds[0])
        if len(found) <= self._tables.messages:
            buffers = (self._tables.buffers + i * self._size for i in range(len(found)))
            sizes = b"".join(struct.pack("<QQ", at, len(one.data)) for at, one in zip(buffers, found))
            os.pwrite(self._memory.fileno(), sizes, self._tables.vectors)
            os.pwrite(self._memory.fileno(), struct.pack("<Q", len(found)), self._count_at)
        return found

    def go_on(self) -> None:
        """Let the batch go on."""
        self._link.send(b"\0", NOSIGNAL)
        self._memory.close()

    def instead(self) -> None:
        """In the child, when we were killed: if the batch has got what it needs, it shows itself at once."""
        poll = select.poll()
        poll.register(self._link.fileno(), select.POLLIN)
        if poll.poll(200):
            self.cut()
            self.go_on()


class _Rows(NamedTuple):
    """Places of the calls whose answers matter."""

    connected: int
    accepted: int
    received: int
    sent: int


def _script(
    line: Line, turn: Turn, actor: LivingProcess, meeting: Meeting, tables: _Tables, gates: int
) -> tuple[Script, _Rows]:
    client, script, numbers = turn.client, Script(), Numbers(actor.pid)
    own = client.holders.get(actor.pid, ())
    restore = turnover.more_descriptors(actor.pid, script)
    script.add(NR.mmap, tables.headers, tables.size, 3, turnover.MAP_FLAGS, -1, 0, otherwise="over")
    link = meeting.connect(numbers, script, "unmap")
    turnover.receive_descriptors(link, 1 + gates, script, "unmap")
    listener, *ends = [numbers.take() for _ in range(1 + gates)]
    new = numbers.take()
    kind = line.kind | _socket.SOCK_CLOEXEC | _socket.SOCK_NONBLOCK
    script.add(NR.socket, AF_UNIX, kind, 0, otherwise="unmap")
    # Room for what the old one held.
    large = In(struct.pack("i", client.send_buffer or 2 * 212992))
    for option in (SO_SNDBUF, SO_SNDBUFFORCE):
        script.add(NR.setsockopt, new, SOL_SOCKET, option, large, 4)
    old = numbers.take()
    if line.room:
        connected = script.add(NR.connect, new, In(line.address), len(line.address), otherwise="unmap")
        accepted = script.add(NR.accept4, listener, 0, 0, _socket.SOCK_CLOEXEC, otherwise="unmap")
    else:
        accepted = script.add(NR.accept4, listener, 0, 0, _socket.SOCK_CLOEXEC, otherwise="unmap")
        connected = script.add(NR.connect, new, In(line.address), len(line.address))
    # It is looked at meanwhile (`_Cutter`); by our deputy if we have taken the first of these and are no more.
    turnover.send_descriptor(link, old, script)
    turnover.send_descriptor(link, old, script)
    script.add(NR.recvfrom, link, Out(1), 1, 0, 0, 0)
    for name in _TOLD_OF_MESSAGES:
        script.add(NR.setsockopt, old, SOL_SOCKET, name, In(bytes(4)), 4)
    received = script.add(
        NR.recvmmsg, old, tables.headers, tables.messages, DONTWAIT | turnover.CMSG_CLOEXEC, 0, otherwise="empty"
    )
    into, out = tables.lengths
    script.add(NR.process_vm_readv, actor.leader.vtid, into, tables.messages, out, tables.messages, 0)
    sent = received + 3
    turnover.copy(actor.leader.vtid, [(argument(sent, 2), result(received), 4)], script)
    script.add(NR.sendmmsg, new, tables.headers, 0, DONTWAIT | NOSIGNAL)
    script.label("empty")
    _dress(client, new, script)
    for seen in own:
        script.add(NR.dup3, new, seen.number, seen.flags & os.O_CLOEXEC)
    if client.name.raw:
        address = struct.pack("=H", AF_UNIX) + client.name.raw
        script.add(NR.bind, new, In(address), len(address))
    _watch(client.watches.get(actor.pid, ()), script)
    for end in ends:
        turnover.send_descriptor(end, new, script)
    script.label("unmap")
    script.add(NR.munmap, tables.headers, tables.size)
    script.label("over")
    turnover.close_all(numbers, script)
    restore()
    return script, _Rows(connected, accepted, received, sent)


_TOLD_OF_MESSAGES = (16, 29, 34, 35, 76)
"""SO_PASSCRED, TIMESTAMP, PASSSEC, TIMESTAMPNS, PASSPIDFD: an accepted end has those of its listener."""


def _dress(client: Client, new: int, script: Script) -> None:
    """Make the new socket what the old one was."""
    for level, name, value in client.options:
        script.add(NR.setsockopt, new, level, name, In(value), len(value))
    if client.shut:
        script.add(NR.shutdown, new, client.shut - 1)
    if client.holders:
        script.add(NR.fcntl, new, 4, client.flags)  # F_SETFL


def _watch(watches: Sequence[Watch], script: Script) -> None:
    for one in watches:
        event = In(epoll.event(one.events, one.data))
        script.add(NR.epoll_ctl, one.instance, epoll.CTL_ADD, one.number, event)


def _gate(process: LivingProcess, meeting: Meeting, client: Client, pid: int) -> Gate:
    """Another process that has the client's end: it waits for the new one, and puts it in its place."""
    script, numbers = Script(), Numbers(pid)
    new = turnover.gate(process, meeting, numbers, script)
    for seen in client.holders[pid]:
        script.add(NR.dup3, new, seen.number, seen.flags & os.O_CLOEXEC, otherwise="over")
    _watch(client.watches.get(pid, ()), script)
    script.label("over")
    turnover.close_all(numbers, script)
    return Gate(process, script)
