"""A manifest with other Internet addresses: for a job whose hosts are others now. Nothing is looked at.

What a socket of this host is bound to, and what it is connected to, is moved. Not so connections with other hosts of
the job: both hosts know them by the addresses that they had, and find out for themselves which can be had again
(reunion.py). What the program has in its memory is none of this (model/address_map.py).
"""

from __future__ import annotations

import _socket
from collections.abc import Iterator
from typing import Any

import msgspec

from torpor.image.manifest import Manifest, ObjectRecord
from torpor.model.address_map import AddressMap
from torpor.posix import inet_datagram, inet_stream
from torpor.posix.inet_datagram import UdpSocket
from torpor.posix.inet_record import BOUND, FAR, LISTENING, TcpSocket
from torpor.posix.socket_address import AF_INET, AF_INET6, Address

_RECORDS: dict[str, type[msgspec.Struct]] = {
    inet_stream.SERVICE.name: TcpSocket, inet_datagram.SERVICE.name: UdpSocket,
}  # fmt: skip
_replace = msgspec.structs.replace


def ports(manifest: Manifest) -> tuple[int, ...]:
    """On which the job listens, or which it has for datagrams: nobody else on the host can have them."""
    found: set[int] = set()
    for record in _sockets(manifest):
        if record.local is not None and (isinstance(record, UdpSocket) or record.state in (LISTENING, BOUND)):
            found.add(record.local.port)
    return tuple(sorted(found - {0}))


def _sockets(manifest: Manifest) -> Iterator[Any]:
    for kept in manifest.objects:
        kind = _RECORDS.get(kept.service)
        if kind is not None:
            yield msgspec.msgpack.decode(kept.state, type=kind)


def resettle(manifest: Manifest, moves: AddressMap) -> Manifest:
    """The same manifest with each address as `moves` gives it."""
    if not moves:
        return manifest
    return _replace(manifest, objects=tuple(_object(record, moves) for record in manifest.objects))


def _object(kept: ObjectRecord, moves: AddressMap) -> ObjectRecord:
    kind = _RECORDS.get(kept.service)
    if kind is None:
        return kept
    record: Any = msgspec.msgpack.decode(kept.state, type=kind)
    now = _tcp(record, moves) if isinstance(record, TcpSocket) else _udp(record, moves)
    return kept if now == record else _replace(kept, state=msgspec.Raw(msgspec.msgpack.encode(now)))


def _tcp(record: TcpSocket, moves: AddressMap) -> TcpSocket:
    if record.other == FAR:
        return record
    gone = tuple(_replace(one, local=_now(one.local, moves), remote=_now(one.remote, moves))
                 for one in record.gone_before)  # fmt: skip
    return _replace(record, local=_maybe(record.local, moves), remote=_maybe(record.remote, moves), gone_before=gone)


def _udp(record: UdpSocket, moves: AddressMap) -> UdpSocket:
    return _replace(record, local=_maybe(record.local, moves), remote=_maybe(record.remote, moves))


def _maybe(address: Address | None, moves: AddressMap) -> Address | None:
    return None if address is None else _now(address, moves)


def _now(address: Address, moves: AddressMap) -> Address:
    family = AF_INET if len(address.ip) == 4 else AF_INET6
    place = moves.find(_socket.inet_ntop(family, address.ip), address.port)
    if place is None:
        return address
    family = AF_INET6 if ":" in place.host else AF_INET
    return _replace(address, ip=_socket.inet_pton(family, place.host), port=place.port)
