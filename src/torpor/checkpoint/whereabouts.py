"""Where the parts of a job over hosts are after a restart, as one of them sees it. Pure.

All that the job has in its memory are old addresses and old names, and it goes on in that world:

- A name leads to the address to which it led when the job was begun, whatever the name servers say now (`names`).
- An address that a part ever had leads to where that part is now (`moves`). So what is learned from a name leads there
  as well. Where hosts have changed places, one address is an old one of this part and a new one of that: the old one
  counts, but for datagrams to ports that nobody had at the checkpoint, which are answers (`AddressMap.find`).
- A port that two parts have, which are on one host now, stays that of the part that comes first in the checkpoint
  (`crowded`). The other one gets a free port there, and whoever calls its old address and port is led to it.

What the kernel itself tells (getsockname, getpeername, the sender of a datagram) is what is true now.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from torpor.image.whole import Face, PartRecord
from torpor.model.address_map import AddressMap, Place
from torpor.named_tuple import NamedTuple

OWN = ("127.0.0.1", "0.0.0.0", "::1", "::")
"""By these a host reaches itself, whatever its addresses."""

Shifts = Mapping[str, Mapping[int, int]]
"""By part: its ports that are others now."""


class PartAt(NamedTuple):
    """A part. was: the address that others reached it by when it was saved; now: the same from now on.  face: see
    there.  ports: that it listens on, or has for datagrams.  also: further addresses that its host had
    when it was saved."""

    name: str
    was: str
    now: str
    face: Face
    ports: Sequence[int] = ()
    also: Sequence[str] = ()


class Whereabouts:
    """As part `me` sees it."""

    def __init__(self, me: str, parts: Sequence[PartAt]) -> None:
        self._parts = parts
        self.me = next(part for part in parts if part.name == me)

    @classmethod
    def of(cls, me: str, records: Iterable[PartRecord], now: Mapping[str, str]) -> Whereabouts:
        """Of a checkpoint. now: by part, where it comes back; others are where they were."""
        return cls(
            me,
            [
                PartAt(one.part.name, one.address, now.get(one.part.name, one.address), one.face, one.ports, one.also)
                for one in records
            ],
        )

    @property
    def elsewhere(self) -> bool:
        """Is any part elsewhere than where the job believes it to be?"""
        return any(part.now != _known(part) for part in self._parts)

    @property
    def addresses(self) -> frozenset[str]:
        """Of all parts: those that they had, those that the job knows them by, and those of now; and whatever else
        their hosts had, on networks of other kinds perhaps."""
        had = (host for part in self._parts for host in part.also)
        return frozenset(host for part in self._parts for host in (part.was, _known(part), part.now)).union(had)

    @property
    def taken(self) -> frozenset[int]:
        """Ports of all parts that are on our host now."""
        return frozenset(port for part in self._parts if part.now == self.me.now for port in part.ports)

    def crowded(self) -> list[int]:
        """Our ports that a part before us has as well, on the same host."""
        before: set[int] = set()
        for part in self._parts:
            if part is self.me:
                break
            if part.now == self.me.now:
                before.update(part.ports)
        return sorted(before.intersection(self.me.ports))

    def moves(self, shifts: Shifts) -> AddressMap:
        """From the addresses at the checkpoint to those of now."""
        found: dict[Place, Place] = {}
        for part in self._parts:
            owners = [one for one in self._parts if one.was == part.was]
            # Several parts were on one host: who is meant, the port tells. Where it does not, we ourselves are.
            meant = self.me if self.me in owners else owners[0]
            found[Place(part.was)] = Place(meant.now)
            shift = shifts.get(part.name, {})
            for port in part.ports:
                now = Place(part.now, shift.get(port, port))
                if now != Place(meant.now, port):
                    found[Place(part.was, port)] = now
        for old, new in shifts.get(self.me.name, {}).items():
            found.update((Place(host, old), Place(host, new)) for host in OWN)
        return AddressMap(_changes(found))

    def believed(self, before: AddressMap, shifts: Shifts) -> AddressMap:
        """From the addresses that the job believes in to those of now. before: the same at the checkpoint."""
        found = dict(before.then(self.moves(shifts)).moves)
        for part in self._parts:
            if part is self.me or [_known(one) for one in self._parts].count(_known(part)) == 1:
                found[Place(_known(part))] = Place(part.now)
        found = _changes(found)
        both = AddressMap(found).both
        for part in self._parts:
            shift = shifts.get(part.name, {})
            for host in both.intersection((_known(part), part.was)):
                if found[Place(host)].host == part.now:
                    for port in part.ports:
                        found.setdefault(Place(host, port), Place(part.now, shift.get(port, port)))
        return AddressMap(found)

    def names(self) -> dict[str, str]:
        """Names of hosts, as the job is to see them, and the addresses that they lead to. Names that several parts have
        lead to us if we are one of them, and nowhere else."""
        found: dict[str, str] = {}
        several: set[str] = set()
        for part in self._parts:
            for name in part.face.names:
                if found.setdefault(name, _known(part)) != _known(part):
                    several.add(name)
        for name in several:
            if name in self.me.face.names:
                found[name] = _known(self.me)
            else:
                del found[name]
        return found


def _known(part: PartAt) -> str:
    return part.face.address or part.was


def _changes(found: Mapping[Place, Place]) -> dict[Place, Place]:
    """Without those that say nothing. One with a port may say that this port has not moved although the host has."""
    return {old: new for old, new in found.items() if old != new or (old.port and Place(old.host) in found)}
