"""What only so many may hold at a time: on every kind of place, with several who want it, and holders who die."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from torpor.store import collect, holds, lease
from torpor.store.backend import Backend
from torpor.store.folder import Folder
from torpor.store.holds import Hold, Holder, Holds, Seen
from torpor.store.locations import open_backend
from torpor.store.memory import Memory
from torpor.store.tier import Tier


def somebody(identity: str = "a", ttl: float = 60.0) -> Holder:
    return Holder(
        identity=identity, job=identity, host="h", user="u", pid=1, start=1, boot="b", pid_namespace=1,
        since=time.time(), ttl=ttl,
    )  # fmt: skip


@pytest.fixture(params=["memory", "folder", "tier", "s3"])
def backend(request: pytest.FixtureRequest, tmp_path: Any) -> Backend:
    if request.param == "memory":
        return Memory("memory:test")
    if request.param == "folder":
        made: Backend = Folder(str(tmp_path / "st"))
    elif request.param == "tier":
        made = Tier(Memory("memory:fast"), Folder(str(tmp_path / "slow")))
    else:
        made = open_backend(request.getfixturevalue("bucket"))
    made.prepare()
    return made


def taken(slots: Holds, slot: int, who: Holder) -> Hold:
    seen = slots.look(slot)
    assert seen.holder is None
    found = slots.take(slot, seen, who)
    assert found is not None
    return found


def test_taken_renewed_and_given_back(backend: Backend) -> None:
    slots = Holds(holds.shared(backend), "holds/x")
    assert slots.look(1) == Seen(0)
    mine = taken(slots, 1, somebody())
    seen = slots.look(1)
    assert seen.number == 1 and seen.holder is not None and seen.holder.identity == "a" and seen.age < 30
    assert slots.renew(mine)
    assert slots.look(2).holder is None
    slots.release(mine)
    assert not slots.renew(mine)
    assert slots.look(1) == Seen(1)
    assert taken(slots, 1, somebody("b")).number == 2


def test_who_has_looked_too_long_ago_does_not_get_it(backend: Backend) -> None:
    slots = Holds(holds.shared(backend), "holds/x")
    seen = slots.look(1)
    mine = taken(slots, 1, somebody())
    assert slots.take(1, seen, somebody("late")) is None
    slots.release(mine)
    for _ in range(3):
        slots.release(taken(slots, 1, somebody()))
    place = holds.shared(backend)
    place.delete("holds/x/1/1")  # as if it had been overtaken by very many
    assert slots.take(1, seen, somebody("late")) is None
    assert "1" not in place.list("holds/x/1")


def test_a_holder_who_is_not_seen_loses_it(tmp_path: Any) -> None:
    place = Folder(str(tmp_path))
    slots = Holds(place, "holds/x")
    mine = taken(slots, 1, somebody(ttl=5.0))
    at = f"{tmp_path}/{mine.name}"
    os.utime(at, (0, time.time() - 4))
    assert slots.look(1).holder is not None
    os.utime(at, (0, time.time() - 6))
    assert slots.look(1) == Seen(1)
    assert slots.renew(mine) and slots.look(1).holder is not None  # nobody was quicker
    os.utime(at, (0, time.time() - 6))
    other = taken(slots, 1, somebody("b"))
    assert not slots.renew(mine) and slots.renew(other)


def test_where_listings_are_late_it_lasts_longer(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Folder, "lag", lambda self: 100.0)
    slots = Holds(Folder(str(tmp_path)), "holds/x")
    mine = taken(slots, 1, somebody(ttl=5.0))
    os.utime(f"{tmp_path}/{mine.name}", (0, time.time() - 50))
    assert slots.look(1).holder is not None
    os.utime(f"{tmp_path}/{mine.name}", (0, time.time() - 110))
    assert slots.look(1).holder is None


def test_what_is_not_understood_is_held_by_somebody(tmp_path: Any) -> None:
    place = Folder(str(tmp_path))
    place.put("holds/x/1/1", [b"of a later version"])
    seen = Holds(place, "holds/x").look(1)
    assert seen.holder is not None and seen.holder.identity == ""


@pytest.mark.parametrize("count", [1, 3])
def test_never_more_holders_than_slots(tmp_path: Any, count: int) -> None:
    """Many take, hold for a moment, and let go, at the same time."""
    place = Folder(str(tmp_path))
    holding: set[str] = set()
    most, had, wrong = 0, 0, []
    lock = threading.Lock()
    end = time.monotonic() + 1.5

    def want(name: str) -> None:
        nonlocal most, had
        slots = Holds(place, "pools/p")
        while time.monotonic() < end:
            for slot in range(1, count + 1):
                seen = slots.look(slot)
                hold = slots.take(slot, seen, somebody(name)) if seen.holder is None else None
                if hold is None:
                    continue
                with lock:
                    holding.add(name)
                    most, had = max(most, len(holding)), had + 1
                time.sleep(0.001)
                with lock:
                    holding.discard(name)
                if not slots.renew(hold):
                    wrong.append(name)
                slots.release(hold)
                break

    threads = [threading.Thread(target=want, args=(f"j{n}",)) for n in range(6)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert 0 < most <= count and had > 10 and not wrong


def test_old_numbers_and_old_leases_go(tmp_path: Any, store: Any, save: Callable[..., Any]) -> None:
    slots = Holds(store.backend, "holds/x")
    save(store, "job", [b"data"])
    for _ in range(holds.KEEP + 5):
        slots.release(taken(slots, 1, somebody()))
    names = [name for name in store.backend.list("holds/x/1") if name.isdigit()]
    assert len(names) <= holds.KEEP + 2
    collect.collect(store.backend)
    assert store.backend.list("holds/x/1")
    for name in store.backend.list("holds/x/1"):
        os.utime(store.backend.path(f"holds/x/1/{name}"), (0, time.time() - 25 * lease.EXPIRY))
    collect.collect(store.backend)
    assert not store.backend.list("holds/x/1")


def test_a_later_holder_may_say_more(tmp_path: Any) -> None:
    """Fields may be added."""
    plain = {**msgspec.to_builtins(somebody()), "more": 1}
    assert msgspec.convert(plain, Holder).identity == "a"
