"""Addresses that a restart would need on this host: are they to be had? Looked at from outside; nothing is taken.

Ports and names of sockets: an address that the job listens on, or that a datagram socket has, must be assigned to this
host and free. For connections within the job others would do; which of theirs are assigned here is told.

That something is in the way is told by sock_diag(7). Only where a TCP port is in use already is one tried: bound, not
listened on, for an instant, as the kernel's rules for sharing a port are its own. An address is tried with a port that
the kernel chooses.
"""

from __future__ import annotations

import _socket
import errno
import os
import stat
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from torpor.linux import capability, proc, sock_diag
from torpor.linux.sock_diag import LISTEN, InetSeen, UnixSeen
from torpor.model.errors import Refusal
from torpor.named_tuple import NamedTuple
from torpor.posix import inet_record, socket_options
from torpor.posix.socket_address import AF_INET, AF_INET6, DATAGRAM, STREAM, Address, packed
from torpor.posix.socket_options import SO_REUSEADDR, SO_REUSEPORT, SOL_SOCKET
from torpor.posix.unix_name import Name, answering
from torpor.posix.unix_record import CONNECTED

Mine = Callable[[int], bool]
"""Is a process (host pid) one of the job itself, which runs?"""

_SHARING = ((SOL_SOCKET, SO_REUSEADDR), (SOL_SOCKET, SO_REUSEPORT))


class Found(NamedTuple):
    """refusals: what would fail a restart. own: what the job itself uses now, since it runs. local: addresses of its
    sockets that this host has. needed: how many addresses were looked at."""

    refusals: tuple[Refusal, ...]
    own: tuple[str, ...]
    local: frozenset[bytes]
    needed: int


def look(records: Iterable[tuple[str, Any]], mine: Mine) -> Found:
    """Look at the addresses of all sockets, given as service and record (`rehearse.decoded`)."""
    search = _Search(mine)
    for service, state in records:
        if service in ("tcp", "udp"):
            search.inet(service, state)
        elif service == "unix" and state.name.raw:
            search.unix(state)
    return Found(tuple(search.refusals), tuple(search.own), frozenset(search.local), search.needed)


class _Search:
    def __init__(self, mine: Mine) -> None:
        self._mine = mine
        self._looked: set[tuple[str, object]] = set()
        self._holders: dict[int, int] | None = None
        self._world: list[UnixSeen] | None = None
        self.refusals: list[Refusal] = []
        self.own: list[str] = []
        self.local: set[bytes] = set()
        self.needed = 0

    def inet(self, service: str, state: Any) -> None:
        address: Address | None = state.local
        if address is None or not (address.port or not address.any):
            return
        there = address.any or _assigned(address)
        if there and not address.any:
            self.local.add(address.ip)
        bound = (inet_record.LISTENING, inet_record.BOUND)
        must = state.state in bound if service == "tcp" else state.remote is None
        if not must or (service, address) in self._looked:
            return
        self._looked.add((service, address))
        self.needed += 1
        what = f"the job's {service.upper()} address {address}"
        if not there:
            self._refuse(f"{what} is not one of this host", "give it to a device here")
        elif not _allowed(address.port):
            self._refuse(f"{what} needs the right to low ports", "run torpor as root")
        else:
            taken = _tcp_taken if service == "tcp" else _udp_taken
            self._in_use(what, taken(address, state))

    def unix(self, state: Any) -> None:
        name: Name = state.name
        if state.state == CONNECTED and state.type != DATAGRAM and state.accepted:
            return  # it is the listener's
        if (name.is_path and not name.mode) or ("unix", str(name)) in self._looked:
            return
        self._looked.add(("unix", str(name)))
        self.needed += 1
        if name.is_path and not self._place(name):
            return
        if self._world is None:
            self._world = [seen for found in sock_diag.unix_sockets().values() for seen in found]
        self._in_use(f"the socket's name {name}", answering(name, self._world))

    def _place(self, name: Name) -> bool:
        """Can a socket be bound to that path?"""
        path = str(name)
        folder = os.path.dirname(path) or "/"
        if not os.path.isdir(folder):
            self._refuse(f"{folder}, the folder of the job's socket {path}, is gone", "make it again")
        elif not os.access(folder, os.W_OK | os.X_OK, effective_ids=True):
            self._refuse(f"the job's socket {path} cannot be made: its folder is not to be written to", _RIGHTS)
        elif os.path.lexists(path) and not _is_socket(path):
            self._refuse(f"{path}, a socket's name, is something else now", "move it away")
        else:
            return True
        return False

    def _in_use(self, what: str, inodes: Iterable[int]) -> None:
        """Refuse what others use."""
        taken = False
        for ino in inodes:
            if self._holders is None:
                self._holders = dict(_sockets())
            pid = self._holders.get(ino, 0)
            if not (pid and self._mine(pid)):
                who = f"process {pid} ({proc.comm(pid)})" if pid else "another program"
                self._refuse(f"{what} is in use by {who}", "end it")
                return
            taken = True
        if taken:
            self.own.append(what.removeprefix("the job's ").removeprefix("the "))

    def _refuse(self, thing: str, way_out: str) -> None:
        self.refusals.append(Refusal(0, "", thing, way_out))


_RIGHTS = "give yourself the right to, or run torpor as its owner"


def _is_socket(path: str) -> bool:
    return stat.S_ISSOCK(os.lstat(path).st_mode)


def _family(address: Address) -> int:
    return AF_INET if len(address.ip) == 4 else AF_INET6


def _assigned(address: Address) -> bool:
    """Can a socket of this host have the address?"""
    family = _family(address)
    try:
        one = _socket.socket(family, DATAGRAM | _socket.SOCK_CLOEXEC, 0)
    except OSError:
        return False
    try:
        one.bind(Address(address.ip, 0, address.scope).of_family(family))
        return True
    except OSError as error:
        return error.errno not in (errno.EADDRNOTAVAIL, errno.ENODEV, errno.EINVAL)
    finally:
        one.close()


def _allowed(port: int) -> bool:
    first = proc.sysctl("net/ipv4/ip_unprivileged_port_start")
    return not 0 < port < int(first or 1024) or capability.have(capability.NET_BIND_SERVICE)


def _at_port(protocol: int, port: int, states: int = 0xFFF) -> Iterator[tuple[InetSeen, Address]]:
    for family in (AF_INET, AF_INET6):
        for seen in sock_diag.inet_sockets(family, protocol, states):
            if seen.local[1] == port:
                yield seen, packed(*seen.local)


def _tcp_taken(address: Address, state: Any) -> list[int]:
    """The listeners (inode numbers) that keep the address from being bound."""
    there = list(_at_port(socket_options.TCP, address.port, 1 << LISTEN))
    if not there:
        return []
    one = _socket.socket(state.family, STREAM | _socket.SOCK_CLOEXEC, 0)
    try:
        socket_options.restore_early(one.fileno(), state.options)
        one.setsockopt(SOL_SOCKET, SO_REUSEADDR, 1)
        one.bind(address.of_family(state.family))
        return []
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            raise
    finally:
        one.close()
    return [seen.ino for seen, local in there if local.ip == address.ip or local.any or address.any]


def _udp_taken(address: Address, state: Any) -> list[int]:
    """The sockets (inode numbers) that keep the address from being bound: those that do not share it. Never tried: a
    datagram might be lost to it."""
    if any((one.level, one.name) in _SHARING and any(one.value) for one in state.options.values):
        return []
    return [
        seen.ino
        for seen, local in _at_port(socket_options.UDP, address.port)
        if len(local.ip) == len(address.ip) and (local.ip == address.ip or local.any or address.any)
    ]


def _sockets() -> Iterator[tuple[int, int]]:
    """All sockets of processes that we may look at: inode number, pid."""
    for name in os.listdir("/proc"):
        if not name.isdigit():
            continue
        face = proc.face(int(name))
        try:
            for number in os.listdir(f"/proc/{face}/fd"):
                try:
                    target = os.readlink(f"/proc/{face}/fd/{number}")
                except OSError:
                    continue
                if target.startswith("socket:["):
                    yield int(target[8:-1]), int(name)
        except OSError:
            continue  # gone, or not ours to look at
