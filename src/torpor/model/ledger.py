"""The ledger: which outside addresses a job has asked for. Written by the floor `watch`, kept in the image."""

from __future__ import annotations

import msgspec


class Contact(msgspec.Struct, frozen=True):
    """An address that a program of the job has asked for.

    protocol: 'tcp', 'udp' or another kind of socket ('raw'). host: a numeric address. first, last: seconds since the
    epoch. calls: how many there were. pid: the process that asked first, as the job sees it. program: its executable.
    name: what the user calls the address, or the job's hosts file called it at the first call; '' if nothing. What name
    servers called it stands in `Ledger.names`.

    Calls whose address could not be read stand under protocol '?' and host ''.
    """

    protocol: str
    host: str
    port: int
    first: float
    last: float
    calls: int
    pid: int
    program: str
    name: str = ""

    @property
    def where(self) -> str:
        """`10.1.2.3:27000`, `[fe80::1]:80`; '' where it could not be read."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}" if host else ""


class Ledger(msgspec.Struct, frozen=True):
    """Everything that was asked for since a moment (seconds since the epoch), oldest first.

    with_sendmsg: sendmsg(2) and sendmmsg(2) are wrapped too. dropped: calls to addresses for which there was no room.
    moved: 'OLD=NEW' for addresses that are elsewhere since a restart (model/address_map.py). late: the job had run
    before; what it asked for until then is not known. with_answers: answers of name servers are looked at. names: an
    address that was looked up, and the name, in that order. listeners: programs that wanted to see system calls
    themselves (seccomp(2) user notification), which they cannot in a job that is watched.
    """

    since: float
    contacts: tuple[Contact, ...] = ()
    with_sendmsg: bool = False
    dropped: int = 0
    moved: tuple[str, ...] = ()
    late: bool = False
    with_answers: bool = False
    names: tuple[tuple[str, str], ...] = ()
    listeners: tuple[str, ...] = ()

    def looked_up(self) -> dict[str, tuple[str, ...]]:
        """The names by address."""
        found: dict[str, tuple[str, ...]] = {}
        for host, name in self.names:
            found[host] = (*found.get(host, ()), name)
        return found

    def named(self) -> list[tuple[Contact, tuple[str, ...]]]:
        """All contacts, with whatever their addresses are called."""
        looked_up = self.looked_up()
        return [
            (each, tuple(dict.fromkeys(name for name in (each.name, *looked_up.get(each.host, ())) if name)))
            for each in self.contacts
        ]
