"""A TCP client that is connected again while the job is stopped: the calls of a batch that does it, and what they need.

The parts of which inet_turnover.py and inet_turnover_far.py, which say why, make their batches. `end` is the number of
the descriptor of an accepted end, `client` that of a client's end.
"""

from __future__ import annotations

import _socket
import contextlib
import os
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence

from torpor.linux import sock_diag
from torpor.linux.arch.x86_64 import NR
from torpor.model.errors import CheckpointFailed
from torpor.named_tuple import NamedTuple
from torpor.posix import socket_options, turnover
from torpor.posix.service import Descriptor, Job
from torpor.posix.socket_address import AF_INET, AF_INET6, Address
from torpor.posix.socket_options import IP, IP_LOCAL_PORT_RANGE, SO_ERROR, SO_LINGER, SO_PEEK_OFF, SO_SNDBUF, SOL_SOCKET
from torpor.posix.socket_queue import Peeked
from torpor.posix.turnover import NOSIGNAL, Script, argument
from torpor.tracee.call import In, Out, Word
from torpor.tracee.process import LivingProcess

_SO_SNDTIMEO = 21
_F_SETFL = 4
_CMP_REQUEUE = 4 | 128
"""FUTEX_CMP_REQUEUE | FUTEX_PRIVATE_FLAG"""
MOST = 128
"""Connections in one line: as many as one batch can tell apart."""
_SLACK = 1 << 16
_PAGE = 4096


class Client(NamedTuple):
    """One that waits. local: its own address; remote: the listener's, as it sees it. seen: a descriptor of it, None if
    it is gone, or on another host: `host`. size: bytes that it has sent, at most. shut: as in `TcpSocket`."""

    local: Address
    remote: Address
    family: int
    seen: Descriptor | None
    size: int
    shut: int
    flags: int = 0
    host: str = ""


def takes_all(one: Client, job: Job) -> bool:
    """Would a client take what it has sent in one go, once it is connected again?"""
    assert one.seen is not None
    room = _room(one, job)
    if room is None:
        return True
    try:
        return _grown(room, one)
    finally:
        room.back()


@contextlib.contextmanager
def room_to_send(clients: Iterable[Client], job: Job) -> Iterator[None]:
    """Clients with full send buffers have larger ones meanwhile. Raises CheckpointFailed where they cannot. (If we are
    killed, they keep those.)"""
    rooms: list[socket_options.Room] = []
    try:
        for one in clients:
            room = _room(one, job) if one.seen is not None else None
            if room is not None:
                rooms.append(room)
                if not _grown(room, one):
                    raise CheckpointFailed(f"a connection to {one.remote} has a full send buffer; try again")
        yield
    finally:
        for room in rooms:
            room.back()


def _room(one: Client, job: Job) -> socket_options.Room | None:
    """The buffers of a client that has a full one."""
    assert one.seen is not None
    fd = job.hold(one.seen.pid, one.seen.number)
    if sock_diag.to_send(fd) <= socket_options.number(fd, SOL_SOCKET, SO_SNDBUF) // 4 * 3:
        return None
    return socket_options.Room(fd)


def _grown(room: socket_options.Room, one: Client) -> bool:
    # What a piece of data takes up with all that the kernel keeps beside it is less than twice as much.
    return room.grow(SO_SNDBUF, 4 * one.size + _SLACK) >= 2 * one.size + _SLACK


class Found(NamedTuple):
    """What was in a connection."""

    client: Address
    messages: list[Peeked]


# The memory of a batch: what it is about to do with the client that it has found (one record), what it tells us, two
# buffers, and the records of all clients.

_DEST, _RANGE, _RANGE_BEFORE, _TIMEOUT, _PEEK = 0, 32, 36, 40, 56
_RECORD = 128
_ARGUMENTS = 64
"""From here on a record has arguments of calls: length of the address, how to shut, flags without and with waiting."""
TOLD = 64
"""The address that accept told; from 32 on the lengths of what was read before and behind urgent data, and whether an
urgent byte comes first, or between the two."""


class Memory(NamedTuple):
    """Where a batch keeps it: an address that is free, the size of a buffer, how many records."""

    at: int
    size: int
    clients: int

    @classmethod
    def find(cls, actor: LivingProcess, most: int, clients: int) -> Memory:
        """For a process, and `most` bytes that a client has sent."""
        size = (most + _SLACK + _PAGE - 1) & ~(_PAGE - 1)
        return cls(turnover.room(actor.pid, actor.leader.tid, 2 * size + (4 + MOST) * _PAGE), size, clients)

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


def sockaddr(address: Address, family: int) -> bytes:
    """An address as accept(2) tells it at a socket of that family."""
    if family == AF_INET:
        return struct.pack("=H", family) + struct.pack(">H", address.port) + address.ip[-4:] + bytes(8)
    ip = address.ip if len(address.ip) == 16 else bytes(10) + b"\xff\xff" + address.ip
    return struct.pack("=H", family) + struct.pack(">HI", address.port, 0) + ip + struct.pack("=I", address.scope)


def record(client: Client, job: Job) -> bytes:
    """What a batch has to know of a client to connect it again."""
    fd = job.hold(client.seen.pid, client.seen.number) if client.seen is not None else -1
    address = sockaddr(client.remote, client.family)
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


def compare_address(address: Address, family: int, memory: Memory, script: Script, otherwise: str) -> None:
    """Add: go on only if accept has told this address."""
    expected = sockaddr(address, family)
    for word in (0, 4 if family == AF_INET else 20):
        value = struct.unpack_from("=I", expected, word)[0]
        script.add(NR.futex, memory.told + word, _CMP_REQUEUE, 0, 0, memory.scratch, value, otherwise=otherwise)


def which_client(
    script: Script, clients: Sequence[Client], fds: Sequence[int], client: int, family: int, memory: Memory, vtid: int,
    following: Callable[[Script], Steps],
) -> None:  # fmt: skip
    """Add: find out which client it is that accept has told, make `client` its descriptor, and hand what is kept of it
    to the calls that `following` adds right behind this."""
    steps = following(Script())  # to know their places
    base = len(script) + 4 * len(clients)
    places = [base + step for step in (steps.connect, steps.shut, steps.blocking, steps.flags)]
    arguments = [argument(places[0], 2), argument(places[1], 1), argument(places[2], 2), argument(places[3], 2)]
    for number, (fd, one) in enumerate(zip(fds, clients, strict=True)):
        compare_address(one.local, family, memory, script, f"not {number}")
        script.add(NR.dup3, fd, client, os.O_CLOEXEC)
        kept = memory.records + number * _RECORD
        to: list[tuple[Word | int, int]] = [(memory.at, _ARGUMENTS), *((argument, 8) for argument in arguments)]
        _scatter(vtid, to, kept, _ARGUMENTS + 32, script)
        script.label(f"not {number}")
    assert len(script) == base


def tell(script: Script, link: int, memory: Memory, vtid: int) -> None:
    """Add: send what was found, and what was in it."""
    first, second = memory.buffers
    here = len(script)
    moves: list[tuple[Word | int, Word | int, int]] = [
        (argument(here + 2, 2), memory.told + 32, 8), (argument(here + 3, 2), memory.told + 40, 8),
    ]  # fmt: skip
    turnover.copy(vtid, moves, script)
    script.add(NR.sendto, link, memory.told, TOLD, NOSIGNAL, 0, 0)
    script.add(NR.sendto, link, first, 0, NOSIGNAL, 0, 0)
    script.add(NR.sendto, link, second, 0, NOSIGNAL, 0, 0)
    script.add(NR.sendto, link, memory.urgent, 1, NOSIGNAL, 0, 0)


class Steps(NamedTuple):
    """Places of calls."""

    blocking: int
    first: int
    connect: int
    send: int
    shut: int
    flags: int


def finish_sending(script: Script, client: int) -> int:
    """Add: a client says that it has sent everything. The place of the call that lets it wait for what it does."""
    blocking = script.add(NR.fcntl, client, _F_SETFL, 0)
    script.add(NR.setsockopt, client, SOL_SOCKET, _SO_SNDTIMEO, In(struct.pack("qq", 3, 0)), 16)
    script.add(NR.shutdown, client, 1)  # SHUT_WR
    return blocking


def leave(script: Script, end: int) -> None:
    """Add: close the accepted end, so that nothing stays behind (no TIME_WAIT)."""
    script.add(NR.setsockopt, end, SOL_SOCKET, SO_LINGER, In(struct.pack("ii", 1, 0)), 8)
    script.add(NR.close, end)


def connect_again(script: Script, client: int, memory: Memory, vtid: int, lost: str = "") -> Steps:
    """Add: connect a client that was disconnected, and send again what is in the buffers. lost: the label to go on at
    where there is nothing to connect to any more."""
    at, told, (first, second) = memory.at, memory.told, memory.buffers
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
    script.add(NR.sendto, client, memory.urgent, 0, NOSIGNAL | _socket.MSG_OOB, 0, 0)
    script.add(NR.sendto, client, first, 0, NOSIGNAL, 0, 0)
    script.add(NR.sendto, client, memory.urgent, 0, NOSIGNAL | _socket.MSG_OOB, 0, 0)
    script.add(NR.sendto, client, second, 0, NOSIGNAL, 0, 0)
    if lost:
        script.label(lost)
    shut = script.add(NR.shutdown, client, 9)
    script.add(NR.setsockopt, client, SOL_SOCKET, _SO_SNDTIMEO, memory.at + _TIMEOUT, 16)
    script.add(NR.setsockopt, client, SOL_SOCKET, SO_PEEK_OFF, memory.at + _PEEK, 4)
    flags = script.add(NR.fcntl, client, _F_SETFL, 0)
    return Steps(0, 0, connect, send + 1, shut, flags)


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


def what_was_found(told: bytes) -> Found:
    """What a batch has told (`tell`)."""
    family, port = struct.unpack_from("=H", told)[0], struct.unpack_from(">H", told, 2)[0]
    ip = told[4:8] if family == AF_INET else told[8:24]
    if family == AF_INET6 and ip.startswith(bytes(10) + b"\xff\xff"):
        ip = ip[12:]
    first, second, urgent_first, urgent_between = struct.unpack_from("<qqqq", told, 32)
    first, second = max(first, 0), max(second, 0)
    data = told[TOLD:]
    before, after, byte = data[:first], data[first : first + second], data[first + second :]
    messages = []
    if urgent_first:
        messages.append(Peeked(byte, [], None, None, urgent=True))
    if before or urgent_between:
        messages.append(Peeked(before + (byte if urgent_between else b""), [], None, None, urgent=bool(urgent_between)))
    if after:
        messages.append(Peeked(after, [], None, None))
    return Found(Address(ip, port), messages)
