"""Which services outside of it a job has used: from its manifest, pure.

The addresses that the ledger has, the connections that lead out of the job, the variables that tell about licences.
What the job listens on itself is not outside, nor are the hosts of the job.
"""

from __future__ import annotations

from _socket import AF_INET, AF_INET6, inet_ntop
from collections.abc import Collection, Iterable, Mapping
from types import MappingProxyType
from typing import Any

import msgspec

from torpor.image.manifest import Manifest
from torpor.linux import proc
from torpor.model.ledger import Contact
from torpor.model.terms import Sign
from torpor.named_tuple import NamedTuple
from torpor.policy.decide import Service
from torpor.policy.known import Known, known, servers
from torpor.posix.inet_record import CONNECTED, CONNECTING, LISTENING, OUTSIDE, TcpSocket
from torpor.posix.socket_address import Address


class End(NamedTuple):
    """One end of a connection that leads out of the job. ino: its inode number."""

    kind: str
    host: str
    port: int
    ino: int
    program: str = ""


def services(manifest: Manifest, hosts: Collection[str] = ()) -> list[Service]:
    """hosts: addresses of the job's own hosts."""
    ends, own = sockets(manifest)
    contacts = manifest.ledger.contacts if manifest.ledger is not None else ()
    looked_up = manifest.ledger.looked_up() if manifest.ledger is not None else {}
    moved = manifest.ledger.moved if manifest.ledger is not None else ()
    dropped = manifest.ledger.dropped if manifest.ledger is not None else 0
    inside = {*hosts, *(word.partition("=")[0] for word in moved), *(word.partition("=")[2] for word in moved)}
    signs = manifest.terms.signs if manifest.terms is not None else ()
    return found(contacts, ends, own, signs, inside, dropped, known(), _handed_out(), looked_up)


def found(
    contacts: Iterable[Contact], ends: Iterable[End], own: Collection[tuple[str, int]], signs: Iterable[Sign],
    inside: Collection[str], dropped: int, table: Known, handed_out: range = range(32768, 61000),
    looked_up: Mapping[str, tuple[str, ...]] = MappingProxyType({}),
) -> list[Service]:  # fmt: skip
    """own: what the job listens on, host '' for any address.  inside: addresses, or `HOST:PORT`, that are not outside
    (but licences may be given out on a host of the job's own).
    dropped: calls to addresses that the ledger had no room for.  handed_out: ports that the kernel hands out.
    looked_up: what name servers called addresses."""

    def is_own(kind: str, host: str, port: int) -> bool:
        if (host, port) in own or ("", port) in own or _word(host, port) in inside:
            return True
        return host in inside and not table.licence(kind, port)

    seen: dict[tuple[str, int], Service] = {}

    def note(kind: str, host: str, port: int, names: tuple[str, ...], program: str, more: Mapping[str, Any]) -> None:
        if host and (is_own(kind, host, port) or not port):
            return  # nothing is ever sent to port 0: a program has looked which way an address is
        passing = host.startswith("127.") or host == "::1"
        before = seen.get((host, port), Service(host, port, passing=passing and port in handed_out))
        licence = table.licence(kind, port)
        seen[host, port] = before._replace(
            names=_with(before.names, (*names, *looked_up.get(host, ()))), programs=_with(before.programs, (program,)),
            licence=before.licence or (f"{licence}, by its port" if licence else ""),
            **{key: before.open + value if key == "open" else value for key, value in more.items()},
        )  # fmt: skip

    for end in ends:
        note(end.kind, end.host, end.port, (), end.program, {"open": (end.ino,)})
    for each in contacts:
        # An address that could not be read is not known to be harmless.
        if each.host and (each.host, each.port) not in seen and table.ordinary(each.protocol, each.port):
            continue
        names = (each.name,) if each.name else ()
        note(each.protocol, each.host, each.port, names, each.program, {"used": True})
    out = list(seen.values())
    for sign in signs:
        for name, port in servers(sign.value) or [(sign.variable, 0)]:
            why = f"{sign.variable} in the environment names it"
            out.append(Service("", port, (name,), (sign.program,) if sign.program else (), licence=why))
    if dropped:
        out.append(Service("", 0, (f"{dropped} further addresses",), used=True))
    return out


def _handed_out() -> range:
    """The ports that the kernel hands out to whoever asks for any (ip(7), ip_local_port_range)."""
    try:
        first, last = proc.text("/proc/sys/net/ipv4/ip_local_port_range").split()
        return range(int(first), int(last) + 1)
    except (OSError, ValueError):
        return range(32768, 61000)


def sockets(manifest: Manifest) -> tuple[list[End], set[tuple[str, int]]]:
    """The connections that lead out of a job, but for those that others have made to it, and the addresses that it has
    for others to speak to, host '' for any address."""
    ends: list[tuple[Address | None, End]] = []
    own: set[tuple[str, int]] = set()
    programs = _programs(manifest)
    for number, record in enumerate(manifest.objects):
        program = programs.get(number, "")
        if record.service == "tcp":
            tcp = msgspec.msgpack.decode(record.state, type=TcpSocket)
            if tcp.state == LISTENING and tcp.local is not None:
                own.add(_place(tcp.local))
            elif tcp.state in (CONNECTED, CONNECTING) and tcp.other == OUTSIDE and tcp.remote is not None:
                ends.append((tcp.local, End("tcp", _host(tcp.remote), tcp.remote.port, tcp.ino, program)))
        elif record.service == "udp":
            from torpor.posix.inet_datagram import UdpSocket

            udp = msgspec.msgpack.decode(record.state, type=UdpSocket)
            if udp.remote is not None:
                ends.append((None, End("udp", _host(udp.remote), udp.remote.port, 0, program)))
            elif udp.local is not None:
                own.add(_place(udp.local))
    return [end for local, end in ends if local is None or not {_place(local), ("", local.port)} & own], own


def _place(address: Address) -> tuple[str, int]:
    return "" if address.any else _host(address), address.port


def _programs(manifest: Manifest) -> dict[int, str]:
    """Who has an open file description, by its number."""
    out: dict[int, str] = {}
    for process in manifest.processes:
        path = manifest.files[process.exe].identity.path if process.exe >= 0 else ""
        for descriptor in process.descriptors:
            out.setdefault(descriptor.object, path)
    return out


def _host(address: Address) -> str:
    return str(inet_ntop(AF_INET if len(address.ip) == 4 else AF_INET6, address.ip))


def _word(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _with(known_before: tuple[str, ...], more: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys((*known_before, *(word for word in more if word))))
