"""Connections whose other end is on another host of the job: what a host tells of its ends, what it is told of the
others. Pure values; who brings them to and fro is not known here.
"""

from __future__ import annotations

from typing import NamedTuple

from torpor.posix.socket_address import Address

TCP, UDP = 6, 17


class End(NamedTuple):
    """One end of a TCP connection, or a UDP socket that is connected.

    key: how the host calls it (an object or inode number).  sent: bytes since the connection was made, for TCP
    tcpi_bytes_acked and SIOCOUTQ together; the other end has to wait until its tcpi_bytes_received is as much (struct
    tcp_info in linux/tcp.h). 0 for UDP, where nothing has to arrive.  finished: it sends no more.  waiting: it waits to
    be accepted.  orphan: no process has it any more, the kernel still sends what is left.
    """

    key: int
    protocol: int
    local: Address
    remote: Address
    sent: int = 0
    finished: bool = False
    waiting: bool = False
    orphan: bool = False


class Told(NamedTuple):
    """What a host has to know of one of its ends: the other end is on `host`, which had sent `arrives` bytes in all
    and, if `finished`, then closed that direction. waiting, orphan: as in `End`, of the other end."""

    key: int
    host: str
    arrives: int
    finished: bool
    waiting: bool
    orphan: bool
