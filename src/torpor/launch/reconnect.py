"""Connections that lead out of a job, made anew before it goes on, as a policy may want it (docs/policy.md)."""

from __future__ import annotations

import errno
import os
import select
import socket
import time
from collections.abc import Callable, Iterable

import msgspec

from torpor.image.manifest import Manifest
from torpor.model.errors import Refusal, Refused
from torpor.named_tuple import NamedTuple
from torpor.policy.decide import Decision, Service
from torpor.policy.read import target
from torpor.posix.inet_record import CONNECTED, TcpSocket
from torpor.posix.socket_address import AF_INET, AF_INET6, Address, packed

TRY = 10.0
"""Seconds for one attempt."""
PAUSE = 0.5
"""Seconds between two."""


class Wanted(NamedTuple):
    """A connection that is to be there again."""

    record: TcpSocket
    remote: Address
    service: Service
    decision: Decision


def reconnect(
    manifest: Manifest, decisions: Iterable[tuple[Service, Decision | None]], say: Callable[[str], None]
) -> dict[int, int]:
    """Connect where a policy wants it: our descriptors by the inode numbers that the connections had. say: told what is
    reset instead. Raises Refused, as configured; then nothing is left open."""
    made: dict[int, int] = {}
    try:
        for each in wanted(manifest, decisions, say):
            fd = _connect(each, say)
            if fd >= 0:
                made[each.record.ino] = fd
    except BaseException:
        for fd in made.values():
            socket.close(fd)
        raise
    return made


def wanted(
    manifest: Manifest, decisions: Iterable[tuple[Service, Decision | None]], say: Callable[[str], None]
) -> list[Wanted]:
    """Which connections can be made anew. Pure but for what it says of others."""
    by_ino = {
        ino: (service, decision)
        for service, decision in decisions
        if decision is not None and decision.action == "reconnect"
        for ino in service.open
    }
    found = []
    for record in manifest.objects if by_ino else ():
        if record.service != "tcp":
            continue
        tcp = msgspec.msgpack.decode(record.state, type=TcpSocket)
        if tcp.ino not in by_ino or tcp.remote is None:
            continue
        service, decision = by_ino[tcp.ino]
        if tcp.state != CONNECTED or tcp.shut or tcp.queue is not None:
            why = (
                "there is data in it that was not read" if tcp.queue is not None else "it was half closed, or not made"
            )
            say(f"the connection to {service} is reset, not made anew: {why}")
            continue
        found.append(Wanted(tcp, _remote(tcp.remote, decision.to), service, decision))
    return found


def _remote(old: Address, to: str) -> Address:
    if not to:
        return old
    host, port = target(to)
    ip = socket.inet_pton(AF_INET6 if ":" in host else AF_INET, host)
    return packed(ip, port or old.port, old.scope)


def _connect(each: Wanted, say: Callable[[str], None]) -> int:
    """A connected socket, -1 where it is to be reset. Raises Refused."""
    end = time.monotonic() + each.decision.wait
    waits = False
    while True:
        why = ""
        try:
            return _attempt(each.record.family, each.remote)
        except OSError as error:
            why = error.strerror or str(error)
        if time.monotonic() >= end:
            break
        if not waits:
            say(f"waiting for {each.service} to be reached at {each.remote}: {why}")
            waits = True
        time.sleep(PAUSE)
    if each.decision.otherwise == "refuse":
        thing = f"{each.service} cannot be reached at {each.remote}: {why}"
        raise Refused(
            [Refusal(0, "", thing, "the policy wants it to be there; try again when it is")], "cannot restart"
        )
    say(f"the connection to {each.service} is reset: it cannot be reached at {each.remote} ({why})")
    return -1


def _attempt(family: int, remote: Address) -> int:
    """Raises OSError."""
    if family == AF_INET and len(remote.ip) != 4:
        raise OSError(errno.EAFNOSUPPORT, "the program's socket is for IPv4")
    one = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    try:
        try:
            one.connect(remote.of_family(family))
        except BlockingIOError:
            poll = select.poll()
            poll.register(one.fileno(), select.POLLOUT)
            if not poll.poll(TRY * 1000):
                raise TimeoutError(errno.ETIMEDOUT, "no answer") from None
        if number := one.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            raise OSError(number, os.strerror(number))
        return one.detach()
    finally:
        one.close()
