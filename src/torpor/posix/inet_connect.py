"""Connections within this machine between addresses that are given, without privilege.

The end that is to have been accepted comes from a listener that stands on its address for a moment and takes
only the peer it waits for. The port of the other end is left to connect(2) to choose, out of a range of one
(IP_LOCAL_PORT_RANGE, Linux 6.3), as it was chosen when the program connected: where a connection that has just ended
still has it (TIME_WAIT) that succeeds about a second after the end, and never where the port was taken by bind(2).
That is the way for ports outside of net.ipv4.ip_local_port_range (net/ipv4/inet_hashtables.c, `__inet_hash_connect`).
Addresses that cannot be had are replaced, and that is told.

A socket that is connected by `connect` without waiting keeps the state "connecting" for the system call connect: a
program that calls it once more gets 0 instead of EISCONN, and one that was interrupted in it gets what it waits for.
"""

from __future__ import annotations

import _socket
import errno
import select
import struct
import time

from torpor.linux import sock_diag
from torpor.model.errors import RestartFailed
from torpor.posix import socket_options
from torpor.posix.inet_window import PATIENCE
from torpor.posix.service import Restart
from torpor.posix.socket_address import AF_INET, AF_INET6, STREAM, Address, inet
from torpor.posix.socket_options import (
    IP,
    IP_BIND_ADDRESS_NO_PORT,
    IP_LOCAL_PORT_RANGE,
    IPV6,
    IPV6_V6ONLY,
    SO_REUSEADDR,
    SOL_SOCKET,
    Options,
)

_NONBLOCK = STREAM | _socket.SOCK_NONBLOCK | _socket.SOCK_CLOEXEC
_LOOPBACK = {AF_INET: Address(b"\x7f\0\0\1", 0), AF_INET6: Address(bytes(15) + b"\1", 0)}
_TIME_WAIT = 65.0
_TAKEN = (errno.EADDRINUSE, errno.EADDRNOTAVAIL)


def connector(restart: Restart) -> Connector:
    """The connector of this restart."""
    found: Connector = restart.shared(("inet connections", 0), lambda: Connector(restart), lambda made: None)
    return found


class Connector:
    """Makes connections. All waiting for addresses to become free takes PATIENCE seconds at most."""

    def __init__(self, restart: Restart) -> None:
        self._restart = restart
        self._end = self._patient = 0.0

    def _may_wait(self) -> bool:
        """Wait a little for an address to become free; False when that took long enough."""
        now = time.monotonic()
        if not self._end:
            self._end = now + PATIENCE
        if now > self._end:
            return False
        time.sleep(0.02)
        return True

    def _wait_for_the_dead(self, address: Address) -> bool:
        """Wait if only connections that have ended keep a port (TIME_WAIT, for 60 s at most); False if others do too.

        They keep it from everybody where the program had not set SO_REUSEADDR.
        """
        holders = []
        for family in (AF_INET, AF_INET6):
            for seen in sock_diag.inet_sockets(family, socket_options.TCP, 0xFFF):
                if seen.local[1] == address.port:
                    holders.append(seen.ino or seen.state == sock_diag.LISTEN)
        now = time.monotonic()
        if any(holders) or not holders or (self._patient and now > self._patient):
            return False
        if not self._patient:
            self._patient = now + _TIME_WAIT
            self._restart.say(f"waited for {address}, which a connection that had just ended still kept (TIME_WAIT)")
        time.sleep(0.2)
        return True

    def bind(self, fd: int, family: int, address: Address, listening: bool) -> None:
        """Bind a socket of the job to its address. Raises RestartFailed where somebody else has it."""
        one = _socket.socket(fileno=fd)
        try:
            one.setsockopt(SOL_SOCKET, SO_REUSEADDR, 1)
            while True:
                try:
                    one.bind(address.of_family(family))
                    return
                except OSError as error:
                    if error.errno == errno.EADDRINUSE and (self._may_wait() or self._wait_for_the_dead(address)):
                        continue
                    what = "is in use by another program" if error.errno == errno.EADDRINUSE else error.strerror
                    raise RestartFailed(f"the job's address {address} {what}") from None
        finally:
            one.detach()

    def pair(
        self, client_family: int, client: Address | None, server_family: int, server: Address | None
    ) -> tuple[int, int]:
        """A connection between two addresses: the end that connects, the end that is accepted.

        Families that differ are an IPv4 socket connected to an IPv6 one. Other addresses where these cannot be had.
        """
        while client is not None:
            try:
                if client == server:
                    return self._itself(client_family, client)
                if server is None:
                    place = Address(client.ip, 0, client.scope)
                    return self._pair(client_family, client, server_family, place)
                return self._pair(client_family, client, server_family, server)
            except OSError as error:
                if error.errno == errno.EADDRINUSE and self._may_wait():
                    continue
                if error.errno not in _TAKEN:
                    raise
                self._restart.say(f"the connection {client} - {server} has other addresses now: {error.strerror}")
                break
        return self._pair(client_family, None, server_family, _place(client_family, server_family))

    def _pair(self, client_family: int, client: Address | None, server_family: int, server: Address) -> tuple[int, int]:
        listener = _socket.socket(server_family, _NONBLOCK)
        active = None
        try:
            listener.setsockopt(SOL_SOCKET, SO_REUSEADDR, 1)
            if server_family == AF_INET6:
                listener.setsockopt(IPV6, IPV6_V6ONLY, 0)
            listener.bind(server.of_family(server_family))
            listener.listen(4)
            there = inet(listener.getsockname())
            active = begun(client_family, client, there)
            here = inet(active.getsockname())
            accepted = _accept(listener, here)
            fds = active.detach(), accepted
            active = None
            return fds
        finally:
            listener.close()
            if active is not None:
                active.close()

    def _itself(self, family: int, address: Address) -> tuple[int, int]:
        """A socket that is connected to itself."""
        one = _socket.socket(family, _NONBLOCK)
        try:
            one.setsockopt(SOL_SOCKET, SO_REUSEADDR, 1)
            one.bind(address.of_family(family))
            try:
                one.connect(address.of_family(family))
            except BlockingIOError:
                pass
            return _socket.dup(one.fileno()), one.detach()
        except OSError:
            one.close()
            raise

    def start(self, family: int, local: Address | None, remote: Address, options: Options) -> int:
        """A socket that connects to a listener of the job; it may wait there to be accepted, or for room."""
        while True:
            try:
                return begun(family, local, remote).detach()
            except OSError as error:
                if error.errno == errno.EADDRINUSE and self._may_wait():
                    continue
                if error.errno not in _TAKEN or local is None:
                    raise
                self._restart.say(f"the connection {local} - {remote} comes from another address now: {error.strerror}")
                local = None

    def and_close(self, family: int, listener: Address) -> None:
        """Connect to a listener and close at once: it waits to be accepted, and is over."""
        address = Address(_LOOPBACK[AF_INET if len(listener.ip) == 4 else family].ip, listener.port)
        if not listener.any:
            address = listener
        one = begun(AF_INET if len(address.ip) == 4 else AF_INET6, None, address)
        one.close()


def begun(family: int, local: Address | None, remote: Address) -> _socket.socket:
    """A socket that is being connected from one address to another, without waiting. Raises OSError (EADDRINUSE)."""
    if local is not None:
        try:
            return _connect(family, local, remote, by_range=True)
        except OSError as error:
            if error.errno not in (*_TAKEN, errno.ENOPROTOOPT):
                raise
    return _connect(family, local, remote, by_range=False)


def _connect(family: int, local: Address | None, remote: Address, by_range: bool) -> _socket.socket:
    """One attempt. by_range: connect(2) chooses the port, out of a range of one. Raises OSError."""
    one = _socket.socket(family, _NONBLOCK)
    try:
        one.setsockopt(SOL_SOCKET, SO_REUSEADDR, 1)
        if local is not None and by_range:
            one.setsockopt(IP, IP_BIND_ADDRESS_NO_PORT, 1)
            one.setsockopt(IP, IP_LOCAL_PORT_RANGE, struct.pack("=I", local.port << 16 | local.port))
            one.bind(Address(local.ip, 0, local.scope).of_family(family))
        elif local is not None:
            one.bind(local.of_family(family))
        try:
            one.connect(remote.of_family(family))
        except BlockingIOError:
            pass
        except OSError as error:
            if error.errno != errno.EADDRNOTAVAIL:
                raise
            raise OSError(errno.EADDRINUSE, "the connection has just ended") from None
        if local is not None and by_range:
            if inet(one.getsockname()).port != local.port:
                raise OSError(errno.EADDRINUSE, "the port is outside of net.ipv4.ip_local_port_range")
            one.setsockopt(IP, IP_LOCAL_PORT_RANGE, 0)
            one.setsockopt(IP, IP_BIND_ADDRESS_NO_PORT, 0)
        return one
    except OSError:
        one.close()
        raise


def failed_connect(family: int, local: Address | None) -> int:
    """A socket whose connection was refused, and that has not told it yet."""
    nobody = _socket.socket(family, _NONBLOCK)
    one = _socket.socket(family, _NONBLOCK)
    try:
        nobody.bind(_LOOPBACK[family].of_family(family))
        one.setsockopt(SOL_SOCKET, SO_REUSEADDR, 1)
        if local is not None and local.port:
            try:
                one.bind(Address(_LOOPBACK[family].ip if local.any else local.ip, local.port).of_family(family))
            except OSError:
                pass  # somebody has it; an address that was never connected to anything
        try:
            one.connect(nobody.getsockname())
        except OSError:
            pass
        return one.detach()
    finally:
        nobody.close()


def _accept(listener: _socket.socket, wanted: Address) -> int:
    """The connection from `wanted`. Raises OSError (ETIMEDOUT)."""
    poll = select.poll()
    poll.register(listener.fileno(), select.POLLIN)
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        poll.poll(100)
        try:
            fd, address = listener._accept()  # type: ignore[attr-defined]
        except BlockingIOError:
            continue
        if inet(address).port == wanted.port:
            return int(fd)
        _socket.close(fd)  # somebody who found the port open
    raise OSError(errno.ETIMEDOUT, "a connection within this machine does not come about")


def _place(client_family: int, server_family: int) -> Address:
    """Any address both families can speak to."""
    return _LOOPBACK[AF_INET6 if client_family == server_family == AF_INET6 else AF_INET]
