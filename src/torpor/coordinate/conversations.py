"""Which two ends of connections belong together, over all hosts of a job. Pure, and linear in the number of ends.

A connection of which both ends are in the job is *internal*. While all hosts are stopped each tells its ends (`ends`
makes that of what it has found), and each is handed, for those whose other end is in the job too (`told`): on which
host that is, and how many bytes were sent there in all, so that it can wait until all of them have arrived. Whatever
is not handed back is *external*.

The name of a connection is a hash of its protocol and two addresses: both hosts make it by themselves, and in a
checkpoint no two internal connections have the same. A restart needs no table of all connections therefore: every
host says which names it waits for and at which address, and which names it will call (`places`), and is handed who
waits for those that it calls (`met`).

Everything here is packed, 41 bytes for an end: with thousands of connections on each of thousands of hosts it is the
coordinator that has to look at all of them while the job stands still.

Ends that are both on one host are none of the coordinator's business: a host does not tell those. Two hosts may
have the same private addresses (127.0.0.1): where such connections cannot be told apart the attempt is given up.
Behind address translation the two ends do not know each other's addresses, and count as external.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple, Protocol

import msgspec

from torpor.posix.socket_address import Address

TCP, UDP = 6, 17

_END = struct.Struct("<16sBQQQ")
_NUMBERS = struct.Struct("<BQQQ")
_TOLD = struct.Struct("<QBQI")
_WAITS = struct.Struct("<16sB")
_MET = struct.Struct("<16sBI")

_SIDE, _FINISHED, _WAITING, _ORPHAN = 1, 2, 4, 8
_NAME = 16


class End(NamedTuple):
    """One end of a TCP connection, or a UDP socket that is connected.

    key: how the host calls it (an object or inode number; not 0).  sent, received: bytes since the connection was
    made, as the kernel counts them: for TCP tcpi_bytes_acked and SIOCOUTQ together, and tcpi_bytes_received (struct
    tcp_info in linux/tcp.h); 0 for UDP, where nothing has to arrive.  finished: it sends no more.  waiting: it waits to
    be accepted.  orphan: no process has it any more, the kernel still sends what is left.
    """

    key: int
    protocol: int
    local: Address
    remote: Address
    sent: int = 0
    received: int = 0
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


class _Packed(msgspec.Struct, frozen=True, array_like=True):
    """hosts: a table of names, or of names and addresses. ends: packed records, whose last field is an index there."""

    hosts: tuple[tuple[str, str], ...]
    ends: bytes
    more: bytes = b""


def name(protocol: int, local: Address, remote: Address) -> tuple[bytes, int]:
    """The name of a connection, 16 bytes, and which of its two ends this is (0 or 1)."""
    mine, other = _plain(local), _plain(remote)
    side = int(mine > other)
    text = bytes((protocol,)) + (other + mine if side else mine + other)
    return hashlib.blake2b(text, digest_size=_NAME).digest(), side


def _plain(address: Address) -> bytes:
    # Scopes are numbers of interfaces, and mean nothing on another host.
    return bytes((len(address.ip),)) + address.ip + address.port.to_bytes(2, "big")


def ends(found: Iterable[End]) -> bytes:
    """What a host tells of its ends; b'' for none. Those that have each other on this host are left out."""
    here: dict[tuple[bytes, int], bytes] = {}
    for end in found:
        if end.local == end.remote:
            continue
        called, side = name(end.protocol, end.local, end.remote)
        if here.pop((called, 1 - side), None) is None:
            flags = side | _FINISHED * end.finished | _WAITING * end.waiting | _ORPHAN * end.orphan
            here[called, side] = _END.pack(called, flags, end.key, end.sent, end.received)
    return b"".join(here.values())


class Exchange(Protocol):
    """What hosts say is added as it comes in; the result is what each is to be handed, for those that said anything."""

    def add(self, host: str, part: bytes) -> None:
        """What one host says. Raises ValueError where nobody can understand it."""
        ...

    def result(self) -> dict[str, bytes]:
        """By host. Raises ValueError where it does not fit together."""
        ...


class Settling:
    """Pairs the ends of all hosts, while they come in."""

    def __init__(self) -> None:
        self._hosts: list[str] = []
        self._seen: dict[bytes, tuple[int, bytes] | None] = {}
        """By name: host and what it said, None once both ends are there."""
        self._doubt: str = ""
        """A connection that somebody else claims to be an end of, too."""
        self._told: list[bytearray] = []
        self._peers: list[dict[int, int]] = []

    def add(self, host: str, part: bytes) -> None:
        if not part:
            return
        if len(part) % _END.size:
            raise ValueError("its list of connections is cut")
        me = len(self._hosts)
        self._hosts.append(host)
        self._told.append(bytearray())
        self._peers.append({})
        seen = self._seen
        for at in range(0, len(part), _END.size):
            called = part[at : at + _NAME]
            rest = part[at + _NAME : at + _END.size]
            if called not in seen:
                seen[called] = me, rest
                continue
            first = seen[called]
            if first is None or first[1][0] & _SIDE == rest[0] & _SIDE:
                self._doubt = host
                continue
            seen[called] = None
            self._pair(me, rest, *first)

    def _pair(self, me: int, mine: bytes, other: int, others: bytes) -> None:
        my_flags, my_key, my_sent, _ = _NUMBERS.unpack(mine)
        flags, key, sent, _ = _NUMBERS.unpack(others)
        self._told[me] += _TOLD.pack(my_key, flags, sent, self._index(me, other))
        self._told[other] += _TOLD.pack(key, my_flags, my_sent, self._index(other, me))

    def _index(self, host: int, peer: int) -> int:
        """Where a peer is in a host's table of those it speaks with."""
        table = self._peers[host]
        return table.setdefault(peer, len(table))

    def result(self) -> dict[str, bytes]:
        if self._doubt:
            raise ValueError(
                f"{self._doubt} and another host have connections with the same two addresses, which cannot be told "
                "apart"
            )
        return {
            host: _packed(((self._hosts[peer], "") for peer in self._peers[me]), bytes(self._told[me]))
            for me, host in enumerate(self._hosts)
        }


def told(part: bytes) -> Iterator[Told]:
    """What a host was handed, for the ends whose other end is in the job. Raises msgspec.MsgspecError."""
    packed = msgspec.msgpack.decode(part, type=_Packed)
    for key, flags, arrives, peer in _TOLD.iter_unpack(packed.ends):
        host = packed.hosts[peer][0]
        yield Told(key, host, arrives, bool(flags & _FINISHED), bool(flags & _WAITING), bool(flags & _ORPHAN))


class Met(NamedTuple):
    """Of a connection to be made: on which host its other end is; for one that this host calls, where that waits:
    `address`, or, if `original`, the address that the connection had."""

    name: bytes
    host: str
    address: str
    original: bool
    calls: bool


def places(address: str, waits: Sequence[tuple[bytes, bool]], calls: Sequence[bytes]) -> bytes:
    """What a host tells once its sockets exist; b'' for nothing. address: where it waits for connections.  waits:
    names, and whether that one is waited for at the address it had.  calls: names."""
    if not waits and not calls:
        return b""
    packed = b"".join(_WAITS.pack(called, original) for called, original in waits)
    return _packed([("", address)], packed, b"".join(calls))


class Meeting:
    """Brings those who wait and those who call together."""

    def __init__(self) -> None:
        self._hosts: list[tuple[str, str]] = []
        self._waits: dict[bytes, tuple[int, int]] = {}
        self._calls: dict[bytes, int] = {}

    def add(self, host: str, part: bytes) -> None:
        if not part:
            return
        try:
            said = msgspec.msgpack.decode(part, type=_Packed)
            address = said.hosts[0][1]
            waits = list(_WAITS.iter_unpack(said.ends))
        except (msgspec.MsgspecError, struct.error, IndexError):
            raise ValueError("its list of connections is not understood") from None
        me = len(self._hosts)
        self._hosts.append((host, address))
        for called, original in waits:
            if self._waits.setdefault(called, (me, original))[0] != me:
                raise ValueError(f"{self._hosts[self._waits[called][0]][0]} waits for the same connection")
        for at in range(0, len(said.more), _NAME):
            called = said.more[at : at + _NAME]
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
        return {
            host: _packed((self._hosts[peer] for peer in peers[me]), bytes(calls[me]), bytes(waits[me]))
            for me, (host, _) in enumerate(self._hosts)
        }


def met(part: bytes) -> Iterator[Met]:
    """What a host was handed: first those it calls. Raises msgspec.MsgspecError."""
    packed = msgspec.msgpack.decode(part, type=_Packed)
    for records, calls in ((packed.ends, True), (packed.more, False)):
        for called, original, peer in _MET.iter_unpack(records):
            host, address = packed.hosts[peer]
            yield Met(called, host, address, bool(original), calls)


def _packed(hosts: Iterable[tuple[str, str]], records: bytes, more: bytes = b"") -> bytes:
    return msgspec.msgpack.encode(_Packed(tuple(hosts), records, more))
