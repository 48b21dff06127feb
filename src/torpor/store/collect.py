"""Deleting what nobody refers to. How this goes together with running saves is told in lease.py."""

from __future__ import annotations

from torpor.model.errors import Damaged
from torpor.store import holds, index, lease, numbers, pack, parts, root
from torpor.store.backend import Backend
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
                    self._read[job, number] = root.decode(data, what).table.packs
        return {name for names in self._read.values() for name in names}


def collect(backend: Backend) -> tuple[int, int]:
    """Delete packs that no root refers to: how many, how many bytes. Raises OSError, Damaged.

    If it is interrupted, the next one goes on where it was.
    """
    lag, now = backend.lag(), _clock(backend)
    _remove_orphans(backend, now)
    roots = Roots(backend)
    warrants = lease.warrants(backend)
    used, named = roots.packs(), {name for packs in warrants.values() for name in packs}
    # While somebody saves, young packs that nobody refers to are most likely that save's own.
    young = now - lease.EXPIRY if _running(backend, now) else now + 1
    unused = [name for name in _packs(backend) - used - named if _time(backend, pack.path(name)) < young]
    if unused:
        warrants[lease.issue(backend, unused)] = unused
    running = _running(backend, now)  # after the warrants are there: whoever is not in it has seen them
    used = roots.packs()  # after that: whoever is not in `running` any more has its root in here
    count = size = 0
    for warrant, packs in warrants.items():
        left = set(packs) - used
        if left and not _may_execute(backend, warrant, running, now, lag):
            continue
        for name in left:
            freed = _delete(backend, pack.path(name))
            count += freed >= 0
            size += max(freed, 0)
        for suffix in ("", lease.NOTE, lease.QUIET):
            backend.delete(warrant + suffix)
    _tidy(backend, now, bool(running))
    return count, size


def _may_execute(backend: Backend, warrant: str, running: set[str], now: float, lag: float) -> bool:
    """Go on with a warrant as far as it goes now; True if its packs may be deleted."""
    while True:
        age = now - _time(backend, warrant) if lag else 0.0
        quiet = _time(backend, warrant + lease.QUIET)
        what = step(age, lease.noted(backend, warrant), running, now - quiet if quiet else None, lag)
        if what == "note":
            lease.note(backend, warrant, sorted(running))
        elif what == "quiet":
            backend.put(warrant + lease.QUIET, [b""], durable=False)
            return False
        else:
            return what == "execute"


def step(age: float, noted: list[str] | None, running: set[str], quiet: float | None, lag: float) -> str:
    """What comes next for a warrant: 'note' the leases there are, wait until these are gone, put down that
    they are ('quiet'), 'execute'; or 'wait'. Pure.

    age: seconds since it was put.  noted: the leases that were noted.  running: the leases there are now.
    quiet: seconds since it was put down that the noted ones are gone.  lag: for how long what is seen may be
    out of date.

    With a lag, a save that begins up to `lag` after the warrant was put may not see it, and its lease may be
    seen another `lag` later; and once the leases are gone, their roots may be seen `lag` after that.
    """
    if noted is None:
        return "note" if age >= 2 * lag else "wait"
    if not running.isdisjoint(noted):
        return "wait"
    if not lag:
        return "execute"
    if quiet is None:
        return "quiet"
    return "execute" if quiet >= lag else "wait"


def _running(backend: Backend, now: float) -> set[str]:
    """The leases of saves that are not taken for dead."""
    names = (f"leases/{name}" for name in backend.list("leases"))
    return {name for name in names if _time(backend, name) > now - lease.EXPIRY}


def _tidy(backend: Backend, now: float, busy: bool) -> None:
    """Remove what killed saves left, and bring the index up to date."""
    for name in backend.list("leases"):
        if _time(backend, f"leases/{name}") <= now - lease.EXPIRY:
            backend.delete(f"leases/{name}")
    for name in backend.list("warrants"):
        if "." in name and not _time(backend, f"warrants/{name.partition('.')[0]}"):
            backend.delete(f"warrants/{name}")
    backend.tidy(now - 24 * lease.EXPIRY if busy else now - lease.EXPIRY)
    numbers.thin(backend)
    holds.tidy(backend, now - 24 * lease.EXPIRY)
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


def _remove_orphans(backend: Backend, now: float) -> None:
    """Delete parts of checkpoints that will not exist any more: their roots are missing, and while anybody saves, only
    old ones count: the others may be of a save that is about to write its root."""
    series = backend.list("roots")
    having = {parts.whole(name) for name in series if parts.is_part(name)}
    found = {name: numbers.existing(backend, name) for name in series if parts.whole(name) in having}
    candidates = parts.orphans(found)
    if not candidates:
        return
    young = now - 24 * lease.EXPIRY if _running(backend, now) else now - lease.EXPIRY
    for name, number in candidates:
        where = root.object_name(name, number)
        if 0 < _time(backend, where) < young and not _time(backend, root.object_name(parts.whole(name), number)):
            backend.delete(where)


def _packs(backend: Backend) -> set[bytes]:
    return {bytes.fromhex(name) for name in backend.list("packs") if len(name) == 2 * PACK_ID}


def _clock(backend: Backend) -> float:
    """The time now by the clock that the objects' times are from."""
    while True:
        name = lease.issue(backend, [])
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
