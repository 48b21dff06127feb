"""Addresses of sockets as plain values: IPv4 and IPv6 with port, and the names of UNIX sockets."""

from __future__ import annotations

import _socket
import os
from typing import Any

import msgspec

AF_UNIX, AF_INET, AF_INET6 = _socket.AF_UNIX, _socket.AF_INET, _socket.AF_INET6
STREAM, DATAGRAM, SEQPACKET = 1, 2, 5

_MAPPED = bytes(10) + b"\xff\xff"


class Address(msgspec.Struct, frozen=True, array_like=True):
    """An internet address. ip: 4 or 16 bytes; an IPv4 address in IPv6's clothes (::ffff:1.2.3.4) counts as IPv4."""

    ip: bytes
    port: int
    scope: int = 0

    @property
    def any(self) -> bool:
        """Is it the wildcard address?"""
        return not any(self.ip)

    def of_family(self, family: int) -> tuple[Any, ...]:
        """As `bind` and `connect` of a socket of this family take it."""
        if family == AF_INET:
            return (_socket.inet_ntop(AF_INET, self.ip[-4:]), self.port)
        ip = self.ip if len(self.ip) == 16 else _MAPPED + self.ip
        return (_socket.inet_ntop(AF_INET6, ip), self.port, 0, self.scope)

    def __str__(self) -> str:
        family = AF_INET if len(self.ip) == 4 else AF_INET6
        host = _socket.inet_ntop(family, self.ip)
        return f"{host}:{self.port}" if family == AF_INET else f"[{host}]:{self.port}"


def inet(address: tuple[Any, ...]) -> Address:
    """What getsockname, getpeername or recvmsg gave."""
    if len(address) == 2:
        return Address(_socket.inet_pton(AF_INET, address[0]), address[1])
    ip = _socket.inet_pton(AF_INET6, address[0].partition("%")[0])
    return packed(ip, address[1], address[3])


def packed(ip: bytes, port: int, scope: int = 0) -> Address:
    """From the bytes of an address."""
    return Address(ip[12:] if len(ip) == 16 and ip.startswith(_MAPPED) else ip, port, scope)


def unix(address: str | bytes | None) -> bytes:
    """The name of a UNIX socket: b'' for none, an abstract one with its leading zero."""
    return os.fsencode(address) if address else b""


def link(fd: int) -> _socket.socket:
    """A socket object on a descriptor that stays open when `detach` is called on it; never closes it otherwise."""
    return _socket.socket(fileno=fd)


def own_name(fd: int) -> Any:
    """getsockname of a descriptor."""
    one = link(fd)
    try:
        return one.getsockname()
    finally:
        one.detach()


def peer_name(fd: int) -> Any:
    """getpeername of a descriptor, None where it is not connected."""
    one = link(fd)
    try:
        return one.getpeername()
    except OSError:
        return None
    finally:
        one.detach()


class in_folder:
    """A context in whose working directory relative names are looked up; '' for ours."""

    def __init__(self, folder: str) -> None:
        self._folder = folder

    def __enter__(self) -> None:
        if self._folder:
            self._here = os.open(".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                os.chdir(self._folder)
            except BaseException:
                os.close(self._here)
                raise

    def __exit__(self, *_: object) -> None:
        if self._folder:
            os.fchdir(self._here)
            os.close(self._here)
