"""The TCP sockets of a job, by inode number and by what they are connected to; others of this machine where they do not
tell."""

from __future__ import annotations

import select
import struct

from torpor.linux import sock_diag
from torpor.linux.sock_diag import LISTEN
from torpor.named_tuple import NamedTuple
from torpor.posix import socket_kinds, socket_options
from torpor.posix.descriptors import PerJob
from torpor.posix.service import Descriptor, Job
from torpor.posix.socket_address import AF_INET, AF_INET6, Address, inet, own_name, packed, peer_name
from torpor.posix.socket_peek import readable

SENT_ALL = (sock_diag.FIN_WAIT1, sock_diag.FIN_WAIT2, sock_diag.CLOSING, sock_diag.LAST_ACK)
"""States of an end that sends no more."""


class TcpSeen(NamedTuple):
    """A TCP socket of the job, as its table of sockets has it."""

    number: int
    seen: Descriptor
    fd: int
    family: int
    state: int
    local: Address | None
    remote: Address | None
    age: int
    """Milliseconds since the other end was last heard of."""


class InetTable:
    """All TCP sockets of the job, by inode number and by what they are connected to."""

    def __init__(self, job: Job) -> None:
        self.by_ino: dict[int, TcpSeen] = {}
        self.by_ends: dict[tuple[Address, Address], int] = {}
        self.listeners: list[tuple[int, TcpSeen]] = []
        for ino, one in socket_kinds.objects(job, "TCP").items():
            fd = job.hold(one.pid, one.number)
            number = job.object_of(one.pid, one.number)
            assert number is not None
            family = socket_options.number(fd, socket_options.SOL_SOCKET, socket_options.SO_DOMAIN)
            info = socket_options.get(fd, socket_options.TCP, socket_options.TCP_INFO) or bytes(192)
            name, peer = own_name(fd), peer_name(fd)
            seen = TcpSeen(number, one, fd, family, info[0], inet(name), inet(peer) if peer else None, _age(info))
            self.by_ino[ino] = seen
            if seen.local is not None and seen.remote is not None:
                self.by_ends[seen.local, seen.remote] = ino
            if seen.state == LISTEN:
                self.listeners.append((ino, seen))
        self._world: list[sock_diag.InetSeen] | None = None

    def listener_at(self, address: Address) -> tuple[int, TcpSeen] | None:
        """The job's listener that answers at an address; one for all addresses comes last."""
        found = None
        for ino, seen in self.listeners:
            if seen.local is None or seen.local.port != address.port:
                continue
            if seen.local.ip == address.ip:
                return ino, seen
            if seen.local.any and (len(seen.local.ip) == 16 or len(address.ip) == 4):
                found = ino, seen
        return found

    def world(self) -> list[sock_diag.InetSeen]:
        """All TCP sockets of this machine; looked up once, where the job's own do not tell."""
        if self._world is None:
            self._world = []
            for family in (AF_INET, AF_INET6):
                self._world += sock_diag.inet_sockets(family, socket_options.TCP)
        return self._world

    def ends_at(self, local: Address, remote: Address) -> sock_diag.InetSeen | None:
        """The socket of this machine with these two addresses."""
        for seen in self.world():
            if packed(*seen.local).port == local.port and _is(seen.local, local) and _is(seen.remote, remote):
                return seen
        return None


def _is(one: tuple[bytes, int], other: Address) -> bool:
    address = packed(*one)
    return (address.ip, address.port) == (other.ip, other.port)


def _age(info: bytes) -> int:
    # struct tcp_info: 8 bytes, then 32-bit fields; tcpi_last_data_recv is at 52, tcpi_last_ack_recv at 56.
    return int(struct.unpack_from("=I", info, 56)[0])


def shut_of(one: TcpSeen) -> int:
    """Which directions a connected socket has shut. 1: it receives no more; 2: it sends no more."""
    sent_all = 2 if one.state in SENT_ALL else 0
    states = (sock_diag.ESTABLISHED, *SENT_ALL[:2])
    received = readable(one.fd) & select.POLLRDHUP and one.state in states
    return sent_all | (1 if received else 0)  # shut by itself: the other end has not finished


_tables: PerJob[InetTable] = PerJob(InetTable)


def of(job: Job) -> InetTable:
    """The table of a job."""
    return _tables.of(job)
