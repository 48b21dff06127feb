"""The loopback device of a network namespace of our own: rtnetlink(7).

A new network namespace has nothing but `lo`, without an address and down. Here it gets the addresses that the host has
on whatever devices, so that programs can bind to them and be connected among themselves, and a route for all others, so
that a datagram socket can be connected to them (nothing that is sent there arrives).

Source: rtnetlink(7), include/uapi/linux/rtnetlink.h, if_addr.h.
"""

from __future__ import annotations

import _socket
import os
import struct
from collections.abc import Iterable

from torpor.linux import proc

INDEX = 1
"""Of `lo`, in every network namespace."""
_NEWLINK, _NEWADDR, _NEWROUTE = 16, 20, 24
_REQUEST, _ACK, _CREATE, _ERROR = 1, 4, 0x400, 2
_IFF_UP = 1
_IFA_ADDRESS, _IFA_LOCAL, _IFA_F_NODAD = 1, 2, 2
_RTA_OIF = 4
_TABLE_MAIN, _PROTOCOL_STATIC, _UNICAST = 254, 4, 1
_LIKE_THE_HOST = ("ip_local_port_range", "ip_local_reserved_ports", "ip_unprivileged_port_start")


def settings() -> dict[str, str]:
    """What ports may be used for what, in our network namespace (ip_sysctl.rst)."""
    return {name: proc.sysctl(f"net/ipv4/{name}") for name in _LIKE_THE_HOST}


def apply(values: dict[str, str]) -> None:
    """Make the settings of our network namespace those of another one, as far as we may."""
    for name, value in values.items():
        try:
            fd = os.open(f"/proc/sys/net/ipv4/{name}", os.O_WRONLY | os.O_CLOEXEC)
            try:
                os.write(fd, value.encode())
            finally:
                os.close(fd)
        except OSError:
            continue


def up(addresses: Iterable[bytes]) -> None:
    """Bring `lo` up, with these addresses (4 or 16 bytes each) beside its own. Needs CAP_NET_ADMIN over the namespace.

    Raises OSError where it cannot be brought up; an address that it cannot have is left out.
    """
    link = _socket.socket(_socket.AF_NETLINK, _socket.SOCK_RAW | _socket.SOCK_CLOEXEC, 0)
    try:
        _ask(link, _NEWLINK, struct.pack("=BxHiII", 0, 0, INDEX, _IFF_UP, _IFF_UP))
        for ip in addresses:
            family = _socket.AF_INET if len(ip) == 4 else _socket.AF_INET6
            head = struct.pack("=BBBBI", family, 8 * len(ip), _IFA_F_NODAD, 0, INDEX)
            _try(link, _NEWADDR, head + _attribute(_IFA_LOCAL, ip) + _attribute(_IFA_ADDRESS, ip))
        for family in (_socket.AF_INET, _socket.AF_INET6):
            head = struct.pack("=8BI", family, 0, 0, 0, _TABLE_MAIN, _PROTOCOL_STATIC, 0, _UNICAST, 0)
            _try(link, _NEWROUTE, head + _attribute(_RTA_OIF, struct.pack("=I", INDEX)))
    finally:
        link.close()


def _attribute(kind: int, value: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(value), kind) + value + bytes(-len(value) % 4)


def _try(link: _socket.socket, kind: int, body: bytes) -> None:
    try:
        _ask(link, kind, body)
    except OSError:
        pass


def _ask(link: _socket.socket, kind: int, body: bytes) -> None:
    """Send a request and read its acknowledgement. Raises OSError."""
    link.send(struct.pack("=IHHII", 16 + len(body), kind, _REQUEST | _ACK | _CREATE, 1, 0) + body)
    answer = link.recv(1 << 16)
    _, what = struct.unpack_from("=IH", answer)
    if what == _ERROR:
        error = -struct.unpack_from("=i", answer, 16)[0]
        if error:
            raise OSError(error, os.strerror(error), "lo")
