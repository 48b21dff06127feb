"""Connections whose other end is on another host of the job: what a host tells of its ends, what it is told of the
others. Pure values; who brings them to and fro is not known here.
"""

from __future__ import annotations

import hashlib

from torpor.named_tuple import NamedTuple
from torpor.posix.socket_address import Address

TCP, UDP = 6, 17
NAME = 16
"""Bytes of the name of a connection."""


class End(NamedTuple):
    """One end of a TCP connection, or a UDP socket that is connected.

    key: how the host calls it (an object or inode number).  sent: bytes since the connection was made, for TCP
    tcpi_bytes_acked and SIOCOUTQ together, in which SYN and FIN may count (struct tcp_info in linux/tcp.h; what has
    arrived is tcpi_bytes_received). 0 for UDP, where nothing has to arrive.  finished: it sends no more.  waiting: it
    waits to be accepted.  orphan: no process has it any more, the kernel still sends what is left.  accepted: a
    listener of the job is at its address.
    """

    key: int
    protocol: int
    local: Address
    remote: Address
    sent: int = 0
    finished: bool = False
    waiting: bool = False
    orphan: bool = False
    accepted: bool = False


class Told(NamedTuple):
    """What a host has to know of one of its ends: the other end is on `host`, which had sent `arrives` bytes in all
    and, if `finished`, then closed that direction. waiting, orphan, accepted: as in `End`, of the other end. door: the
    port at which that host can be spoken to about connections that wait there to be accepted, 0 if none does."""

    key: int
    host: str
    arrives: int
    finished: bool
    waiting: bool
    orphan: bool
    accepted: bool = False
    door: int = 0


def name(protocol: int, local: Address, remote: Address) -> tuple[bytes, int]:
    """The name of a connection, the same at both ends, and which of them this is (0 or 1)."""
    mine, other = _plain(local), _plain(remote)
    side = int(mine > other)
    text = bytes((protocol,)) + (other + mine if side else mine + other)
    return hashlib.blake2b(text, digest_size=NAME).digest(), side


def _plain(address: Address) -> bytes:
    # Scopes are numbers of interfaces, and mean nothing on another host.
    return bytes((len(address.ip),)) + address.ip + address.port.to_bytes(2, "big")
