"""The addresses by which other hosts may know this one, on whatever device: rtnetlink(7), unprivileged.

Read in the network namespace of the caller. Source: rtnetlink(7), include/uapi/linux/rtnetlink.h, if_addr.h.
"""

from __future__ import annotations

import _socket
import os
import struct

_SCOPE_LINK = 253
"""RT_SCOPE_LINK; addresses of the host alone (127.0.0.1, ::1) have the number above."""
_GETADDR, _ERROR, _DONE = 22, 2, 3
_REQUEST_DUMP = 0x301
_IFA_ADDRESS, _IFA_LOCAL = 1, 2
_SIZES = {_socket.AF_INET: 4, _socket.AF_INET6: 16}


def addresses() -> frozenset[str]:
    """Numeric, IPv4 and IPv6, but for those that mean another host elsewhere (loopback, of one link). Raises
    OSError."""
    found: set[str] = set()
    link = _socket.socket(_socket.AF_NETLINK, _socket.SOCK_RAW | _socket.SOCK_CLOEXEC, 0)
    try:
        link.send(struct.pack("=IHHII", 24, _GETADDR, _REQUEST_DUMP, 1, 0) + bytes(8))
        while True:
            data = link.recv(1 << 16)
            at = 0
            while at + 16 <= len(data):
                length, kind = struct.unpack_from("=IH", data, at)
                if kind == _DONE:
                    return frozenset(found)
                if kind == _ERROR:
                    error = -struct.unpack_from("=i", data, at + 16)[0]
                    raise OSError(error, os.strerror(error), "addresses of interfaces")
                found |= _address(data[at + 16 : at + length])
                at += (length + 3) & ~3
    finally:
        link.close()


def _address(body: bytes) -> set[str]:
    """Of one answer (struct ifaddrmsg, then attributes). A device that leads to one other host tells that host's
    address as IFA_ADDRESS, and its own as IFA_LOCAL; IPv6 has the former alone."""
    family, scope, size = body[0], body[3], _SIZES.get(body[0])
    if scope >= _SCOPE_LINK:
        return set()
    told: dict[int, bytes] = {}
    at = 8
    while at + 4 <= len(body):
        length, kind = struct.unpack_from("=HH", body, at)
        if length < 4:
            break
        told[kind] = body[at + 4 : at + length]
        at += (length + 3) & ~3
    ip = told.get(_IFA_LOCAL, told.get(_IFA_ADDRESS, b""))
    return {str(_socket.inet_ntop(family, ip))} if len(ip) == size else set()
