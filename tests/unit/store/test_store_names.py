"""Names of checkpoints, numbers that are never given twice, what there is."""

from __future__ import annotations

import os
from typing import Any

import pytest

from torpor.model.errors import CheckpointFailed, NotFound, TorporError, UsageError
from torpor.store import Store, names, numbers, open_store
from torpor.store.locations import default as default_location


@pytest.mark.parametrize(
    ("wanted", "number"),
    [("", 9), ("9", 9), ("2", 2), ("-0", 9), ("-1", 5), ("-3", 1)],
)
def test_numbers(wanted: str, number: int) -> None:
    assert names.pick_number("j", wanted, [5, 1, 9, 2]) == number


@pytest.mark.parametrize("wanted", ["3", "-4", "0", "10"])
def test_numbers_that_are_not_there(wanted: str) -> None:
    with pytest.raises(NotFound) as error:
        names.pick_number("j", wanted, [5, 1, 9, 2])
    assert f"j@{wanted}" in str(error.value) and "j@9, j@5, j@2, j@1" in str(error.value)


@pytest.mark.parametrize("name", ["j@", "j@x", "j@1.5", "j@--1", "j@1@2", "a b", "@@", "j@ 1", "../x", "j@²"])
def test_what_is_not_a_name(name: str) -> None:
    with pytest.raises(UsageError) as error:
        names.parse(name)
    if name == "j@":
        return
    assert not isinstance(error.value, NotFound)


def test_names(store: Store, save: Any) -> None:
    with pytest.raises(NotFound, match="there are no checkpoints"):
        os.mkdir(store.location)
        store.resolve("")
    for _ in range(3):
        save(store, "train", [b"x"])
    wanted = {None: 3, "": 3, "train": 3, "@2": 2, "@-1": 2, "train@1": 1}
    assert {name: store.resolve(name).number for name in wanted} == wanted
    save(store, "my.Job_2-x", [b"x"])
    assert store.resolve("my.Job_2-x").job == "my.Job_2-x"
    for name in ("", None, "@1"):
        with pytest.raises(NotFound, match=r"which job\? there are my.Job_2-x, train in /"):
            store.resolve(name)
    with pytest.raises(NotFound, match=r"'tarin'.*there are my.Job_2-x, train"):
        store.resolve("tarin")
    store.remove("my.Job_2-x", 1)
    assert store.resolve("").job == "train"  # the only one that has checkpoints


def test_long_lists_are_cut() -> None:
    assert names.some([f"j{i}" for i in range(20)]).endswith("j7 and 12 more")


def test_a_number_is_never_given_twice(store: Store, save: Any) -> None:
    for _ in range(3):
        save(store, "j", [b"x"])
    store.remove("j", 3)
    with pytest.raises(NotFound):
        store.remove("j", 3)
    assert save(store, "j", [b"x"])[0].number == 4
    for number in (1, 2, 4):
        store.remove("j", number)
    assert store.list() == []
    store.collect()
    assert save(open_store(store.location), "j", [b"x"])[0].number == 5


def test_claims_do_not_pile_up(store: Store, save: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(numbers, "KEEP", 3)
    for _ in range(6):
        save(store, "j", [b"x"])
    for number in range(1, 7):
        store.remove("j", number)
    store.collect()
    assert sorted(store.backend.list("claims/j")) == ["4", "5", "6"]
    assert save(store, "j", [b"x"])[0].number == 7


def test_list_is_in_order(store: Store, save: Any) -> None:
    for job in ["b", "a"] + ["b"] * 10:
        save(store, job, [b"x"])
    assert [(i.job, i.number) for i in store.list()] == [("a", 1)] + [("b", n) for n in range(1, 12)]
    assert [i.number for i in store.list("a")] == [1]
    assert store.list("unknown") == []


def test_a_long_label_is_listed(store: Store, save: Any) -> None:
    save(store, "j", [b"x"], long="y" * 10_000)
    assert store.list()[0].label == {"long": "y" * 10_000}


def test_where_the_default_store_is(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TORPOR_STORE", "XDG_STATE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", "/home/me")
    assert default_location() == "/home/me/.local/state/torpor/store"
    monkeypatch.setenv("XDG_STATE_HOME", "/state")
    assert default_location() == "/state/torpor/store"
    monkeypatch.setenv("TORPOR_STORE", "/elsewhere")
    assert open_store(None).location == "/elsewhere"


def test_a_default_store_that_is_not_there_is_empty(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    monkeypatch.setenv("TORPOR_STORE", str(tmp_path / "none"))
    store = open_store()
    assert store.list() == [] and store.collect() == (0, 0)
    with pytest.raises(NotFound):
        store.resolve("")
    with pytest.raises(NotFound):
        store.load("j", 1)
    assert not os.path.exists(tmp_path / "none")


def test_a_store_that_was_named_and_is_not_there(tmp_path: Any) -> None:
    with pytest.raises(NotFound, match=r"no store at .*/typo"):
        open_store(str(tmp_path / "typo")).list()


def read_only(store: Store) -> bool:
    """Make the store read-only; False if we are root, whom modes do not stop."""
    if os.geteuid() == 0:
        return False
    for above, _, _ in os.walk(store.location):
        os.chmod(above, 0o500)
    return True


def test_a_read_only_store_can_be_read(store: Store, save: Any) -> None:
    save(store, "j", [b"x"])
    if not read_only(store):
        pytest.skip("root writes everywhere")
    again = open_store(store.location)
    assert bytes(again.load("j", 1).get(0)) == b"x"
    try:
        with pytest.raises(CheckpointFailed, match="Permission denied"):
            again.begin("j")
        with pytest.raises(TorporError, match="Permission denied"):
            again.remove("j", 1)
    finally:
        for above, _, _ in os.walk(store.location):
            os.chmod(above, 0o700)  # whoever has made the folder removes it


def test_a_place_that_cannot_be_made() -> None:
    with pytest.raises((CheckpointFailed, UsageError), match="/proc/nothing/here"):
        open_store("/proc/nothing/here").begin("j")
