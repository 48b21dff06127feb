"""Which two ends of connections belong together, over all hosts of a job. Pure.

A connection of which both ends are in the job is *internal*. While all hosts are stopped each tells its ends, sorted by
the address that they lead to, and which addresses it has itself (`ends`). The coordinator hands each host what others
have told of its addresses (`Settling`) and does not look into it: with thousands of connections on each of thousands
of hosts that would take seconds, in which the job stands still. The host finds out which of its own ends those are the
other ends of, and how many bytes were sent there in all, so that it can wait until all of them have arrived (`told`).
Whatever is not among them is *external*.

The name of a connection (`posix/far.py`) is a hash of its protocol and two addresses: both hosts make it by
themselves, and in a checkpoint no two internal connections have the same. A restart needs no table of all connections
therefore: every host says which names it waits for and at which address, and which names it will call (`places`), and
is handed who
waits for those that it calls (`met`).

Ends that are both on one host are none of the coordinator's business: a host does not tell those. Two hosts may
have the same private addresses (127.0.0.1): what leads there is handed to both, and where that leaves it open who is
meant the checkpoint is given up. Behind address translation the two ends do not know each other's addresses, and
count as external.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Protocol

import msgspec

from torpor.named_tuple import NamedTuple
from torpor.posix.far import NAME, End, Told, name

_END = struct.Struct("<16sBQ")
_WAITS = struct.Struct("<16sB")
_MET = struct.Struct("<16sBI")
_SHIFT = struct.Struct("<HH")

_SIDE, _FINISHED, _WAITING, _ORPHAN, _ACCEPTED = 1, 2, 4, 8, 16


class _Packed(msgspec.Struct, frozen=True, array_like=True):
    """hosts: a table of names and addresses. ends, more: packed records, whose last field is an index there.  shifts:
    by host, pairs of ports."""

    hosts: tuple[tuple[str, str], ...]
    ends: bytes
    more: bytes = b""
    shifts: dict[str, bytes] = {}


class _Said(msgspec.Struct, frozen=True, array_like=True):
    """addresses: of this host.  ends: packed, by the address they lead to.  door: see `Told.door`."""

    addresses: tuple[bytes, ...]
    ends: dict[bytes, bytes]
    door: int = 0


def _between(found: Iterable[End]) -> dict[tuple[bytes, int], End]:
    """Ends by name and side, without those that have each other."""
    out: dict[tuple[bytes, int], End] = {}
    for end in found:
        called, side = name(end.protocol, end.local, end.remote)
        if end.local != end.remote and out.pop((called, 1 - side), None) is None:
            out[called, side] = end
    return out


def ends(found: Iterable[End], addresses: Iterable[bytes], door: int = 0) -> bytes:
    """What a host tells of its ends; b'' for none. addresses: those that connections from other hosts may lead to.
    door: see `Told.door`."""
    groups: dict[bytes, bytearray] = {}
    for (called, side), end in _between(found).items():
        flags = side | _FINISHED * end.finished | _WAITING * end.waiting | _ORPHAN * end.orphan
        flags |= _ACCEPTED * end.accepted
        groups.setdefault(end.remote.ip, bytearray()).extend(_END.pack(called, flags, end.sent))
    if not groups:
        return b""
    by_address = {ip: bytes(packed) for ip, packed in groups.items()}
    return msgspec.msgpack.encode(_Said(tuple(addresses), by_address, door))


class Exchange(Protocol):
    """What hosts say is added as it comes in; the result is what each is to be handed, for those that said anything."""

    def add(self, host: str, part: bytes) -> None:
        """What one host says. Raises ValueError where nobody can understand it."""
        ...

    def result(self) -> dict[str, bytes]:
        """By host. Raises ValueError where it does not fit together."""
        ...


class Settling:
    """Brings what is told of ends to the hosts that they lead to."""

    def __init__(self) -> None:
        self._said: dict[str, _Said] = {}
        self._owners: dict[bytes, list[str]] = {}

    def add(self, host: str, part: bytes) -> None:
        if not part:
            return
        try:
            said = self._said[host] = msgspec.msgpack.decode(part, type=_Said)
        except msgspec.MsgspecError:
            raise ValueError(_ODD) from None
        for ip in said.addresses:
            self._owners.setdefault(ip, []).append(host)

    def result(self) -> dict[str, bytes]:
        handed: dict[str, list[tuple[str, int, bytes]]] = {host: [] for host in self._said}
        for host, said in self._said.items():
            for ip, packed in said.ends.items():
                for owner in self._owners.get(ip, ()):
                    if owner != host:
                        handed[owner].append((host, said.door, packed))
        return {host: msgspec.msgpack.encode(some) for host, some in handed.items()}


_ODD = "its list of connections is not understood"


def told(found: Iterable[End], part: bytes) -> list[Told]:
    """What a host has to know of its ends, given those and what it was handed. Raises ValueError where it cannot be
    told which of two hosts an end leads to, and where what was handed is not understood."""
    mine = _between(found)
    out: dict[tuple[bytes, int], Told] = {}
    try:
        for host, door, packed in msgspec.msgpack.decode(part, type=list[tuple[str, int, bytes]]):
            for called, flags, sent in _END.iter_unpack(packed):
                end = called, 1 - (flags & _SIDE)
                if end not in mine:
                    continue
                if end in out:
                    which = f"{mine[end].local} - {mine[end].remote} may lead to {out[end].host} or to {host}"
                    raise ValueError(f"its connection {which}, which have the same address")
                out[end] = Told(
                    mine[end].key, host, sent, bool(flags & _FINISHED), bool(flags & _WAITING), bool(flags & _ORPHAN),
                    bool(flags & _ACCEPTED), door,
                )  # fmt: skip
    except (msgspec.MsgspecError, struct.error):
        raise ValueError(_ODD) from None
    return list(out.values())


class Met(NamedTuple):
    """Of a connection to be made: on which host its other end is; for one that this host calls, where that waits, as
    its host has told: an address and which one it is."""

    name: bytes
    host: str
    address: str
    where: int
    calls: bool


def places(
    address: str, waits: Sequence[tuple[bytes, int]], calls: Sequence[bytes], shift: Mapping[int, int] = {}
) -> bytes:
    """What a host tells once its sockets exist; b'' for nothing. address: where it waits for connections.  waits:
    names, and where that one is waited for (below 256).  calls: names.  shift: ports of its that are
    others now, which all hosts are told."""
    if not waits and not calls and not shift:
        return b""
    packed = b"".join(_WAITS.pack(called, where) for called, where in waits)
    ports = b"".join(_SHIFT.pack(old, new) for old, new in shift.items())
    return _packed([("", address)], packed, b"".join(calls), {"": ports} if ports else {})


class Meeting:
    """Brings those who wait and those who call together."""

    def __init__(self) -> None:
        self._hosts: list[tuple[str, str]] = []
        self._waits: dict[bytes, tuple[int, int]] = {}
        self._calls: dict[bytes, int] = {}
        self._all: list[str] = []
        self._shifts: dict[str, bytes] = {}

    def add(self, host: str, part: bytes) -> None:
        self._all.append(host)
        if not part:
            return
        try:
            said = msgspec.msgpack.decode(part, type=_Packed)
            address = said.hosts[0][1]
            waits = list(_WAITS.iter_unpack(said.ends))
        except (msgspec.MsgspecError, struct.error, IndexError):
            raise ValueError(_ODD) from None
        if said.shifts:
            self._shifts[host] = said.shifts.get("", b"")
        me = len(self._hosts)
        self._hosts.append((host, address))
        for called, original in waits:
            if self._waits.setdefault(called, (me, original))[0] != me:
                raise ValueError(f"{self._hosts[self._waits[called][0]][0]} waits for the same connection")
        for at in range(0, len(said.more), NAME):
            called = said.more[at : at + NAME]
            if self._calls.setdefault(called, me) != me:
                raise ValueError(f"{self._hosts[self._calls[called]][0]} calls for the same connection")

    def result(self) -> dict[str, bytes]:
        calls: list[bytearray] = [bytearray() for _ in self._hosts]
        waits: list[bytearray] = [bytearray() for _ in self._hosts]
        peers: list[dict[int, int]] = [{} for _ in self._hosts]
        for called, me in self._calls.items():
            if called not in self._waits:
                raise ValueError(f"{self._hosts[me][0]} calls for a connection that nobody waits for")
            other, original = self._waits[called]
            calls[me] += _MET.pack(called, original, peers[me].setdefault(other, len(peers[me])))
            waits[other] += _MET.pack(called, original, peers[other].setdefault(me, len(peers[other])))
        alone = len(self._waits) - len(self._calls)
        if alone:
            called = next(called for called in self._waits if called not in self._calls)
            raise ValueError(f"{self._hosts[self._waits[called][0]][0]} waits for a connection that nobody calls for")
        found = {host: _packed((), b"", b"", self._shifts) for host in self._all} if self._shifts else {}
        for me, (host, _) in enumerate(self._hosts):
            there = (self._hosts[peer] for peer in peers[me])
            found[host] = _packed(there, bytes(calls[me]), bytes(waits[me]), self._shifts)
        return found


def met(part: bytes) -> Iterator[Met]:
    """What a host was handed: first those it calls. Raises msgspec.MsgspecError."""
    packed = msgspec.msgpack.decode(part, type=_Packed)
    for records, calls in ((packed.ends, True), (packed.more, False)):
        for called, where, peer in _MET.iter_unpack(records):
            host, address = packed.hosts[peer]
            yield Met(called, host, address, where, calls)


def shifted(part: bytes) -> dict[str, dict[int, int]]:
    """By host, its ports that are others now, of what a host was handed. Raises msgspec.MsgspecError, struct.error."""
    packed = msgspec.msgpack.decode(part, type=_Packed)
    return {host: dict(_SHIFT.iter_unpack(pairs)) for host, pairs in packed.shifts.items()}


def _packed(
    hosts: Iterable[tuple[str, str]], records: bytes, more: bytes = b"", shifts: Mapping[str, bytes] = {}
) -> bytes:
    return msgspec.msgpack.encode(_Packed(tuple(hosts), records, more, dict(shifts)))
