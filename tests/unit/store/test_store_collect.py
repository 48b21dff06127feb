"""What nobody refers to goes; what anybody refers to, or is about to, stays."""

from __future__ import annotations

import os
import random
from typing import Any

import pytest

from torpor.model.errors import CheckpointFailed
from torpor.store import Store, folder, lease, open_store, pack
from torpor.store.collect import step

A, B, C = (os.urandom(70_000) for _ in range(3))


def packs(store: Store) -> int:
    return len(store.backend.list("packs"))


def test_what_is_not_needed_goes_at_once(store: Store, save: Any, check: Any) -> None:
    save(store, "j", [A])
    save(store, "j", [A, B])
    save(store, "j", [C])
    assert packs(store) == 3
    assert store.collect() == (0, 0)
    store.remove("j", 2)
    count, size = store.collect()
    assert count == 1 and 70_000 < size < 71_000
    check(store, {("j", 1): [A], ("j", 3): [C]})
    store.remove("j", 1)
    store.remove("j", 3)
    assert store.collect()[0] == 2
    assert packs(store) == 0
    assert save(store, "j", [A])[0].bytes_new == 70_000  # not taken for stored
    check(store, {("j", 4): [A]})


def test_a_running_save_keeps_what_it_relies_on(store: Store, save: Any, check: Any) -> None:
    save(store, "j", [A])
    saving = store.begin("j")
    assert saving.put(A) == 0  # found in the store
    store.remove("j", 1)
    for _ in range(3):
        assert store.collect() == (0, 0)
    saving.commit(b"", {})
    assert store.collect() == (0, 0)
    check(store, {("j", 2): [A]})


def test_a_running_saves_own_packs_stay(store: Store, check: Any) -> None:
    saving = store.begin("j")
    refs = [saving.put(chunk) for chunk in (A, B, C)]  # each fills a pack
    while packs(store) < 3:
        pass
    store.collect()
    store.collect()
    saving.commit(b"", {})
    store.collect()
    check(store, {("j", 1): [A, B, C]})
    assert refs == [0, 1, 2]


def test_a_save_does_not_rely_on_what_is_named_in_a_warrant(
    store: Store, save: Any, check: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "EXPIRY", 0.5)  # so that the pack is old enough to be named while a save runs
    save(store, "j", [A])
    store.remove("j", 1)
    path = f"{store.location}/packs/{store.backend.list('packs')[0]}"
    os.utime(path, (1, 1))
    early = store.begin("early")
    assert store.collect() == (0, 0)
    assert len(lease.warrants(store.backend)) == 1
    late = store.begin("late")
    late.put(A)  # stored anew
    early.put(A)  # relies on the pack
    early.commit(b"", {})
    assert store.collect() == (0, 0)
    assert late.commit(b"", {}).bytes_new == 70_000
    store.collect()
    check(store, {("early", 1): [A], ("late", 1): [A]})
    store.remove("early", 1)
    assert store.collect()[0] == 1
    check(store, {("late", 1): [A]})
    assert store.backend.list("warrants") == []


def test_left_overs_of_a_killed_save_go_when_it_is_long_dead(store: Store, save: Any, check: Any) -> None:
    save(store, "j", [A])
    saving = store.begin("j")
    saving.put(B)
    saving._finish_packs()  # and here it dies
    assert packs(store) == 2
    assert store.collect() == (0, 0)
    for kind in ("leases", "packs"):
        for name in store.backend.list(kind):
            os.utime(f"{store.location}/{kind}/{name}", (1, 1))
    assert store.collect()[0] == 1
    assert store.backend.list("leases") == []
    check(store, {("j", 1): [A]})


def test_a_save_that_was_taken_for_dead_does_not_commit(store: Store, save: Any, check: Any) -> None:
    save(store, "j", [A])
    saving = store.begin("j")
    saving.put(A)
    for name in store.backend.list("leases"):
        os.utime(f"{store.location}/leases/{name}", (1, 1))
    store.collect()
    with pytest.raises(CheckpointFailed, match="stood still"):
        saving.commit(b"", {})
    check(store, {("j", 1): [A]})


class Play:
    """Saves, removals and collections interleaved at random; collections are interrupted by the others
    between any two of their calls to the back end."""

    def __init__(self, place: str, seed: int) -> None:
        self.dice = random.Random(seed)
        os.mkdir(place)
        self.store = open_store(place)
        self.chunks = [bytes([i]) * 50 + os.urandom(200) for i in range(6)]
        self.running: list[tuple[Any, list[bytes]]] = []
        self.expected: dict[tuple[str, int], list[bytes]] = {}

    def step(self) -> None:
        kind = self.dice.randrange(4)
        if kind == 0:
            self.running.append((open_store(self.store.location).begin("j"), []))
        elif kind == 1 and self.running:
            saving, put = self.dice.choice(self.running)
            chunk = self.dice.choice(self.chunks)
            saving.put(chunk)
            if chunk not in put:
                put.append(chunk)
        elif kind == 2 and self.running:
            self.commit(self.dice.randrange(len(self.running)))
        elif kind == 3 and self.expected:
            gone = self.dice.choice(sorted(self.expected))
            del self.expected[gone]
            self.store.remove(*gone)

    def commit(self, which: int) -> None:
        saving, put = self.running.pop(which)
        self.expected["j", saving.commit(b"", {}).number] = put

    def collect(self) -> None:
        collecting = open_store(self.store.location)
        collecting.backend = Between(collecting.backend, self)
        collecting.collect()


class Between:
    """A back end with something happening before some of its calls."""

    def __init__(self, backend: Any, play: Play) -> None:
        self._backend, self._play = backend, play

    def __getattr__(self, name: str) -> Any:
        if self._play.dice.random() < 0.3:
            self._play.step()
        return getattr(self._backend, name)


@pytest.mark.parametrize("seed", range(25))
def test_no_order_of_steps_loses_a_chunk(seed: int, place: str, check: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pack, "FULL", 1)
    play = Play(place, seed)
    for _ in range(40):
        play.step()
        if play.dice.random() < 0.3:
            play.collect()
    while play.running:
        play.commit(0)
    check(play.store, play.expected)
    play.store.collect()
    play.store.collect()
    check(play.store, play.expected)
    used = {name for i in play.expected for name in play.store.load(*i)._table.packs}
    assert len(used) == packs(play.store)


@pytest.mark.parametrize(
    ("age", "noted", "running", "quiet", "lag", "what"),
    [
        # a place that is never out of date
        (0, None, set(), None, 0, "note"),
        (0, [], {"m"}, None, 0, "execute"),
        (0, ["l"], {"l", "m"}, None, 0, "wait"),
        (0, ["l"], {"m"}, None, 0, "execute"),
        # one that may be 10 seconds late
        (19, None, set(), None, 10, "wait"),
        (20, None, {"l"}, None, 10, "note"),
        (99, ["l"], {"l"}, None, 10, "wait"),
        (99, ["l"], {"m"}, None, 10, "quiet"),
        (99, ["l"], {"m"}, 9, 10, "wait"),
        (99, ["l"], {"m"}, 10, 10, "execute"),
    ],
)
def test_what_comes_next_for_a_warrant(
    age: float, noted: list[str] | None, running: set[str], quiet: float | None, lag: float, what: str
) -> None:
    assert step(age, noted, running, quiet, lag) == what


def test_a_place_that_may_be_out_of_date(store: Store, save: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folder.Folder, "lag", lambda _: 100.0)
    save(store, "j", [A])
    store.remove("j", 1)

    def later(seconds: float) -> tuple[int, int]:
        for name in store.backend.list("warrants"):
            path = f"{store.location}/warrants/{name}"
            os.utime(path, (1, os.stat(path).st_mtime - seconds))
        return store.collect()

    assert [later(s)[0] for s in (0, 150, 0, 60, 0, 60, 60)] == [0, 0, 0, 0, 0, 0, 1]
    assert store.backend.list("warrants") == [] and packs(store) == 0
