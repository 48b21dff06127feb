"""What only so many may hold at a time, on whatever hosts: a saved job that runs, a seat of a pool.

    FOLDER/SLOT/N        the N-th holder of a slot, a map (`Holder`); put if absent, never changed, touched as long as
                         he holds it
    FOLDER/SLOT/N.free   he has let go

Only the latest holder of a slot counts. Whoever wants it puts the next number, and of several one is let through. A
holder who has let go, or was not seen for his `ttl` by the clock of the place, is no holder any more. All times are
those of the place: no clocks of two hosts are ever compared. Where what is seen may be out of date (`Backend.lag`) a
holder counts that much longer.

A holder who was stopped for longer than his `ttl` may have been overtaken: `renew` tells. Until then, at most one
renewal later, there are two.
"""

from __future__ import annotations

import os

import msgspec

from torpor.model.errors import Damaged
from torpor.named_tuple import NamedTuple
from torpor.store import envelope
from torpor.store.backend import Backend

TTL = 60.0
"""Seconds after which a holder who was not seen counts for nothing, if he has said nothing else."""
MAGIC = b"torporH\0"
VERSION = 1
KEEP = 16
"""Earlier numbers of a slot that are kept: somebody who looked, and then slept, would have to be overtaken by so many
others to put one of them again."""
FREE = ".free"


class Holder(msgspec.Struct, frozen=True, kw_only=True):
    """Who holds something. identity: of the job (docs/format.md).  job: its name.  host, pid, start, boot,
    pid_namespace: the process that renews it.  since: seconds since the epoch, by its own clock.  ttl: seconds after
    which he counts for nothing."""

    identity: str
    job: str
    host: str
    user: str
    pid: int
    start: int
    boot: str
    pid_namespace: int
    since: float
    ttl: float = TTL

    @property
    def place(self) -> tuple[str, int]:
        """Where the number of the process means something."""
        return self.boot, self.pid_namespace

    @property
    def process(self) -> tuple[int, int, str, int]:
        """The process that renews it, and no other one anywhere."""
        return self.pid, self.start, *self.place

    def __str__(self) -> str:
        return f"{self.job} on {self.host} ({self.user})"


class Hold(NamedTuple):
    """A slot that is ours. folder, slot, number: its object."""

    folder: str
    slot: int
    number: int

    @property
    def name(self) -> str:
        return f"{self.folder}/{self.slot}/{self.number}"


class Seen(NamedTuple):
    """A slot: the number of its latest holder, 0 if there never was one; he himself, None if it is free.  age: seconds
    since he was seen."""

    number: int
    holder: Holder | None = None
    age: float = 0.0


class Holds:
    """The slots of a folder."""

    def __init__(self, backend: Backend, folder: str) -> None:
        self._backend, self._folder = backend, folder

    def look(self, slot: int) -> Seen:
        """Raises OSError."""
        folder = f"{self._folder}/{slot}"
        names = self._backend.list(folder)
        number = max((int(name) for name in names if name.isascii() and name.isdigit()), default=0)
        if not number or f"{number}{FREE}" in names or self._there(f"{folder}/{number}{FREE}"):
            return Seen(number)
        try:
            holder = _decode(self._backend.get(f"{folder}/{number}"))
            age = self._clock() - self._backend.stat(f"{folder}/{number}").time
            return Seen(number, holder, age) if age <= holder.ttl + self._backend.lag() else Seen(number)
        except FileNotFoundError:
            return Seen(number)  # overtaken by many, or taken away by hand

    def take(self, slot: int, seen: Seen, me: Holder) -> Hold | None:
        """Take a slot that was seen to be free, or whose holder is dead for certain; None if somebody was quicker.
        Raises OSError."""
        hold = Hold(self._folder, slot, seen.number + 1)
        folder = f"{self._folder}/{slot}"
        if not self._backend.put(hold.name, [envelope.wrap(MAGIC, VERSION, msgspec.msgpack.encode(me))], durable=False):
            return None
        numbers = [int(name) for name in self._backend.list(folder) if name.isascii() and name.isdigit()]
        if any(number > hold.number for number in numbers):
            self._backend.delete(hold.name)  # we were asleep between the look and the put
            return None
        for number in numbers:
            if number < hold.number - KEEP:
                self._backend.delete(f"{folder}/{number}")
                self._backend.delete(f"{folder}/{number}{FREE}")
        return hold

    def renew(self, hold: Hold) -> bool:
        """Say that it is still held; False if it is not any more. Raises OSError."""
        try:
            self._backend.touch(hold.name)
        except FileNotFoundError:
            return False
        following = f"{hold.folder}/{hold.slot}/{hold.number + 1}"
        return not self._there(following) and not self._there(hold.name + FREE)

    def release(self, hold: Hold) -> None:
        """Let go. Raises OSError."""
        self._backend.put(hold.name + FREE, [b""], durable=False)

    def _there(self, name: str) -> bool:
        try:
            self._backend.stat(name)
        except FileNotFoundError:
            return False
        return True

    def _clock(self) -> float:
        """The time now by the clock of the place. Raises OSError."""
        probe = f"{self._folder}/clock-{os.urandom(8).hex()}"
        self._backend.put(probe, [b""], durable=False)
        try:
            return self._backend.stat(probe).time
        finally:
            self._backend.delete(probe)


def tidy(backend: Backend, before: float) -> None:
    """Delete holders of leases who were seen last before a moment (by the clock of the place): nobody else remembers
    them any more. Raises OSError."""
    place = shared(backend)
    for identity in place.list("holds"):
        folder = f"holds/{identity}/1"
        for name in place.list(folder):
            try:
                if place.stat(f"{folder}/{name}").time < before:
                    place.delete(f"{folder}/{name}")
            except FileNotFoundError:
                continue


def shared(backend: Backend) -> Backend:
    """Where holds are kept so that other hosts see them: of a tier the slow place."""
    from torpor.store.tier import find

    tier = find(backend)
    return backend if tier is None else shared(tier.slow)


def _decode(data: bytes) -> Holder:
    try:
        return msgspec.msgpack.decode(envelope.unwrap(MAGIC, VERSION, data, "a holder"), type=Holder)
    except (Damaged, msgspec.MsgspecError):
        # Somebody whom we do not understand holds it.
        return Holder(
            identity="", job="somebody", host="?", user="?", pid=0, start=0, boot="", pid_namespace=0, since=0.0
        )
