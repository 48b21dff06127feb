"""Deleting what nobody refers to. How this goes together with running saves is told in lease.py."""

from __future__ import annotations

from torpor.model.errors import Damaged
from torpor.store import index, lease, numbers, pack, root
from torpor.store.backend import Backend
from torpor.store.lease import Warrant
from torpor.store.table import PACK_ID, Place


class Roots:
    """Which packs roots refer to. A root never changes, so each is read once."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._read: dict[tuple[str, int], list[bytes]] = {}

    def packs(self) -> set[bytes]:
        """All packs that some root refers to now, or did when it was looked before. Raises OSError; Damaged
        where a root cannot be read, for then it is not known what it refers to."""
        for job in self._backend.list("roots"):
            for number in numbers.existing(self._backend, job):
                if (job, number) not in self._read:
                    try:
                        data = self._backend.get(root.object_name(job, number))
                    except FileNotFoundError:
                        continue
                    what = f"nothing can be deleted while checkpoint {job}@{number} is there: it"
                    self._read[job, number] = root.decode(data, what)[1].packs
        return {name for names in self._read.values() for name in names}


def collect(backend: Backend) -> tuple[int, int]:
    """Delete packs that no root refers to: how many, how many bytes. Raises OSError, Damaged.

    If it is interrupted, the next one goes on where it was.
    """
    lag, now = backend.lag(), _clock(backend)
    roots = Roots(backend)
    warrants = lease.warrants(backend)
    used, named = roots.packs(), {name for warrant in warrants.values() for name in warrant.packs}
    young = now - lease.EXPIRY if _running(backend, now) else now + 1
    unused = [name for name in _packs(backend) - used - named if _time(backend, pack.path(name)) < young]
    if unused:
        warrant = Warrant(sorted(unused))
        warrants[lease.issue(backend, warrant)] = warrant
    running = _running(backend, now)  # after the warrants are there: whoever is not in it has seen them
    used = roots.packs()  # after that: whoever is not in it any more has its root in here
    count = size = 0
    for where, warrant in warrants.items():
        age = now - _time(backend, where) if lag else 0.0
        after = advance(warrant, used, running, age, lag)
        if after is None:
            for name in set(warrant.packs) - used:
                freed = _delete(backend, pack.path(name))
                count += freed >= 0
                size += max(freed, 0)
            backend.delete(where)
        elif after != warrant:
            lease.issue(backend, after)
            backend.delete(where)
    _tidy(backend, now, bool(running))
    return count, size


def advance(warrant: Warrant, used: set[bytes], running: set[str], age: float, lag: float) -> Warrant | None:
    """What has become of a warrant: None if its packs that are not in `used` may be deleted now (or if it has
    none). Pure.

    used: packs that roots refer to, read after `running`.  running: leases, read after the warrant was put.
    age: seconds since the warrant was put.  lag: for how long what is read may be out of date.

    With a lag, a save that begins up to `lag` after the warrant was put may not see it, and its lease may
    be seen another `lag` later; and once the leases are gone, the roots may be seen `lag` after that.
    """
    packs = [name for name in warrant.packs if name not in used]
    leases = warrant.leases
    if leases is None:
        if age < 2 * lag:
            return Warrant(packs, None) if packs else None
        leases = sorted(running)
    elif not leases and age >= lag:
        return None
    leases = [name for name in leases if name in running]
    if not packs or (not leases and not lag):
        return None
    return Warrant(packs, leases)


def _running(backend: Backend, now: float) -> set[str]:
    """The leases of saves that are not taken for dead."""
    names = (f"leases/{name}" for name in backend.list("leases"))
    return {name for name in names if _time(backend, name) > now - lease.EXPIRY}


def _tidy(backend: Backend, now: float, busy: bool) -> None:
    """Remove what killed saves left, and bring the index up to date."""
    for name in backend.list("leases"):
        if _time(backend, f"leases/{name}") <= now - lease.EXPIRY:
            backend.delete(f"leases/{name}")
    backend.tidy(now - 24 * lease.EXPIRY if busy else now - lease.EXPIRY)
    numbers.thin(backend)
    found = index.Index(backend, set())
    known = {name for segment in found.segments.values() for name in segment.table.packs}
    missing: list[tuple[bytes, Place]] = []
    for pack_id in Roots(backend).packs() - known:
        try:
            missing.extend(pack.contents(backend, pack_id))
        except (Damaged, FileNotFoundError):
            pass  # whoever loads it is told
    index.add(backend, missing)
    index.merge(backend)


def _packs(backend: Backend) -> set[bytes]:
    return {bytes.fromhex(name) for name in backend.list("packs") if len(name) == 2 * PACK_ID}


def _clock(backend: Backend) -> float:
    """The time now by the clock that the objects' times are from."""
    while True:
        name = lease.issue(backend, Warrant([]))
        try:
            return backend.stat(name).time
        except FileNotFoundError:
            continue  # another collection took it away
        finally:
            backend.delete(name)


def _time(backend: Backend, name: str) -> float:
    """When an object was put or touched; 0 if it is gone."""
    try:
        return backend.stat(name).time
    except FileNotFoundError:
        return 0.0


def _delete(backend: Backend, name: str) -> int:
    """Delete an object; its size, or -1 if it was gone."""
    try:
        size = backend.stat(name).size
    except FileNotFoundError:
        return -1
    backend.delete(name)
    return size
