"""What the kernel says of sockets that cannot be asked themselves: sock_diag(7), unprivileged, and ioctls on queues.

Read in the network namespace of the caller. A socket that belongs to no file (it waits to be accepted, or its file
was closed) shows with inode 0. Source: sock_diag(7), include/uapi/linux/unix_diag.h, inet_diag.h, linux/sockios.h.
"""

from __future__ import annotations

import _socket
import fcntl
import struct
from collections.abc import Iterator

from torpor.linux import netlink
from torpor.named_tuple import NamedTuple

ESTABLISHED, SYN_SENT, SYN_RECV, FIN_WAIT1, FIN_WAIT2, TIME_WAIT, CLOSE, CLOSE_WAIT, LAST_ACK, LISTEN, CLOSING = range(
    1, 12
)
NEW_SYN_RECV = 12

_NETLINK_SOCK_DIAG = 4
_SOCK_DIAG_BY_FAMILY = 20
_UNIX_SHOW = 1 | 2 | 4 | 8 | 16  # NAME, VFS, PEER, ICONS, RQLEN
_NAME, _VFS, _PEER, _ICONS, _RQLEN, _SHUTDOWN = 0, 1, 2, 3, 4, 6

_SIOCINQ, _SIOCOUTQ = 0x541B, 0x5411


class UnixSeen(NamedTuple):
    """A UNIX socket.

    name: as bound, an abstract one with its leading zero; b'' if it has none. file: (dev, ino) of the file of a bound
    path. peer: inode number of the socket it is connected to, 0 for one without a file. waiting: for a listener, the
    inode numbers of those who have connected and wait, in order (0: closed meanwhile). queued: bytes to be read; for
    a listener, connections that wait. limit: for a listener, how many may; else the memory held by what was sent and
    not read. shut: 1 receiving, 2 sending is over. (The accepted end of a connection that waits is not shown at all.)
    """

    ino: int
    type: int
    state: int
    name: bytes
    file: tuple[int, int] | None
    connected: bool
    peer: int
    waiting: tuple[int, ...]
    queued: int
    limit: int
    shut: int


class InetSeen(NamedTuple):
    """A TCP or UDP socket. Addresses as (packed address, port); received and unsent in bytes (for a listener:
    connections that wait, and how many may)."""

    family: int
    state: int
    local: tuple[bytes, int]
    remote: tuple[bytes, int]
    ino: int
    received: int
    unsent: int


def unix_sockets() -> dict[int, list[UnixSeen]]:
    """All UNIX sockets by inode number. Raises OSError where the kernel has no unix_diag."""
    found: dict[int, list[UnixSeen]] = {}
    request = struct.pack("=BBHIIIII", _socket.AF_UNIX, 0, 0, 0xFFFFFFFF, 0, _UNIX_SHOW, 0xFFFFFFFF, 0xFFFFFFFF)
    for body in netlink.dump(_NETLINK_SOCK_DIAG, _SOCK_DIAG_BY_FAMILY, request):
        _, kind, state, _, ino = struct.unpack_from("=BBBBI", body)
        named = dict(netlink.attributes(body, 16))
        file = None
        if _VFS in named:
            inode, dev = struct.unpack("=II", named[_VFS])
            file = (dev, inode)
        queued, limit = struct.unpack("=II", named[_RQLEN]) if _RQLEN in named else (0, 0)
        waiting = named.get(_ICONS, b"")
        seen = UnixSeen(
            ino, kind, state, _name(named.get(_NAME, b"")), file, _PEER in named,
            struct.unpack("=I", named[_PEER])[0] if _PEER in named else 0,
            struct.unpack(f"={len(waiting) // 4}I", waiting), queued, limit,
            named[_SHUTDOWN][0] if _SHUTDOWN in named else 0,
        )  # fmt: skip
        found.setdefault(ino, []).append(seen)
    return found


def _name(name: bytes) -> bytes:
    """Without the zero that the kernel keeps behind a path (unix_mkname_bsd), and getsockname(2) does not tell."""
    return name if name[:1] == b"\0" else name.removesuffix(b"\0")


def inet_sockets(family: int, protocol: int, states: int = 0xFFF & ~(1 << TIME_WAIT)) -> Iterator[InetSeen]:
    """All sockets of a family (AF_INET, AF_INET6) and protocol (6 TCP, 17 UDP), those in the states given.

    Raises OSError where the kernel has no inet_diag.
    """
    request = struct.pack("=BBBBI", family, protocol, 0, 0, states) + bytes(40) + b"\xff" * 8
    size = 4 if family == _socket.AF_INET else 16
    for body in netlink.dump(_NETLINK_SOCK_DIAG, _SOCK_DIAG_BY_FAMILY, request):
        state = body[1]
        sport, dport = struct.unpack_from(">HH", body, 4)
        _, received, unsent, _, ino = struct.unpack_from("=IIIII", body, 52)
        local, remote = body[8 : 8 + size], body[24 : 24 + size]
        yield InetSeen(family, state, (local, sport), (remote, dport), ino, received, unsent)


def to_read(fd: int) -> int:
    """Bytes that can be read (SIOCINQ): of a datagram socket, those of the first datagram; up to urgent data."""
    return _number(fd, _SIOCINQ)


def to_send(fd: int) -> int:
    """What was sent and has not arrived (SIOCOUTQ): TCP: bytes that are not acknowledged; UNIX: memory held by what
    the other end has not read."""
    return _number(fd, _SIOCOUTQ)


def _number(fd: int, request: int) -> int:
    return int(struct.unpack("i", fcntl.ioctl(fd, request, bytes(4)))[0])


def probe() -> tuple[bool, str]:
    """Can the peers of UNIX sockets be told here?"""
    import os

    a, b = _socket.socketpair()
    try:
        ours = unix_sockets().get(os.fstat(a.fileno()).st_ino, [])
        return bool(ours) and ours[0].peer == os.fstat(b.fileno()).st_ino, "unix_diag"
    except OSError as error:
        return False, f"unix_diag: {error.strerror}"
    finally:
        a.close()
        b.close()
