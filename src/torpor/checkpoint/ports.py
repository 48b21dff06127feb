"""Ports that a part of a job cannot have any more, since another part of it has them on the same host, and free ones in
their place. They are held until the job's own sockets have them."""

from __future__ import annotations

import _socket
from collections.abc import Collection, Sequence

from torpor.model.errors import RestartFailed
from torpor.posix.socket_address import AF_INET, AF_INET6, DATAGRAM, STREAM
from torpor.posix.socket_options import IPV6, IPV6_V6ONLY, SO_REUSEADDR, SOL_SOCKET

_TRIES = 1000


class Held:
    """Free ports, one for each of `crowded`: `now`. taken: ports that will be in use soon. `close` when the job has
    them, or is not to have them. Raises RestartFailed."""

    def __init__(self, crowded: Sequence[int], taken: Collection[int]) -> None:
        self._sockets: list[_socket.socket] = []
        self.now: dict[int, int] = {}
        try:
            for port in crowded:
                self.now[port] = self._one({*taken, *self.now.values()})
        except OSError as error:
            self.close()
            raise RestartFailed(f"no free port can be had in place of {port}: {error.strerror}") from None

    def close(self) -> None:
        while self._sockets:
            self._sockets.pop().close()

    def _one(self, taken: Collection[int]) -> int:
        for _ in range(_TRIES):
            one = _bound(STREAM, 0)
            port = int(one.getsockname()[1])
            if port not in taken and _free_for_datagrams(port):
                # It does not listen: the job's socket may have the same address (SO_REUSEADDR).
                self._sockets.append(one)
                return port
            one.close()
        raise OSError(98, "all that were looked at are in use")


def _bound(kind: int, port: int) -> _socket.socket:
    """At all addresses of this host, IPv6 too if there is any. Raises OSError."""
    try:
        one = _socket.socket(AF_INET6, kind | _socket.SOCK_CLOEXEC)
    except OSError:
        one = _socket.socket(AF_INET, kind | _socket.SOCK_CLOEXEC)
    try:
        if kind == STREAM:
            one.setsockopt(SOL_SOCKET, SO_REUSEADDR, 1)
        if one.family == AF_INET6:
            one.setsockopt(IPV6, IPV6_V6ONLY, 0)
            one.bind(("::", port))
        else:
            one.bind(("0.0.0.0", port))
    except OSError:
        one.close()
        raise
    return one


def _free_for_datagrams(port: int) -> bool:
    try:
        _bound(DATAGRAM, port).close()
    except OSError:
        return False
    return True
