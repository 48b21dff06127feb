"""torpor's own seats: a number of them under a name, kept in a store (store/holds.py).

    pools/NAME/about      how many there are, and until when
    pools/NAME/SLOT/N     who has a seat

A holder renews; one that is not heard of for the pool's `ttl` has lost its seat. A job that asks again, because
whoever renewed for it has died, gets the seat that it has.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import msgspec

from torpor.linux import proc
from torpor.model.errors import Damaged, NotFound, TorporError, UsageError
from torpor.seats.provider import Lost, NoneFree, NotEntitled, Request, Status, Unreachable
from torpor.store import envelope
from torpor.store.holds import TTL, Hold, Holder, Holds, Seen, shared

if TYPE_CHECKING:
    from torpor.store.backend import Backend

MAGIC = b"torporN\0"
VERSION = 1
MOST = 10_000


class About(msgspec.Struct, frozen=True):
    """A pool. count: its seats.  ttl: seconds.  until: seconds since the epoch, after which the licence has expired; 0:
    never."""

    count: int
    ttl: float = TTL
    until: float = 0.0


def create(backend: Backend, name: str, about: About) -> None:
    """Make a pool. Raises UsageError if there is one of that name, OSError."""
    backend.prepare()
    data = envelope.wrap(MAGIC, VERSION, msgspec.msgpack.encode(about))
    if not shared(backend).put(f"pools/{name}/about", [data]):
        raise UsageError(f"there is a pool {name} already in {backend.place}; torpor seats rm {name} removes it")


def about(backend: Backend, name: str) -> About:
    """Raises NotFound, Damaged, OSError."""
    try:
        data = shared(backend).get(f"pools/{name}/about")
    except FileNotFoundError:
        raise NotFound(f"there is no pool of seats {name} in {backend.place} (torpor seats create)") from None
    try:
        return msgspec.msgpack.decode(envelope.unwrap(MAGIC, VERSION, data, f"pool {name}"), type=About)
    except msgspec.MsgspecError as error:
        raise Damaged(f"pool {name} in {backend.place} is damaged: {error}") from None


def names(backend: Backend) -> list[str]:
    """The pools there are. Raises OSError."""
    place = shared(backend)
    return sorted(name for name in place.list("pools") if "about" in place.list(f"pools/{name}"))


def holders(backend: Backend, name: str) -> list[tuple[int, Seen]]:
    """Who has the seats of a pool: the slots that are taken. Raises NotFound, Damaged, OSError."""
    found = about(backend, name)
    slots = Holds(shared(backend), f"pools/{name}")
    seen = ((slot, slots.look(slot)) for slot in range(1, found.count + 1))
    return [(slot, each) for slot, each in seen if each.holder is not None]


def remove(backend: Backend, name: str) -> None:
    """Remove a pool that nobody has a seat of. Raises NotFound, UsageError, OSError."""
    if taken := holders(backend, name):
        raise UsageError(f"{len(taken)} of the seats of {name} are taken: {lines(taken)[0]}")
    place, folder = shared(backend), f"pools/{name}"
    place.delete(f"{folder}/about")
    for slot in place.list(folder):
        for each in place.list(f"{folder}/{slot}"):
            place.delete(f"{folder}/{slot}/{each}")


def lines(taken: list[tuple[int, Seen]]) -> tuple[str, ...]:
    """For people."""
    return tuple(f"{seen.holder}, seen {seen.age:.0f} s ago" for _, seen in taken)


class Pool:
    """A seat of a pool; see provider.Provider."""

    def __init__(self, options: Mapping[str, Any], request: Request) -> None:
        from torpor.store import locations

        self._name, self._request = str(options["pool"]), request
        try:
            self._backend = locations.open_backend(locations.absolute(options.get("store") or locations.default()))
        except TorporError as error:
            raise NotEntitled(str(error)) from None
        self._hold: Hold | None = None
        self.every = TTL / 4

    def acquire(self) -> None:
        try:
            found = self._look()
            self._refuse_expired(found)
            slots = Holds(shared(self._backend), f"pools/{self._name}")
            taken = self._take(slots, found.count, found.ttl)
        except OSError as error:
            raise Unreachable(f"{self._backend.place}: {error.strerror or error}") from None
        if taken is not None:
            who = ", ".join(str(seen.holder) for _, seen in taken)
            raise NoneFree(f"all {found.count} seats of {self._name} are taken: {who}")

    def _take(self, slots: Holds, count: int, ttl: float) -> list[tuple[int, Seen]] | None:
        """Have a slot; who has them if none is free."""
        taken: list[tuple[int, Seen]] = []
        free: list[tuple[int, Seen]] = []
        for slot in range(1, count + 1):
            seen = slots.look(slot)
            if seen.holder is not None and seen.holder.identity == self._request.identity:
                hold = Hold(f"pools/{self._name}", slot, seen.number)
                if slots.renew(hold):
                    self._hold = hold
                    return None
            (taken if seen.holder is not None else free).append((slot, seen))
        for slot, seen in free:
            taken_now = slots.take(slot, seen, self._me(ttl))
            if taken_now is not None:
                self._hold = taken_now
                return None
            taken.append((slot, slots.look(slot)))
        return [(slot, seen) for slot, seen in taken if seen.holder is not None]

    def renew(self) -> None:
        if self._hold is None:
            raise Lost(f"no seat of {self._name} is held")
        try:
            found = self._look()
            self._refuse_expired(found)
            if Holds(shared(self._backend), f"pools/{self._name}").renew(self._hold):
                return
        except NotFound as error:
            raise NotEntitled(str(error)) from None
        except OSError as error:
            raise Unreachable(f"{self._backend.place}: {error.strerror or error}") from None
        self._hold = None
        raise Lost(f"the seat of {self._name} was not renewed for so long that somebody else has it")

    def release(self) -> None:
        if self._hold is None:
            return
        try:
            Holds(shared(self._backend), f"pools/{self._name}").release(self._hold)
        except OSError as error:
            raise Unreachable(f"{self._backend.place}: {error.strerror or error}") from None
        finally:
            self._hold = None

    def status(self) -> Status:
        try:
            return Status(self._look().count, lines(holders(self._backend, self._name)))
        except OSError as error:
            raise Unreachable(f"{self._backend.place}: {error.strerror or error}") from None

    def fileno(self) -> int:
        return -1

    def _look(self) -> About:
        """Raises NotEntitled, OSError."""
        try:
            found = about(self._backend, self._name)
        except (NotFound, Damaged) as error:
            raise NotEntitled(str(error)) from None
        self.every = found.ttl / 4
        return found

    def _refuse_expired(self, found: About) -> None:
        if found.until and time.time() >= found.until:
            when = time.strftime("%Y-%m-%d %H:%M", time.localtime(found.until))
            raise NotEntitled(f"the licence of {self._name} has expired ({when})")

    def _me(self, ttl: float) -> Holder:
        pid = os.getpid()
        return Holder(
            identity=self._request.identity, job=self._request.job, host=self._request.host, user=self._request.user,
            pid=pid, start=proc.stat(pid).starttime, boot=proc.boot_id(),
            pid_namespace=os.stat("/proc/self/ns/pid").st_ino, since=time.time(), ttl=ttl,
        )  # fmt: skip
