"""What a running job holds in the world outside: the leases in its stores, and its seats (seat_watch.py). Taken before
it runs, or with its first checkpoint; renewed while it is supervised; given back at its end."""

from __future__ import annotations

from _thread import allocate_lock
from typing import TYPE_CHECKING

from torpor.model.errors import TorporError
from torpor.supervise.lease import Lease, myself, take, ttl
from torpor.supervise.say import say

if TYPE_CHECKING:
    from torpor.store.backend import Backend
    from torpor.supervise.loop import Loop
    from torpor.supervise.seat_watch import SeatWatch

_PATIENCE = 5.0
"""Seconds for giving everything back."""


class Standing:
    """Of one job. identity, job: see lease.py."""

    def __init__(self, identity: str, job: str) -> None:
        self.identity, self.job = identity, job
        self.seats: SeatWatch | None = None
        self.kept: tuple[tuple[str, ...], int, int] | None = None
        """Seats that are held already: their names, a descriptor and the pid of whoever keeps them."""
        self._leases: dict[str, Lease] = {}
        self._opened: dict[str, Backend] = {}
        self._lost: set[str] = set()
        self._lock = allocate_lock()
        self._attached = self._over = False

    def add(self, lease: Lease | None) -> None:
        """A lease that was taken for this job, if it was."""
        if lease is not None:
            with self._lock:
                self._leases[lease.location] = lease
            if self._attached:
                record("take", self, lease)

    def hold(self, store: str) -> None:
        """The job is about to be saved in a store: have its lease there. In any thread. Never raises: a checkpoint is
        made in any case."""
        from torpor.store import open_store

        try:
            opened = open_store(store or None)
            with self._lock:
                if opened.location in self._leases or opened.location in self._lost:
                    return
            try:
                opened.backend.prepare()
                lease = take(opened.location, opened.backend, myself(self.identity, self.job), 0.0, lambda line: None)
            finally:
                opened.close()
        except (OSError, TorporError) as error:
            self._say_lost(store, str(error))
            return
        self.add(lease)

    def attach(self, loop: Loop) -> None:
        """Renew from now on."""

        def tick() -> None:
            if self._leases and not self._over:
                import threading

                threading.Thread(target=self._renew, name="lease", daemon=True).start()
            loop.later(pause, tick)

        self._attached = True
        for lease in self._leases.values():
            record("take", self, lease)  # only now: until the job runs every millisecond counts
        pause = ttl() / 3
        loop.later(pause, tick)
        if self.seats is not None:
            self.seats.attach(loop)

    def _renew(self) -> None:
        for location, lease in list(self._leases.items()):
            try:
                holds = lease.holds(self._backend(location))
                if holds.renew(lease.hold) or self._over:
                    continue
                who = holds.look(1).holder
            except (OSError, TorporError):
                continue  # the next time, perhaps; until then others have to wait for TTL
            with self._lock:
                del self._leases[location]
            self._say_lost(location, f"another one runs: {who}" if who else "somebody has taken it away")

    def _backend(self, location: str) -> Backend:
        """A store, opened once, by whoever needs it first: not while the job is being restarted. Raises OSError,
        UsageError."""
        if location not in self._opened:
            from torpor.store.locations import open_backend

            self._opened[location] = open_backend(location)
        return self._opened[location]

    def _say_lost(self, location: str, why: str) -> None:
        if location in self._lost:
            return
        self._lost.add(location)
        say(f"torpor: {self.job} has no lease in {location} (any more): {why}")
        from torpor.supervise import audit

        audit.record("lease", TorporError(why), do="hold", job=self.job, identity=self.identity, store=location)

    def close(self) -> None:
        """The job has ended. Waits for a moment only: what is not given back comes free by itself."""
        self._over = True
        if self.seats is not None:
            self.seats.close()
        if not self._leases:
            return
        import threading

        thread = threading.Thread(target=self._release, name="lease", daemon=True)
        thread.start()
        thread.join(_PATIENCE)

    def _release(self) -> None:
        for lease in self._leases.values():
            try:
                lease.holds(self._backend(lease.location)).release(lease.hold)
            except (OSError, TorporError):
                continue
            record("release", self, lease)


def record(do: str, standing: Standing, lease: Lease) -> None:
    """A line in the log of what was done."""
    from torpor.supervise import audit

    audit.record("lease", do=do, job=standing.job, identity=standing.identity, store=lease.location)
