"""Socket options: all that getsockopt(2) can read and setsockopt(2) can set again.

Saved is every option that can be read; at the restart those are set whose value differs on the new socket, so that an
option this kernel does not know does no harm where it was never touched. Buffer sizes are set only where the
program had set them (SO_BUF_LOCK tells): others are the kernel's own affair. Sources: socket(7), ip(7), ipv6(7),
tcp(7), udp(7), unix(7), netlink(7) and the uapi headers of the same names.

Not readable, and so neither saved nor noticed: multicast memberships, TCP MD5 and AO keys, extension headers of IPv6.
"""

from __future__ import annotations

import _socket
import ctypes
import errno
import struct
from collections.abc import Iterable

import msgspec

from torpor.linux.libc import libc
from torpor.posix.service import Restart

SOL_SOCKET, IP, TCP, UDP, IPV6, NETLINK = 1, 0, 6, 17, 41, 270

SO_REUSEADDR, SO_TYPE, SO_ERROR, SO_SNDBUF, SO_RCVBUF = 2, 3, 4, 7, 8
SO_LINGER, SO_REUSEPORT, SO_PASSCRED, SO_PEERCRED, SO_RCVLOWAT = 13, 15, 16, 17, 18
SO_ATTACH_FILTER, SO_BINDTODEVICE, SO_ACCEPTCONN, SO_SNDBUFFORCE, SO_RCVBUFFORCE = 26, 25, 30, 32, 33
SO_PROTOCOL, SO_DOMAIN, SO_PEEK_OFF, SO_PEERGROUPS, SO_BUF_LOCK, SO_PEERPIDFD = 38, 39, 42, 59, 72, 77
TCP_MAXSEG, TCP_WINDOW_CLAMP, TCP_INFO, TCP_ULP, TCP_CONGESTION = 2, 10, 11, 31, 13
IP_BIND_ADDRESS_NO_PORT, IP_LOCAL_PORT_RANGE, IPV6_V6ONLY = 24, 51, 26

_RCVBUF_LOCK, _SNDBUF_LOCK = 2, 1  # bits of SO_BUF_LOCK: SOCK_SNDBUF_LOCK 1, SOCK_RCVBUF_LOCK 2

# SO_DEBUG 1, DONTROUTE 5, BROADCAST 6, KEEPALIVE 9, OOBINLINE 10, NO_CHECK 11, PRIORITY 12, LINGER 13, REUSEPORT 15,
# RCVLOWAT 18, RCVTIMEO 20, SNDTIMEO 21, BINDTODEVICE 25, TIMESTAMP 29, PASSSEC 34, TIMESTAMPNS 35, MARK 36,
# TIMESTAMPING 37, RXQ_OVFL 40, WIFI_STATUS 41, PEEK_OFF 42, NOFCS 43, SELECT_ERR_QUEUE 45, BUSY_POLL 46,
# MAX_PACING_RATE 47, INCOMING_CPU 49, ZEROCOPY 60, TXTIME 61, TIMESTAMP_NEW.. 63-65, PREFER_BUSY_POLL 69,
# BUSY_POLL_BUDGET 70, RESERVE_MEM 73, TXREHASH 74, RCVMARK 75, PASSPIDFD 76, RCVPRIORITY 82, PASSRIGHTS 83.
_SOCKET_ANY = (1, 2, 5, 6, 9, 10, 12, 13, 15, 16, 18, 20, 21, 25, 29, 34, 35, 36, 37, 40, 42, 43, 45, 46, 47, 60, 61,
               69, 70, 74, 75, 76, 82, 83)  # fmt: skip
# IP_TOS 1, TTL 2, OPTIONS 4, ROUTER_ALERT 5, RECVOPTS 6, RETOPTS 7, PKTINFO 8, MTU_DISCOVER 10, RECVERR 11,
# RECVTTL 12, RECVTOS 13, FREEBIND 15, PASSSEC 18, TRANSPARENT 19, RECVORIGDSTADDR 20, MINTTL 21, CHECKSUM 23,
# BIND_ADDRESS_NO_PORT 24, RECVFRAGSIZE 25, RECVERR_RFC4884 26, MULTICAST_IF 32, TTL 33, LOOP 34, ALL 49,
# UNICAST_IF 50, LOCAL_PORT_RANGE 51.
_IP = (1, 2, 4, 6, 7, 8, 10, 11, 12, 13, 15, 18, 19, 20, 21, 23, 24, 25, 26, 33, 34, 49, 50, 51)
# IPV6_UNICAST_HOPS 16, MULTICAST_IF 17, HOPS 18, LOOP 19, MTU_DISCOVER 23, RECVERR 25, V6ONLY 26 (before bind),
# MULTICAST_ALL 29, RECVERR_RFC4884 31, RECVPKTINFO 49, RECVHOPLIMIT 51, RECVRTHDR 56, RECVHOPOPTS 53,
# RECVDSTOPTS 58, RECVPATHMTU 60, DONTFRAG 62, RECVTCLASS 66, TCLASS 67, AUTOFLOWLABEL 70, ADDR_PREFERENCES 72,
# MINHOPCOUNT 73, RECVORIGDSTADDR 74, TRANSPARENT 75, UNICAST_IF 76, RECVFRAGSIZE 77, FREEBIND 78.
_IPV6 = (16, 17, 18, 19, 23, 25, 29, 31, 49, 51, 53, 56, 58, 60, 62, 66, 67, 70, 72, 73, 74, 75, 76, 77, 78)
# TCP_NODELAY 1, CORK 3, KEEPIDLE 4, KEEPINTVL 5, KEEPCNT 6, SYNCNT 7, LINGER2 8, DEFER_ACCEPT 9, CONGESTION 13,
# THIN_LINEAR_TIMEOUTS 16, USER_TIMEOUT 18, FASTOPEN 23, NOTSENT_LOWAT 25, SAVE_SYN 27, FASTOPEN_CONNECT 30,
# FASTOPEN_NO_COOKIE 34, INQ 36, TX_DELAY 37, RTO_MAX_MS 44, RTO_MIN_US 45, DELACK_MAX_US 46.
_TCP = (1, 3, 4, 5, 6, 7, 8, 9, 13, 16, 18, 23, 25, 27, 30, 34, 36, 37, 44, 45, 46)
# UDP_NO_CHECK6_TX 101, NO_CHECK6_RX 102, SEGMENT 103, GRO 104.
_UDP = (101, 102, 103, 104)
# NETLINK_PKTINFO 3, BROADCAST_ERROR 4, NO_ENOBUFS 5, LISTEN_ALL_NSID 8, CAP_ACK 10, EXT_ACK 11, GET_STRICT_CHK 12.
_MULTICAST, _MULTICAST6 = (33, 34, 49), (17, 18, 19, 29)
"""Of no use to TCP, which uses their room for something else."""
_NETLINK = (3, 4, 5, 8, 10, 11, 12)

_EARLY = frozenset(
    {(SOL_SOCKET, 15), (SOL_SOCKET, 25), (IP, 15), (IP, 19), (IP, 24), (IP, 51), (IPV6, 26), (IPV6, 75), (IPV6, 78)}
)
"""Set before the socket is bound."""


class Option(msgspec.Struct, frozen=True, array_like=True):
    """One option with its value as the kernel gives it."""

    level: int
    name: int
    value: bytes


class Options(msgspec.Struct, frozen=True):
    """All options of a socket. Sizes of buffers as SO_SNDBUF and SO_RCVBUF give them (0: not set by the program)."""

    values: tuple[Option, ...] = ()
    send_buffer: int = 0
    receive_buffer: int = 0


def get(fd: int, level: int, name: int, size: int = 256) -> bytes | None:
    """An option's value, None where this kind of socket or this kernel has none."""
    link = _socket.socket(fileno=fd)
    try:
        return link.getsockopt(level, name, size)
    except OSError:
        return None
    finally:
        link.detach()


def number(fd: int, level: int, name: int) -> int:
    """An integer option, 0 where there is none."""
    value = get(fd, level, name, 4)
    return struct.unpack("i", value)[0] if value and len(value) == 4 else 0


def put(fd: int, level: int, name: int, value: bytes | int) -> None:
    """Set an option. Raises OSError."""
    link = _socket.socket(fileno=fd)
    try:
        link.setsockopt(level, name, value)
    finally:
        link.detach()


def try_put(fd: int, level: int, name: int, value: bytes | int) -> bool:
    """Set an option if it can be set."""
    try:
        put(fd, level, name, value)
        return True
    except OSError:
        return False


def _names(family: int, protocol: int) -> Iterable[tuple[int, int]]:
    for name in _SOCKET_ANY:
        yield SOL_SOCKET, name
    if family in (_socket.AF_INET, _socket.AF_INET6):
        for name in _IP:
            if protocol != TCP or name not in _MULTICAST:
                yield IP, name
        if family == _socket.AF_INET6:
            yield IPV6, IPV6_V6ONLY
            for name in _IPV6:
                if protocol != TCP or name not in _MULTICAST6:
                    yield IPV6, name
        for name in _TCP if protocol == TCP else _UDP:
            yield protocol, name
    elif family == _socket.AF_NETLINK:
        for name in _NETLINK:
            yield NETLINK, name


def save(fd: int, family: int, protocol: int) -> Options:
    """All options of a socket of this family and protocol (the protocol as SO_PROTOCOL gives it)."""
    values = []
    for level, name in _names(family, protocol):
        value = get(fd, level, name)
        if value is not None:
            values.append(Option(level, name, value))
    lock = get(fd, SOL_SOCKET, SO_BUF_LOCK, 4)
    # Before Linux 5.14, all that the kernel does not tune itself counts as set.
    locked = struct.unpack("i", lock)[0] if lock else 0 if protocol == TCP else _SNDBUF_LOCK | _RCVBUF_LOCK
    return Options(
        tuple(values),
        number(fd, SOL_SOCKET, SO_SNDBUF) if locked & _SNDBUF_LOCK else 0,
        number(fd, SOL_SOCKET, SO_RCVBUF) if locked & _RCVBUF_LOCK else 0,
    )


def has_filter(fd: int) -> bool:
    """Is a packet filter attached (SO_ATTACH_FILTER, SO_ATTACH_BPF)?"""
    # Not through Python: the length counts instructions here, and with 0 the kernel only says how many there are.
    length = ctypes.c_uint32(0)
    if libc.getsockopt(fd, SOL_SOCKET, SO_ATTACH_FILTER, None, ctypes.byref(length)) < 0:
        return ctypes.get_errno() == errno.EACCES  # a BPF program
    return length.value > 0


def restore_early(fd: int, options: Options) -> None:
    """What has to be set before the socket is bound."""
    for one in options.values:
        if (one.level, one.name) in _EARLY and get(fd, one.level, one.name) != one.value:
            try_put(fd, one.level, one.name, one.value)


def restore(fd: int, options: Options, restart: Restart) -> None:
    """All options, once the socket is as it was in every other way. What is refused is told."""
    # SOL_SOCKET (1) after IP (0) and before TCP: IP_TOS sets SO_PRIORITY.
    for one in sorted(options.values, key=lambda option: option.level):
        if (one.level, one.name) in _EARLY:
            continue
        now = get(fd, one.level, one.name)
        if now != one.value and not try_put(fd, one.level, one.name, one.value):
            restart.say(f"a socket option cannot be set again (level {one.level}, option {one.name})")
    restore_buffers(fd, options, restart)


def restore_buffers(fd: int, options: Options, restart: Restart | None = None) -> None:
    """Buffer sizes as the program had set them; the kernel's own elsewhere."""
    wanted = (
        (SO_SNDBUF, SO_SNDBUFFORCE, options.send_buffer),
        (SO_RCVBUF, SO_RCVBUFFORCE, options.receive_buffer),
    )
    for name, force, size in wanted:
        if not size or number(fd, SOL_SOCKET, name) == size:
            continue
        try_put(fd, SOL_SOCKET, name, size // 2)  # the kernel doubles what it is given
        if number(fd, SOL_SOCKET, name) < size:
            try_put(fd, SOL_SOCKET, force, size // 2)
        if restart is not None and number(fd, SOL_SOCKET, name) < size:
            restart.say(f"a socket's buffer of {size} bytes is {number(fd, SOL_SOCKET, name)} now (net.core.rmem_max)")
    lock = (_SNDBUF_LOCK if options.send_buffer else 0) | (_RCVBUF_LOCK if options.receive_buffer else 0)
    try_put(fd, SOL_SOCKET, SO_BUF_LOCK, lock)


class Room:
    """More room in a socket's buffers for a moment; `back` makes it what it was."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        lock = get(fd, SOL_SOCKET, SO_BUF_LOCK, 4)
        self._lock = lock
        self._sizes = {name: number(fd, SOL_SOCKET, name) for name in (SO_SNDBUF, SO_RCVBUF)}

    def grow(self, name: int, size: int) -> int:
        """Make SO_SNDBUF or SO_RCVBUF hold `size` bytes if that can be; how many it holds now."""
        now = number(self._fd, SOL_SOCKET, name)
        if now < size:
            force = SO_SNDBUFFORCE if name == SO_SNDBUF else SO_RCVBUFFORCE
            if not try_put(self._fd, SOL_SOCKET, force, size // 2):
                limit = _limit(name)
                if 2 * limit > now:
                    try_put(self._fd, SOL_SOCKET, name, min(size // 2, limit))
        return number(self._fd, SOL_SOCKET, name)

    def back(self) -> None:
        for name, size in self._sizes.items():
            if number(self._fd, SOL_SOCKET, name) != size:
                force = SO_SNDBUFFORCE if name == SO_SNDBUF else SO_RCVBUFFORCE
                if not try_put(self._fd, SOL_SOCKET, force, size // 2):
                    try_put(self._fd, SOL_SOCKET, name, size // 2)
        if self._lock is not None:
            put(self._fd, SOL_SOCKET, SO_BUF_LOCK, self._lock)


def _limit(name: int) -> int:
    """The largest buffer that may be asked for without privilege (the kernel then doubles it)."""
    from torpor.linux import proc

    file = "wmem_max" if name == SO_SNDBUF else "rmem_max"
    try:
        return int(proc.text(f"/proc/sys/net/core/{file}"))
    except OSError:
        return 212992
