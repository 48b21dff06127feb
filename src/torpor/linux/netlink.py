"""Netlink questions whose answer is a list, unprivileged: netlink(7), include/uapi/linux/netlink.h.

Asked in the network namespace of the caller.
"""

from __future__ import annotations

import _socket
import os
import struct
from collections.abc import Iterator

_REQUEST_DUMP = 0x301
_ERROR, _DONE = 2, 3


def dump(protocol: int, kind: int, request: bytes) -> Iterator[bytes]:
    """The bodies of all answers to a dump request. protocol: NETLINK_ROUTE and so on.  kind: of the message. Raises
    OSError."""
    link = _socket.socket(_socket.AF_NETLINK, _socket.SOCK_RAW | _socket.SOCK_CLOEXEC, protocol)
    try:
        link.send(struct.pack("=IHHII", 16 + len(request), kind, _REQUEST_DUMP, 1, 0) + request)
        while True:
            data = link.recv(1 << 18)
            at = 0
            while at + 16 <= len(data):
                length, what = struct.unpack_from("=IH", data, at)
                body = data[at + 16 : at + length]
                if what == _DONE:
                    return
                if what == _ERROR:
                    error = -struct.unpack_from("=i", body)[0]
                    raise OSError(error, os.strerror(error), "netlink")
                yield body
                at += (length + 3) & ~3
    finally:
        link.close()


def attributes(body: bytes, at: int) -> Iterator[tuple[int, bytes]]:
    """Kind and value of the attributes behind the first `at` bytes of an answer."""
    while at + 4 <= len(body):
        length, kind = struct.unpack_from("=HH", body, at)
        if length < 4:
            return
        yield kind, body[at + 4 : at + length]
        at += (length + 3) & ~3
