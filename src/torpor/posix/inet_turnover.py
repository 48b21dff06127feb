"""Looking into TCP connections that wait to be accepted (posix/turnover.py says how and why).

The client's end stays what it is: a TCP socket can be connected again once it was disconnected (connect(2) with
AF_UNSPEC), so its descriptors, options, epoll watches and all processes that share it are left alone. In one
batch: accept; let the client's end say that it has sent everything (shutdown), so that reading to the end gets all
of it, also what did not fit the window; disconnect, which resets the accepted end (no TIME_WAIT stays behind, and the
addresses are free); connect again from the same port, which is left to connect(2) to choose out of a range of one
(IP_LOCAL_PORT_RANGE, Linux 6.3), unless the program had chosen it with bind(2), which is kept; send again.

In which order connections wait is not told by anybody. So the batch has all clients at hand, compares the address that
accept told with theirs (FUTEX_CMP_REQUEUE of nothing: EAGAIN if a word is not what was expected), and goes on with
the one it is.

A client that is gone is played by a socket of ours, bound to its address, that is closed when it has sent all.

The batch runs in a process that has the listener. All others that have a client's end stand still meanwhile.

Different afterwards, also for a job that goes on: the numbers in TCP_INFO; one more edge for edge-triggered epoll
watches of a client's end (it can be written to once more).

Source: tcp_disconnect and tcp_recvmsg in net/ipv4/tcp.c, net/ipv4/inet_hashtables.c, tcp(7), ip(7).
"""

from __future__ import annotations

import _socket
import os
import struct
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from torpor.linux import proc, sock_diag, uio
from torpor.linux.arch.x86_64 import NR
from torpor.model.errors import CheckpointFailed, NotNow, Refusal
from torpor.posix import owner, socket_options, turnover
from torpor.posix.descriptors import status_flags
from torpor.posix.service import Descriptor, Job
from torpor.posix.socket_address import AF_INET, AF_INET6, STREAM, Address
from torpor.posix.socket_options import (
    IP,
    IP_BIND_ADDRESS_NO_PORT,
    IP_LOCAL_PORT_RANGE,
    SO_ERROR,
    SO_LINGER,
    SO_PEEK_OFF,
    SO_REUSEADDR,
    SO_SNDBUF,
    SOL_SOCKET,
)
from torpor.posix.socket_queue import Peeked
from torpor.posix.turnover import NOSIGNAL, WAITALL, Meeting, Numbers, Run, Script, argument, result
from torpor.tracee.call import In, Out, Word
from torpor.tracee.process import LivingProcess

_SO_OOBINLINE, _SO_RCVTIMEO, _SO_SNDTIMEO = 10, 20, 21
_SIOCATMARK = 0x8905
_CMP_REQUEUE = 4 | 128
"""FUTEX_CMP_REQUEUE | FUTEX_PRIVATE_FLAG"""
_MOST = 128
"""Connections in one line: as many as one batch can tell apart."""
_GONE_MOST = 1 << 20
"""Bytes of a client that is gone: what a socket with default settings is sure to take."""
_SLACK = 1 << 16
_PAGE = 4096


class Client(NamedTuple):
    """One that waits. local: its own address; remote: the listener's, as it sees it. seen: a descriptor of it, None if
    it is gone. size: bytes that it has sent, at most. shut: as in `TcpSocket`."""

    local: Address
    remote: Address
    family: int
    seen: Descriptor | None
    size: int
    shut: int
    flags: int = 0


class Line(NamedTuple):
    """All that waits at a listener, in no order."""

    listener: Descriptor
    family: int
    holders: tuple[int, ...]
    gates: tuple[int, ...]
    clients: tuple[Client, ...]

    @property
    def processes(self) -> set[int]:
        """All that take part (host pids)."""
        return {self.holders[0], *self.gates}


class Found(NamedTuple):
    """What was in a connection."""

    client: Address
    messages: list[Peeked]


def plan(listener: Descriptor, family: int, waiting: int, clients: Sequence[Client], job: Job) -> Line:
    """How a line is turned over. Raises NotNow for what is in the way. waiting: how many the kernel says there are."""
    if waiting != len(clients):
        thing = f"at which {waiting} connections wait, of which {len(clients)} can be seen"
        raise NotNow([_refusal(listener, thing)], turnover.holders(listener.ino, job.descriptors))
    low, high = (int(word) for word in proc.text("/proc/sys/net/ipv4/ip_local_port_range").split())
    others: dict[int, None] = {}
    out = []
    for one in clients:
        if one.seen is None:
            if not low <= one.local.port <= high or one.size > _GONE_MOST:
                thing = f"at which {one.local} waits to be accepted, which is closed, "
                thing += "with a port outside of net.ipv4.ip_local_port_range or much data"
                raise NotNow([_refusal(listener, thing)], turnover.holders(listener.ino, job.descriptors))
            out.append(one)
            continue
        fd = job.hold(one.seen.pid, one.seen.number)
        signals = owner.capture(fd, job)
        thing = ""
        if signals is not None and signals.sending:
            thing = "with O_ASYNC set"
        elif sock_diag.to_send(fd) > socket_options.number(fd, SOL_SOCKET, SO_SNDBUF) // 4 * 3:
            thing = "with a full send buffer"
        elif socket_options.get(fd, IP, IP_LOCAL_PORT_RANGE, 4) is None:
            thing = "which before Linux 6.3 cannot be connected anew from the same port"
        if thing:
            thing = f"that waits to be accepted at {one.remote}, {thing}"
            raise NotNow([_refusal(one.seen, thing)], turnover.holders(listener.ino, job.descriptors))
        others.update(dict.fromkeys(turnover.holders(one.seen.ino, job.descriptors)))
        out.append(one._replace(flags=status_flags(fd)))
    who = tuple(turnover.holders(listener.ino, job.descriptors))
    gates = tuple(pid for pid in others if pid != who[0])
    if len(out) > _MOST or os.getpid() in (who[0], *gates):
        raise NotNow([_refusal(listener, f"at which {len(out)} connections wait to be accepted")], who)
    if turnover.share_descriptors([who[0], *gates]):
        thing = "at which a connection waits, of processes that share their descriptors (CLONE_FILES)"
        raise NotNow([_refusal(listener, thing)], who)
    return Line(listener, family, who, gates, tuple(out))


def _refusal(seen: Descriptor, thing: str) -> Refusal:
    return seen.refuse(f"a TCP socket {thing}", "try again when the program has accepted what waits there")


def carry_out(line: Line, processes: Mapping[int, LivingProcess], job: Job) -> Found:
    """Turn the oldest one of a line over; what was in it. Raises CheckpointFailed."""
    actor = processes[line.holders[0]]
    fds = [job.hold(line.listener.pid, line.listener.number)]
    played: list[_socket.socket] = []
    meeting = Meeting(_socket.SOCK_STREAM)
    run = Run(meeting)
    try:
        for one in line.clients:
            if one.seen is not None:
                fds.append(job.hold(one.seen.pid, one.seen.number))
            else:
                played.append(_play(one))
                fds.append(played[-1].fileno())
        size = (max(one.size for one in line.clients) + _SLACK + _PAGE - 1) & ~(_PAGE - 1)
        at = turnover.room(actor.pid, actor.leader.tid, 2 * size + (4 + _MOST) * _PAGE)
        memory = _Memory(at, size, len(line.clients))
        script, rows = _script(line, actor, meeting, memory)
        run.hold(turnover.bystander(processes[pid], meeting) for pid in line.gates)
        link = run.start(actor, script)
        uio.write(actor.pid, memory.records, b"".join(_record(one, processes, job) for one in line.clients))
        run.commit(fds)
        told = b""
        while data := link.recv(1 << 18):
            told += data
        answers = run.finish()
        if len(told) < _TOLD or any(answers[row].error for row in rows):
            raise CheckpointFailed(f"a connection to {line.listener.target} cannot be looked into; try again")
        return _found(told)
    finally:
        for link in played:
            link.close()
        run.close()


def _play(client: Client) -> _socket.socket:
    """A socket with the address of a client that is gone; its port is chosen when it is connected."""
    one = _socket.socket(client.family, STREAM | _socket.SOCK_CLOEXEC)
    one.setsockopt(SOL_SOCKET, SO_REUSEADDR, 1)
    one.setsockopt(IP, IP_BIND_ADDRESS_NO_PORT, 1)
    one.bind(Address(client.local.ip, 0, client.local.scope).of_family(client.family))
    return one


# The memory of a batch: what it is about to do with the client that it has found (one record), what it tells us, two
# buffers, and the records of all clients.

_DEST, _RANGE, _RANGE_BEFORE, _TIMEOUT, _PEEK = 0, 32, 36, 40, 56
_RECORD = 128
_ARGUMENTS = 64
"""From here on a record has arguments of calls: length of the address, how to shut, flags without and with waiting."""
_TOLD = 64
"""The address that accept told; from 32 on the lengths of what was read before and behind urgent data, and whether an
urgent byte comes first, or between the two."""


class _Memory(NamedTuple):
    at: int
    size: int
    clients: int

    @property
    def told(self) -> int:
        return self.at + _PAGE

    @property
    def urgent(self) -> int:
        return self.told + 128

    @property
    def scratch(self) -> int:
        return self.told + 256

    @property
    def buffers(self) -> tuple[int, int]:
        return self.at + 2 * _PAGE, self.at + 2 * _PAGE + self.size

    @property
    def records(self) -> int:
        return self.at + 2 * _PAGE + 2 * self.size

    @property
    def whole(self) -> int:
        return 3 * _PAGE + 2 * self.size + self.clients * _RECORD


def _sockaddr(address: Address, family: int) -> bytes:
    if family == AF_INET:
        return struct.pack("=H", family) + struct.pack(">H", address.port) + address.ip[-4:] + bytes(8)
    ip = address.ip if len(address.ip) == 16 else bytes(10) + b"\xff\xff" + address.ip
    return struct.pack("=H", family) + struct.pack(">HI", address.port, 0) + ip + struct.pack("=I", address.scope)


def _record(client: Client, processes: Mapping[int, LivingProcess], job: Job) -> bytes:
    fd = job.hold(client.seen.pid, client.seen.number) if client.seen is not None else -1
    address = _sockaddr(client.remote, client.family)
    before, timeout, peek = bytes(4), bytes(16), struct.pack("i", -1)
    if fd >= 0:
        before = socket_options.get(fd, IP, IP_LOCAL_PORT_RANGE, 4) or before
        timeout = socket_options.get(fd, SOL_SOCKET, _SO_SNDTIMEO, 16) or timeout
        peek = socket_options.get(fd, SOL_SOCKET, SO_PEEK_OFF, 4) or peek
    port = client.local.port
    values = address.ljust(32, b"\0") + struct.pack("=I", port << 16 | port) + before + timeout + peek
    how = client.shut - 1 if client.shut else 9  # EINVAL: nothing is shut
    if client.seen is None:
        how = 1
    blocking = client.flags & ~os.O_NONBLOCK
    return values.ljust(_ARGUMENTS, b"\0") + struct.pack("<QQQQ", len(address), how, blocking, client.flags).ljust(
        _RECORD - _ARGUMENTS, b"\0"
    )


def _script(line: Line, actor: LivingProcess, meeting: Meeting, memory: _Memory) -> tuple[Script, list[int]]:
    """The batch, and the places of the calls that must not fail."""
    script, numbers = Script(), Numbers(actor.pid)
    at, told, one_byte = memory.at, memory.told, memory.urgent
    first, second = memory.buffers
    restore = turnover.more_descriptors(actor.pid, script)
    script.add(NR.mmap, at, memory.whole, 3, turnover.MAP_FLAGS, -1, 0, otherwise="over")
    link = meeting.connect(numbers, script, "unmap")
    turnover.receive_descriptors(link, 1 + len(line.clients) + len(line.gates), script, "unmap")
    listener, *clients = [numbers.take() for _ in range(1 + len(line.clients))]
    for _ in line.gates:
        numbers.take()
    end, client = numbers.take(), numbers.take()
    length = In(struct.pack("=I", 28))
    accepted = script.add(NR.accept4, listener, told, length, _socket.SOCK_CLOEXEC, otherwise="unmap")

    # Which one is it? A record's arguments go to calls that are still to come.
    main = Script()  # to know their places
    steps = _steps(main, end, client, memory, 0)
    base = len(script) + 4 * len(line.clients)
    places = [base + step for step in (steps.connect, steps.shut, steps.blocking, steps.flags)]
    arguments = [argument(places[0], 2), argument(places[1], 1), argument(places[2], 2), argument(places[3], 2)]
    last_word = 4 if line.family == AF_INET else 20
    for number, (fd, one) in enumerate(zip(clients, line.clients)):
        address = _sockaddr(one.local, line.family)
        for word in (0, last_word):
            expected = struct.unpack_from("=I", address, word)[0]
            script.add(NR.futex, told + word, _CMP_REQUEUE, 0, 0, memory.scratch, expected, otherwise=f"not {number}")
        script.add(NR.dup3, fd, client, os.O_CLOEXEC)
        record = memory.records + number * _RECORD
        to: list[tuple[Word | int, int]] = [(at, _ARGUMENTS), *((argument, 8) for argument in arguments)]
        _scatter(actor.leader.vtid, to, record, _ARGUMENTS + 32, script)
        script.label(f"not {number}")
    assert len(script) == base
    steps = _steps(script, end, client, memory, actor.leader.vtid)

    tell = len(script)
    moves: list[tuple[Word | int, Word | int, int]] = [
        (argument(tell + 2, 2), told + 32, 8), (argument(tell + 3, 2), told + 40, 8),
    ]  # fmt: skip
    turnover.copy(actor.leader.vtid, moves, script)
    script.add(NR.sendto, link, told, _TOLD, NOSIGNAL, 0, 0)
    script.add(NR.sendto, link, first, 0, NOSIGNAL, 0, 0)
    script.add(NR.sendto, link, second, 0, NOSIGNAL, 0, 0)
    script.add(NR.sendto, link, one_byte, 1, NOSIGNAL, 0, 0)
    script.label("unmap")
    script.add(NR.munmap, at, memory.whole)
    script.label("over")
    turnover.close_all(numbers, script)
    restore()
    return script, [accepted, steps.first, steps.connect, steps.send]


class _Steps(NamedTuple):
    """Places of calls."""

    blocking: int
    first: int
    connect: int
    send: int
    shut: int
    flags: int


def _steps(script: Script, end: int, client: int, memory: _Memory, vtid: int) -> _Steps:
    """Add: read what the accepted end has, connect the client anew, send it again."""
    at, told, one_byte, size = memory.at, memory.told, memory.urgent, memory.size
    first, second = memory.buffers
    fcntl_set, sending = 4, 1  # F_SETFL, SHUT_WR
    script.add(NR.setsockopt, end, SOL_SOCKET, _SO_RCVTIMEO, In(struct.pack("qq", 2, 0)), 16)
    script.add(NR.setsockopt, end, SOL_SOCKET, _SO_OOBINLINE, In(bytes(4)), 4)
    blocking = script.add(NR.fcntl, client, fcntl_set, 0)
    script.add(NR.setsockopt, client, SOL_SOCKET, _SO_SNDTIMEO, In(struct.pack("qq", 3, 0)), 16)
    script.add(NR.shutdown, client, sending)
    # Urgent data: the byte may be first, or in between; reading stops in front of it.
    script.add(NR.ioctl, end, _SIOCATMARK, told + 48)
    script.add(NR.recvfrom, end, one_byte, 1, _socket.MSG_OOB | turnover.DONTWAIT, 0, 0)
    read = script.add(NR.recvfrom, end, first, size, WAITALL, 0, 0, otherwise="nothing")
    turnover.copy(vtid, [(told + 32, result(read), 8)], script)
    script.label("nothing")
    script.add(NR.ioctl, end, _SIOCATMARK, told + 56)
    rest = script.add(NR.recvfrom, end, second, size, WAITALL, 0, 0, otherwise="nothing more")
    turnover.copy(vtid, [(told + 40, result(rest), 8)], script)
    script.label("nothing more")
    script.add(NR.connect, client, In(bytes(16)), 16)  # AF_UNSPEC
    script.add(NR.setsockopt, end, SOL_SOCKET, SO_LINGER, In(struct.pack("ii", 1, 0)), 8)
    script.add(NR.close, end)
    script.add(NR.getsockopt, client, SOL_SOCKET, SO_ERROR, Out(4), In(struct.pack("i", 4)))
    script.add(NR.setsockopt, client, IP, IP_LOCAL_PORT_RANGE, at + _RANGE, 4)
    connect = script.add(NR.connect, client, at + _DEST, 0)
    script.add(NR.setsockopt, client, IP, IP_LOCAL_PORT_RANGE, at + _RANGE_BEFORE, 4)
    send = len(script) + 1
    moves: list[tuple[Word | int, Word | int, int]] = [
        (argument(send, 2), told + 48, 4), (argument(send + 1, 2), told + 32, 8),
        (argument(send + 2, 2), told + 56, 4), (argument(send + 3, 2), told + 40, 8),
    ]  # fmt: skip
    turnover.copy(vtid, moves, script)
    script.add(NR.sendto, client, one_byte, 0, NOSIGNAL | _socket.MSG_OOB, 0, 0)
    script.add(NR.sendto, client, first, 0, NOSIGNAL, 0, 0)
    script.add(NR.sendto, client, one_byte, 0, NOSIGNAL | _socket.MSG_OOB, 0, 0)
    script.add(NR.sendto, client, second, 0, NOSIGNAL, 0, 0)
    shut = script.add(NR.shutdown, client, 9)
    script.add(NR.setsockopt, client, SOL_SOCKET, _SO_SNDTIMEO, at + _TIMEOUT, 16)
    script.add(NR.setsockopt, client, SOL_SOCKET, SO_PEEK_OFF, at + _PEEK, 4)
    flags = script.add(NR.fcntl, client, fcntl_set, 0)
    return _Steps(blocking, read, connect, send + 1, shut, flags)


def _scatter(vtid: int, to: Sequence[tuple[Word | int, int]], source: int, size: int, script: Script) -> None:
    """Add: copy `size` bytes at an address to several places, one behind the other."""
    data, pointers = b"", []
    for i, (where, length) in enumerate(to):
        data += struct.pack("<QQ", where if isinstance(where, int) else 0, length)
        if not isinstance(where, int):
            pointers.append((16 * i, where))
    script.add(
        NR.process_vm_readv, vtid, In(data, tuple(pointers)), len(to), In(struct.pack("<QQ", source, size)), 1, 0
    )


def _found(told: bytes) -> Found:
    """What the batch has told."""
    family, port = struct.unpack_from("=H", told)[0], struct.unpack_from(">H", told, 2)[0]
    ip = told[4:8] if family == AF_INET else told[8:24]
    if family == AF_INET6 and ip.startswith(bytes(10) + b"\xff\xff"):
        ip = ip[12:]
    first, second, urgent_first, urgent_between = struct.unpack_from("<qqqq", told, 32)
    first, second = max(first, 0), max(second, 0)
    data = told[_TOLD:]
    before, after, byte = data[:first], data[first : first + second], data[first + second :]
    messages = []
    if urgent_first:
        messages.append(Peeked(byte, [], None, None, urgent=True))
    if before or urgent_between:
        messages.append(Peeked(before + (byte if urgent_between else b""), [], None, None, urgent=bool(urgent_between)))
    if after:
        messages.append(Peeked(after, [], None, None))
    return Found(Address(ip, port), messages)
