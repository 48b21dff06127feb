"""Checkpoints that several hosts have written a part of each."""

from __future__ import annotations

import os
import time

import pytest

from torpor.image.seal import Opening
from torpor.model.errors import Damaged, NotFound, UsageError
from torpor.store import Store, open_store, parts, root
from torpor.store.copying import copy
from torpor.store.load import Load
from torpor.store.parts import Part
from torpor.store.root import RootInfo


def write(store: Store, names: list[str], job: str = "j", commit: bool = True) -> RootInfo | None:
    """A checkpoint of these parts, each with a chunk that is its own and one that is in all of them."""
    whole = store.begin(job)
    number = whole.number()
    written = []
    for name in names:
        part = store.begin_part(job, number, name)
        part.put(os.urandom(5000))
        part.put(b"in all of them" * 500)
        part.commit(name.encode(), {"host": name})
        assert part.written is not None
        written.append(part.written)
    if not commit:
        whole.abort()
        return None
    return whole.commit(b"the whole", {}, written)


def _open(store: Store, info: RootInfo, part: Part) -> Load:
    return store.load(info.job, info.number, Opening(untrusted=True), part)


def test_they_are_one(store: Store) -> None:
    info = write(store, ["h0", "h1"])
    assert info is not None
    assert store.list() == [info] == store.list("j")
    assert [part.name for part in info.parts] == ["h0", "h1"]
    assert info.bytes_total == 2 * (5000 + 14 * 500)
    for part in info.parts:
        load = _open(store, info, part)
        assert load.body == part.name.encode()
        assert sum(len(load.get(ref)) for ref in load.refs) == part.bytes_total
    assert store.resolve(None) == info


def test_a_part_of_another_attempt(store: Store) -> None:
    first, second = write(store, ["h0"]), write(store, ["h0"])
    assert first is not None and second is not None
    there = store.backend
    one, two = (root.object_name("j+h0", info.number) for info in (first, second))
    data = there.get(one)
    there.delete(two)
    there.put(two, [data])
    with pytest.raises(Damaged, match="not the part that belongs there"):
        _open(store, second, second.parts[0])
    there.delete(two)
    with pytest.raises(NotFound):
        _open(store, second, second.parts[0])


def test_without_a_root_they_are_nothing(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = write(store, ["h0"])
    write(store, ["h0", "h1"], commit=False)
    assert store.list() == [kept]
    store.collect()
    assert "2" in store.backend.list("roots/j+h1"), "they may be of a save that is about to write its root"
    _later(store, monkeypatch)
    store.collect()
    assert "2" not in store.backend.list("roots/j+h1") + store.backend.list("roots/j+h0")
    assert kept is not None
    load = _open(store, kept, kept.parts[0])
    assert all(load.get(ref) for ref in load.refs)


def test_while_somebody_saves(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts that were written long ago, and whose root comes only now, are not swept away."""
    whole = store.begin("j")
    part = store.begin_part("j", whole.number(), "h0")
    part.put(b"x" * 100)
    part.commit(b"", {})
    _later(store, monkeypatch, keep=whole)
    store.collect()
    assert part.written is not None and part.written.name == "h0"
    info = whole.commit(b"", {}, [part.written])
    assert bytes(_open(store, info, info.parts[0]).get(0)) == b"x" * 100


def _later(store: Store, monkeypatch: pytest.MonkeyPatch, keep: object = None) -> None:
    """Two hours later, as the objects' times tell; whoever still saves has shown so."""
    from torpor.store import collect

    now = time.time() + 7200
    monkeypatch.setattr(collect, "_clock", lambda backend: now)
    if keep is not None:
        monkeypatch.setattr(collect, "_tidy", lambda backend, when, busy: None)  # would take its lease away
        monkeypatch.setattr(collect, "_running", lambda backend, when: set(backend.list("leases")))


def test_removed_together(store: Store) -> None:
    info = write(store, ["h0", "h1"])
    assert info is not None
    other = write(store, ["h0"], job="j2")
    store.remove("j", info.number)
    assert store.list() == [other]
    assert not store.backend.list("roots/j+h0") + store.backend.list("roots/j+h1")
    assert store.backend.list("roots/j2+h0")


def test_copied_together(store: Store, place: str) -> None:
    info = write(store, ["h0", "h1"])
    assert info is not None
    target = open_store(f"{place}-copy")
    assert copy(store, "j", info.number, target) > 10000
    assert copy(store, "j", info.number, target) == -1
    for part in info.parts:
        load = _open(target, info, part)
        assert all(load.get(ref) for ref in load.refs)


@pytest.mark.parametrize("name", ["", "a/b", "a+b", "x" * 101])
def test_impossible_names(store: Store, name: str) -> None:
    with pytest.raises(UsageError):
        store.begin_part("j", 1, name)


def test_orphans() -> None:
    found = {"a": [1, 3], "a+h0": [1, 2, 3], "a+h1": [3, 4], "b+h0": [1]}
    assert parts.orphans(found) == [("a+h0", 2), ("a+h1", 4), ("b+h0", 1)]
