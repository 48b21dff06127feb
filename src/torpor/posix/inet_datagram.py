"""UDP over IPv4 and IPv6.

The kernel keeps for a socket: its address, a peer if it is connected, a queue of datagrams with their senders, options.
At the restart the datagrams are sent again before the socket gets its peer: from the job's socket that has the
sender's address, or from one that has it for a moment, also where that is another machine's (IP_TRANSPARENT, ip(7),
which needs CAP_NET_ADMIN or CAP_NET_RAW; what a machine sends to itself is not looked at as what comes from outside is:
net/ipv4/ip_input.c, ip_rcv_finish_core). Without that right such a datagram is lost (and told), as the network may
lose any; so is an error (ICMP) that the program had not been told yet.
"""

from __future__ import annotations

import _socket
import errno
import os
from typing import Any

import msgspec

from torpor.linux.libc import libc
from torpor.model.errors import RestartFailed
from torpor.named_tuple import NamedTuple
from torpor.posix import socket_kinds, socket_options, socket_queue
from torpor.posix.descriptors import PerJob, set_status, status_flags
from torpor.posix.inet_connect import connector
from torpor.posix.service import Descriptor, DescriptorBase, Job, Restart
from torpor.posix.socket_address import AF_INET, AF_INET6, DATAGRAM, Address, inet, link, own_name, packed, peer_name
from torpor.posix.socket_options import SO_REUSEADDR, SOL_SOCKET, UDP, Options
from torpor.posix.socket_peek import datagrams_of
from torpor.posix.socket_queue import Message, Queue
from torpor.posix.socket_send import send_message
from torpor.posix.socket_works import Step, options_later, works

_TRANSPARENT = {AF_INET: (socket_options.IP, 19), AF_INET6: (socket_options.IPV6, 75)}
"""IP_TRANSPARENT, IPV6_TRANSPARENT (linux/in.h, linux/in6.h)."""
_LOOPBACK = {4: b"\x7f\0\0\1", 16: bytes(15) + b"\1"}
_SHARING = ((SOL_SOCKET, SO_REUSEADDR), (SOL_SOCKET, socket_options.SO_REUSEPORT))


class UdpSocket(msgspec.Struct, frozen=True, kw_only=True):
    """A UDP socket. local: None if it is not bound."""

    family: int
    flags: int
    local: Address | None = None
    remote: Address | None = None
    shut: int = 0
    options: Options = Options()
    queue: Queue | None = None


def _by_address(job: Job) -> dict[Address, int]:
    """The job's UDP sockets: address to object number."""
    found: dict[Address, int] = {}
    for one in socket_kinds.objects(job, "UDP").values():
        number = job.object_of(one.pid, one.number)
        if number is not None:
            found.setdefault(inet(own_name(job.hold(one.pid, one.number))), number)
    return found


_tables: PerJob[dict[Address, int]] = PerJob(_by_address)


class UdpService(DescriptorBase):
    name = "udp"
    record = UdpSocket

    def claims(self, seen: Descriptor) -> bool:
        return socket_kinds.kind(seen) in ("UDP", "UDPv6")

    def capture(self, fd: int, seen: Descriptor, job: Job) -> UdpSocket:
        socket_kinds.refuse_unusual(fd, seen)
        family = socket_options.number(fd, SOL_SOCKET, socket_options.SO_DOMAIN)
        local, peer = inet(own_name(fd)), peer_name(fd)
        table = _tables.of(job)

        def origin(sender: Any) -> tuple[bytes, int, int]:
            if not sender:
                return b"", 0, -1
            address = inet(sender)
            for ip in (address.ip, bytes(4), bytes(16)):
                number = table.get(Address(ip, address.port, address.scope), table.get(Address(ip, address.port)))
                if number is not None:
                    return address.ip, address.port, number
            return address.ip, address.port, -1

        return UdpSocket(
            family=family,
            flags=status_flags(fd),
            local=local if local.port else None,
            remote=inet(peer) if peer else None,
            options=socket_options.save(fd, family, UDP),
            queue=socket_queue.keep(datagrams_of(fd, seen), job, origin),
        )

    def create(self, record: UdpSocket, restart: Restart) -> int:
        one = _socket.socket(record.family, DATAGRAM | _socket.SOCK_CLOEXEC, 0)
        fd = one.detach()
        try:
            socket_options.restore_early(fd, record.options)
            if record.local is not None:
                self._bind(fd, record, restart)
            kept = os.dup(fd)
            todo = works(restart)
            if record.queue is not None:
                queue = record.queue
                todo.add(Step.FILL, lambda: self._fill(kept, record, queue, restart))
            if record.remote is not None:
                todo.add(Step.CONNECT, lambda: self._connect(kept, record, restart))
            todo.add(Step.LEAVE, lambda: os.close(kept))
        except OSError as error:
            raise RestartFailed(f"a UDP socket at {record.local}: {error.strerror}") from None
        set_status(fd, record.flags)
        options_later(fd, record.options, restart)
        return fd

    def _bind(self, fd: int, record: UdpSocket, restart: Restart) -> None:
        assert record.local is not None
        try:
            connector(restart).bind(fd, record.family, record.local, listening=False)
        except RestartFailed as error:
            if record.remote is None:
                raise
            restart.say(f"a UDP socket connected to {record.remote} has another address now: {error}")

    def _connect(self, fd: int, record: UdpSocket, restart: Restart) -> None:
        one = link(fd)
        assert record.remote is not None
        try:
            one.connect(record.remote.of_family(record.family))
        except OSError as error:
            restart.say(f"a UDP socket cannot be connected to {record.remote} again: {error.strerror}")
        finally:
            one.detach()

    def _fill(self, fd: int, record: UdpSocket, queue: Queue, restart: Restart) -> None:
        """Send all datagrams again. Those sent from an address that we cannot have are left out."""
        room = socket_options.Room(fd)
        total = sum(message.size + 1024 for message in queue.messages)
        room.grow(socket_options.SO_RCVBUF, 4 * total + (1 << 16))
        borrowed: dict[tuple[bytes, int], _Borrowed] = {}
        lost = 0
        # Others may have the same address: only of one that is connected to the sender we know that it gets it.
        shared = any((one.level, one.name) in _SHARING and any(one.value) for one in record.options.values)
        try:
            for message, data in socket_queue.contents(queue, restart):
                source, far = self._source(message, borrowed, restart)
                to = self._destination(record, message, far)
                try:
                    if source < 0 or to is None:
                        raise OSError(errno.EADDRNOTAVAIL, "")
                    if shared:
                        _choose(fd, Address(message.sender, message.port).of_family(record.family))
                    family = socket_options.number(source, SOL_SOCKET, socket_options.SO_DOMAIN)
                    send_message(source, message, data, to.of_family(family), restart)
                except OSError:
                    lost += 1
        finally:
            room.back()
            if shared:
                _choose(fd, None)
            for one, _ in borrowed.values():
                if one >= 0:
                    os.close(one)
        if lost:
            restart.say(
                f"{lost} datagrams to {record.local} were lost: their senders' addresses are not to be had here"
            )

    def _source(self, message: Message, borrowed: dict[tuple[bytes, int], _Borrowed], restart: Restart) -> _Borrowed:
        if message.origin >= 0:
            return _Borrowed(restart.object(message.origin))
        key = (message.sender, message.port)
        if key not in borrowed:
            borrowed[key] = _borrow(Address(message.sender, message.port))
        return borrowed[key]

    def _destination(self, record: UdpSocket, message: Message, far: bool) -> Address | None:
        """Where it was sent to: told with it, or our address; a socket for all addresses was most likely spoken to
        at the sender's own. far: that is another machine's, and ours may be others now."""
        local = record.local
        if local is None:
            return None
        if far:
            return Address(_LOOPBACK[len(message.sender)], local.port) if local.any else local
        if message.destination:
            return Address(packed(message.destination, 0).ip, local.port)
        return Address(message.sender, local.port, local.scope) if local.any else local


class _Borrowed(NamedTuple):
    """A socket that has a sender's address, -1 where that is not to be had. far: it is no address of this machine."""

    fd: int
    far: bool = False


def _borrow(address: Address) -> _Borrowed:
    family = AF_INET if len(address.ip) == 4 else AF_INET6
    one = _socket.socket(family, DATAGRAM | _socket.SOCK_CLOEXEC, 0)
    one.setsockopt(SOL_SOCKET, SO_REUSEADDR, 1)
    for far in (False, True):
        try:
            if far:
                one.setsockopt(*_TRANSPARENT[family], 1)
            one.bind(address.of_family(family))
            return _Borrowed(one.detach(), far)
        except OSError as error:
            if error.errno != errno.EADDRNOTAVAIL:
                break
    one.close()
    return _Borrowed(-1)


def _choose(fd: int, sender: tuple[Any, ...] | None) -> None:
    """Connect to a sender, or to nobody (AF_UNSPEC, which Python's sockets do not know)."""
    if sender is None:
        libc.connect(fd, bytes(16), 16)
        return
    one = link(fd)
    try:
        one.connect(sender)
    finally:
        one.detach()


SERVICE = UdpService()
