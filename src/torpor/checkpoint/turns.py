"""Connections that wait on another host of the job to be accepted, with data in them: both hosts look into them.

The listener's host *leads*: it turns its line over (posix/inet_turnover.py), and the hosts that have clients in that
line *follow* (posix/inet_turnover_far.py). They speak to each other directly, not through the coordinator, while the
job is captured. A host at which connections of others wait has a *door* for that, whose port is told with its ends;
every host that has such a connection comes there, also if nothing is to be done:

    door -> caller    a nonce (16 bytes)
    caller -> door    its name, a nonce, a code (as frames)
    door -> caller    a code
    door -> caller    what is to be turned over next: the caller's connections, by name (`far.name`)
    caller -> door    "ready"; then the two batches speak
    ...               until the door names no connections

The codes show that both know the job's secret and mean this checkpoint. All hosts go through the doors in the order of
their hosts' names; so none waits for one that waits for it.
"""

from __future__ import annotations

import _socket
import errno
import hmac
import os
import select
import struct
import time
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from torpor.checkpoint.together import SavedTogether
from torpor.model.errors import CheckpointFailed
from torpor.named_tuple import NamedTuple
from torpor.posix import far, inet_far, inet_table, inet_turnover_far, turnover
from torpor.posix.backlog import Backlogs
from torpor.posix.descriptors import status_flags
from torpor.posix.far import Told
from torpor.posix.inet_again import Client
from torpor.posix.inet_table import TcpSeen
from torpor.posix.inet_turnover import Line, refuse_odd
from torpor.posix.service import Job
from torpor.posix.socket_address import AF_INET, AF_INET6, STREAM, Address
from torpor.posix.socket_options import IPV6, IPV6_V6ONLY
from torpor.tracee.process import LivingProcess

_NONCE, _CODE = 16, 32
_LENGTH = struct.Struct(">I")
_LONGEST = 1 << 16
_SECONDS = 60.0
"""For which another host is waited for."""
_READY = b"ready"


class _Turn(msgspec.Struct, frozen=True, array_like=True):
    """What is looked into next, by the names of the connections that wait in this line; none: it is over. family: of
    the listener."""

    names: tuple[bytes, ...] = ()
    family: int = AF_INET


class _Door(NamedTuple):
    """Where another host is to be met."""

    address: Address
    port: int


class Turns:
    """The part of one host. `close` in any case."""

    def __init__(self, together: SavedTogether) -> None:
        self._together = together
        self._door: _socket.socket | None = None
        self._callers: dict[str, _socket.socket] = {}

    def open_door(self) -> int:
        """Others will come. The port. Raises CheckpointFailed."""
        for family, anywhere in ((AF_INET6, "::"), (AF_INET, "0.0.0.0")):
            one = _socket.socket(family, STREAM | _socket.SOCK_CLOEXEC)
            try:
                if family == AF_INET6:
                    one.setsockopt(IPV6, IPV6_V6ONLY, 0)
                one.bind((anywhere, 0))
                one.listen(4096)
            except OSError as error:
                one.close()
                if family == AF_INET6 and error.errno in (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL):
                    continue  # a machine without IPv6
                raise CheckpointFailed(f"no port can be had for other hosts of the job: {error.strerror}") from None
            self._door = one
            return int(one.getsockname()[1])
        raise CheckpointFailed("no port can be had for other hosts of the job")

    def needed(self, job: Job) -> bool:
        """Do connections wait here or there?"""
        return bool(job.far_waiting) or any(one.waiting for one in job.far.values())

    def carry_out(
        self, lines: Sequence[tuple[Any, Line]], processes: Mapping[int, LivingProcess], job: Job, backlogs: Backlogs
    ) -> bool:
        """Turn over what is to be, here (lines: with the service that does it) and on other hosts; was that anything?
        Raises Refused, CheckpointFailed."""
        backlogs.get_ready = self._get_ready
        doors = _doors(job)
        turned = bool(lines)
        me = self._together.part
        for host in sorted({*doors, *((me,) if job.far_waiting else ())}):
            if host == me:
                self._lead(lines, processes, job, backlogs)
            else:
                turned |= self._follow(host, doors[host], processes, job, backlogs)
        return turned

    def close(self) -> None:
        """Whoever waits for us goes on."""
        for one in (*self._callers.values(), *([self._door] if self._door is not None else [])):
            one.close()
        self._callers.clear()
        self._door = None

    # Leading.

    def _lead(
        self, lines: Sequence[tuple[Any, Line]], processes: Mapping[int, LivingProcess], job: Job, backlogs: Backlogs
    ) -> None:
        self._let_in({told.host for told in job.far_waiting.values() if told.host})
        for service, line in lines:
            service.turn(line, processes, job, backlogs)
        for caller in self._callers.values():
            self._send(caller, msgspec.msgpack.encode(_Turn()))

    def _let_in(self, hosts: set[str]) -> None:
        """Until all of these hosts have come."""
        assert self._door is not None
        until = time.monotonic() + _SECONDS
        while missing := hosts - set(self._callers):
            self._await(self._door, until, min(missing))
            fd, _ = self._door._accept()  # type: ignore[attr-defined]
            caller = _socket.socket(fileno=fd)
            try:
                name = self._greet(caller)
            except (OSError, CheckpointFailed, msgspec.MsgspecError):
                caller.close()  # somebody who found the port open, or a host that has given up
                self._together.check()
                continue
            self._callers.setdefault(name, caller)

    def _greet(self, caller: _socket.socket) -> str:
        """The name of a host that has come. Raises CheckpointFailed, OSError."""
        nonce = os.urandom(_NONCE)
        caller.sendall(nonce)
        name, theirs, code = (self._receive(caller, "who has come", 5.0) for _ in range(3))
        words = _words(name, nonce, theirs)
        if not hmac.compare_digest(code, self._together.code(b"comes" + words)):
            raise CheckpointFailed("it is not of this checkpoint")
        caller.sendall(self._together.code(b"opens" + words))
        inet_turnover_far.prepare(caller)
        return name.decode()

    def _get_ready(self, line: Line) -> Mapping[str, int]:
        """See `Backlogs.get_ready`."""
        for host in line.hosts:
            names = (far.name(far.TCP, one.local, one.remote)[0] for one in line.clients if one.host == host)
            self._send(self._callers[host], msgspec.msgpack.encode(_Turn(tuple(names), line.family)))
        for host in line.hosts:
            if self._receive(self._callers[host], host) != _READY:
                raise CheckpointFailed(f"{host} says what nobody understands")
        return {host: self._callers[host].fileno() for host in line.hosts}

    # Following.

    def _follow(
        self, host: str, door: _Door, processes: Mapping[int, LivingProcess], job: Job, backlogs: Backlogs
    ) -> bool:
        side = self._call(host, door)
        try:
            turned = False
            while True:
                turn = msgspec.msgpack.decode(self._receive(side, host), type=_Turn)
                if not turn.names:
                    return turned
                turned = True
                clients = _clients(turn.names, host, job)
                away = inet_turnover_far.plan(clients, turn.family, job)
                turnover.refuse_stopped(processes[pid] for pid in (away.actor, *away.gates))
                found = inet_turnover_far.carry_out(
                    away, side, processes, job, lambda: self._send(side, _READY)
                )  # fmt: skip
                if found is not None:
                    remote = next(one.remote for one in clients if one.local == found.client)
                    backlogs.tell_tcp(found.client, remote, found.messages)
        except (OSError, msgspec.MsgspecError) as error:
            raise CheckpointFailed(f"{host}: what waits there to be accepted cannot be looked into: {error}") from None
        finally:
            side.close()

    def _call(self, host: str, door: _Door) -> _socket.socket:
        """Come to a door. Raises CheckpointFailed."""
        family = AF_INET if len(door.address.ip) == 4 else AF_INET6
        side = _socket.socket(family, STREAM | _socket.SOCK_CLOEXEC)
        try:
            side.settimeout(_SECONDS)
            side.connect(Address(door.address.ip, door.port, door.address.scope).of_family(family))
            inet_turnover_far.prepare(side)
            nonce = self._exactly(side, _NONCE, host)
            mine, name = os.urandom(_NONCE), self._together.part.encode()
            words = _words(name, nonce, mine)
            for part in (name, mine, self._together.code(b"comes" + words)):
                self._send(side, part)
            if not hmac.compare_digest(self._exactly(side, _CODE, host), self._together.code(b"opens" + words)):
                raise CheckpointFailed(f"{host}: who answers there is not of this checkpoint")
        except OSError as error:
            side.close()
            raise CheckpointFailed(f"{host} cannot be reached at port {door.port}: {error}") from None
        except BaseException:
            side.close()
            raise
        return side

    # Words.

    def _send(self, one: _socket.socket, data: bytes) -> None:
        try:
            one.sendall(_LENGTH.pack(len(data)) + data)
        except OSError as error:
            self._together.check()
            raise CheckpointFailed(f"another host has given up: {error.strerror}") from None

    def _receive(self, one: _socket.socket, host: str, seconds: float = _SECONDS) -> bytes:
        (length,) = _LENGTH.unpack(self._exactly(one, _LENGTH.size, host, seconds))
        if length > _LONGEST:
            raise CheckpointFailed(f"{host} says what nobody understands")
        return self._exactly(one, length, host, seconds)

    def _exactly(self, one: _socket.socket, size: int, host: str, seconds: float = _SECONDS) -> bytes:
        """So many bytes and not one more: what follows may be for a batch. Raises CheckpointFailed."""
        until, data = time.monotonic() + seconds, b""
        while len(data) < size:
            self._await(one, until, host)
            try:
                more = one.recv(size - len(data))
            except OSError:
                more = b""
            if not more:
                self._hung_up(host)
            data += more
        return data

    def _await(self, one: _socket.socket, until: float, host: str) -> None:
        """Until there is something to be read. Raises CheckpointFailed."""
        poll = select.poll()
        poll.register(one.fileno(), select.POLLIN)
        while not poll.poll(100):
            self._together.check()
            if time.monotonic() > until:
                raise CheckpointFailed(f"{host} does not take part in looking into what waits to be accepted")

    def _hung_up(self, host: str) -> None:
        """The other host says why to whoever has asked for this checkpoint; its reason is to come first."""
        until = time.monotonic() + 3.0
        while time.monotonic() < until:
            self._together.check()
            time.sleep(0.02)
        raise CheckpointFailed(f"{host} has given up looking into what waits to be accepted")


def _words(name: bytes, nonce: bytes, other: bytes) -> bytes:
    return b"/".join((name, nonce.hex().encode(), other.hex().encode()))


def _doors(job: Job) -> dict[str, _Door]:
    """The doors of the hosts at which connections of ours wait."""
    table = inet_table.of(job)
    found: dict[str, _Door] = {}
    for ino, told in job.far.items():
        me = table.by_ino.get(ino)
        if _waits_there(told) and me is not None and me.remote is not None:
            found.setdefault(told.host, _Door(me.remote, told.door))
    return found


def _waits_there(told: Told) -> bool:
    return told.waiting and not told.orphan and bool(told.door)


def _clients(names: Sequence[bytes], host: str, job: Job) -> list[Client]:
    """The clients of ours with these names. Raises CheckpointFailed, NotNow."""
    table = inet_table.of(job)
    ours: dict[bytes, TcpSeen] = {}
    for ino, told in job.far.items():
        me = table.by_ino.get(ino)
        if told.host == host and _waits_there(told) and me is not None and me.local and me.remote:
            ours[far.name(far.TCP, me.local, me.remote)[0]] = me
    out = []
    for name in names:
        if name not in ours:
            raise CheckpointFailed(f"a connection waits on {host} to be accepted that is not known here")
        me = ours[name]
        assert me.local is not None and me.remote is not None
        flags = status_flags(job.hold(me.seen.pid, me.seen.number))
        one = Client(me.local, me.remote, me.family, me.seen, inet_far.sent(me), inet_table.shut_of(me), flags)
        refuse_odd(one, 0, job)
        out.append(one)
    return out
