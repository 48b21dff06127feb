"""What a checkpoint knows of connections that wait to be accepted with data in them.

A listener's line is turned over (posix/turnover.py) only where waiting for the program did not help, and only when
nothing else stands in the way of the checkpoint. So the job is captured twice then: the first time the services
say at which listeners there is something unknown (`unread`), the second time it is known.
"""

from __future__ import annotations

import _socket
import os
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from torpor.model.address_map import AddressMap
from torpor.model.errors import NotNow
from torpor.posix.service import Descriptor, Job
from torpor.posix.socket_address import AF_INET, AF_INET6, Address
from torpor.posix.socket_queue import Peeked
from torpor.tracee.process import LivingProcess


class Line(Protocol):
    """How a listener's line is to be turned over."""

    @property
    def processes(self) -> set[int]:
        """All that take part (host pids)."""
        ...


class Turning(Protocol):
    """Steps of a descriptor service whose listeners can be turned over."""

    def plan_turns(self, seen: Descriptor, job: Job) -> Line:
        """How the line of the listener `seen` is turned over. Raises NotNow for what is in the way; changes nothing."""
        ...

    def turn(self, line: Any, processes: Mapping[int, LivingProcess], job: Job, backlogs: Backlogs) -> None:
        """Turn the line over, and tell what was in it. Raises CheckpointFailed."""
        ...


class Backlogs:
    """may: lines may be turned over at this attempt.  moved: which addresses lead elsewhere when the job connects."""

    def __init__(self, may: bool = False, moved: Callable[[], AddressMap] = lambda: AddressMap({})) -> None:
        self.may = may
        self._moved = moved
        self.known = False
        """All lines were turned over."""
        self.pending = False
        """Is anything left out of the records because it is not known yet?"""
        self.get_ready: Callable[[Any], Mapping[str, int]] = lambda line: {}
        """Called before each turn of a line: has the other hosts that have clients in it make them ready. Our
        connections to them, by host. Raises CheckpointFailed."""
        self.noted: dict[int, Descriptor] = {}
        """Listeners at which something is unknown, by inode number."""
        self._unix: dict[int, list[list[Peeked]]] = {}
        self._tcp: dict[tuple[Address, Address], list[Peeked]] = {}

    def leads_elsewhere(self, address: Address) -> bool:
        """Would the job come to somebody else if it connected to an address that it is connected to? So it may be where
        hosts have exchanged their places (--map-host)."""
        family = AF_INET if len(address.ip) == 4 else AF_INET6
        host = _socket.inet_ntop(family, address.ip)
        return (self._moved().find(host, address.port) or (host, address.port)) != (host, address.port)

    def unread(self, listener: Descriptor, why: NotNow) -> None:
        """A connection that waits at a listener has data in it that is not known. Raises `why` where that is the end
        of this attempt."""
        if not self.may or self.known:
            raise why
        self.noted[listener.ino] = listener

    def tell_unix(self, listener: int, found: list[Peeked]) -> None:
        """What the next connection in the line of a listener (its inode number) holds; takes its descriptors over."""
        self._unix.setdefault(listener, []).append(found)

    def unix(self, listener: int, place: int) -> list[Peeked] | None:
        """What the connection at a place in line holds, None if that is not known. Descriptors are the caller's."""
        line = self._unix.get(listener)
        if line is None or place >= len(line):
            return None
        return [message._replace(fds=[os.dup(fd) for fd in message.fds]) for message in line[place]]

    def tell_tcp(self, client: Address, listener: Address, found: list[Peeked]) -> None:
        """What the next connection in the line of a listener holds; both addresses as the client has them."""
        self._tcp[client, listener] = found

    def tcp(self, client: Address, listener: Address) -> list[Peeked] | None:
        return self._tcp.get((client, listener))

    def tcp_order(self) -> list[tuple[Address, Address]]:
        """Connections that were looked into, the oldest of each listener first."""
        return list(self._tcp)

    def close(self) -> None:
        for line in self._unix.values():
            for message in (one for found in line for one in found):
                for fd in message.fds:
                    os.close(fd)
        self._unix.clear()
