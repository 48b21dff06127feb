"""A manifest with other Internet addresses: for a job whose hosts are others now. Nothing is looked at.

What a socket of this host is bound to, and what it is connected to, is moved. Not so connections with other hosts of
the job: both hosts know them by the addresses that they had, and find out for themselves which can be had again
(reunion.py). What the program has in its memory is none of this (watch/map.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from torpor.image.manifest import Manifest, ObjectRecord
from torpor.posix import inet_datagram, inet_stream
from torpor.posix.inet_datagram import UdpSocket
from torpor.posix.inet_record import FAR, TcpSocket
from torpor.posix.socket_address import Address

Moves = Mapping[bytes, bytes]
"""Packed addresses: what a host had, and what stands for it now."""
_RECORDS: dict[str, type[msgspec.Struct]] = {
    inet_stream.SERVICE.name: TcpSocket, inet_datagram.SERVICE.name: UdpSocket,
}  # fmt: skip
_replace = msgspec.structs.replace


def resettle(manifest: Manifest, moves: Moves) -> Manifest:
    """The same manifest with each address as `moves` gives it."""
    return _replace(manifest, objects=tuple(_object(record, moves) for record in manifest.objects))


def _object(kept: ObjectRecord, moves: Moves) -> ObjectRecord:
    kind = _RECORDS.get(kept.service)
    if kind is None:
        return kept
    record: Any = msgspec.msgpack.decode(kept.state, type=kind)
    now = _tcp(record, moves) if isinstance(record, TcpSocket) else _udp(record, moves)
    return kept if now is record else _replace(kept, state=msgspec.Raw(msgspec.msgpack.encode(now)))


def _tcp(record: TcpSocket, moves: Moves) -> TcpSocket:
    if record.other == FAR or not (_moves(record.local, moves) or _moves(record.remote, moves)):
        return record
    gone = tuple(_replace(one, local=_now(one.local, moves), remote=_now(one.remote, moves))
                 for one in record.gone_before)  # fmt: skip
    return _replace(record, local=_maybe(record.local, moves), remote=_maybe(record.remote, moves), gone_before=gone)


def _udp(record: UdpSocket, moves: Moves) -> UdpSocket:
    if not (_moves(record.local, moves) or _moves(record.remote, moves)):
        return record
    return _replace(record, local=_maybe(record.local, moves), remote=_maybe(record.remote, moves))


def _moves(address: Address | None, moves: Moves) -> bool:
    return address is not None and address.ip in moves


def _maybe(address: Address | None, moves: Moves) -> Address | None:
    return None if address is None else _now(address, moves)


def _now(address: Address, moves: Moves) -> Address:
    return _replace(address, ip=moves[address.ip]) if address.ip in moves else address
