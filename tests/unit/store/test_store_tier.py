"""A fast place in front of a slow one."""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from torpor.model.errors import TorporError
from torpor.store import Store, behind, open_store, pack
from torpor.store.drain import drain
from torpor.store.folder import Folder
from torpor.store.tier import Tier, find

A, B, C, D = (os.urandom(70_000) for _ in range(4))

ORIGINALS = {name: getattr(Folder, name) for name in ("get", "put", "stat", "create", "list", "delete")}


@pytest.fixture(autouse=True)
def _small_packs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(pack, "FULL", 64 << 10)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


@pytest.fixture
def fast(place: str) -> str:
    return f"{place}fast"


@pytest.fixture
def slow(place: str) -> str:
    return f"{place}slow"


def tier_of(store: Store) -> Tier:
    tier = find(store.backend)
    assert tier is not None
    return tier


def until(condition: Callable[[], Any]) -> None:
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_a_drain_makes_the_slow_place_whole(fast: str, slow: str, save: Any, check: Any) -> None:
    store = open_store(f"tier:{fast},{slow}")
    save(store, "j", [A, B])
    save(store, "j", [B, C])
    assert store.waiting() == {("j", 1), ("j", 2)}
    assert open_store(slow).list() == []
    assert drain(tier_of(store)) == 2
    both = {("j", 1): [A, B], ("j", 2): [B, C]}
    check(open_store(slow), both)
    assert store.waiting() == set()
    # What the newest one needs stays on the fast place, the rest has left it.
    assert len(os.listdir(f"{fast}/packs")) == 2 and len(os.listdir(f"{slow}/packs")) == 3
    check(store, both)
    assert save(store, "j", [A, B, C])[0].bytes_new == 0
    assert drain(tier_of(store)) == 1
    check(open_store(slow), {**both, ("j", 3): [A, B, C]})


def test_the_fast_place_is_lost(fast: str, slow: str, save: Any, check: Any) -> None:
    store = open_store(f"tier:{fast},{slow}")
    save(store, "j", [A])
    drain(tier_of(store))
    save(store, "j", [B])
    shutil.rmtree(fast)
    store = open_store(f"tier:{fast},{slow}")
    check(store, {("j", 1): [A]})
    info, _ = save(store, "j", [A, C])
    assert info.bytes_new < 80_000  # the names of chunks are the same
    drain(tier_of(store))
    check(open_store(slow), {("j", 1): [A], ("j", info.number): [A, C]})


def test_what_was_removed_does_not_come_back(fast: str, slow: str, save: Any, check: Any) -> None:
    """A checkpoint is removed between any two steps of its drain."""
    for step in range(1, 100):
        here = f"tier:{fast}{step},{slow}{step}"
        save(open_store(here), "j", [A])
        save(open_store(here), "j", [B])
        tier = tier_of(open_store(here))
        count = 0

        def look(name: str, step: int = step, here: str = here) -> Callable[..., Any]:
            call = ORIGINALS[name]

            def looked(self: Folder, *arguments: Any, **more: Any) -> Any:
                nonlocal count
                count += 1
                if count == step:
                    with pytest.MonkeyPatch.context() as undone:
                        for each, original in ORIGINALS.items():
                            undone.setattr(Folder, each, original)
                        open_store(here).remove("j", 1)
                        open_store(here).collect()
                return call(self, *arguments, **more)

            return looked

        with pytest.MonkeyPatch.context() as patch:
            for each in ORIGINALS:
                patch.setattr(Folder, each, look(each))
            drain(tier)
        if count < step:
            assert step > 20
            return
        drain(tier_of(open_store(here)))
        check(open_store(f"{slow}{step}"), {("j", 2): [B]})
        check(open_store(here), {("j", 2): [B]})
        open_store(here).collect()
        assert len(os.listdir(f"{slow}{step}/packs")) == 1
    raise AssertionError("it never ended")


def test_killed_at_every_step_of_a_drain(fast: str, slow: str, save: Any, check: Any, faults: Any) -> None:
    for step in range(1, 200):
        here = f"tier:{fast}{step},{slow}{step}"
        save(open_store(here), "j", [A, B])
        save(open_store(here), "k", [B, C])
        expected = {("j", 1): [A, B], ("k", 1): [B, C]}
        pid = os.fork()
        if not pid:
            faults(step, "die")
            drain(tier_of(open_store(here)))
            os._exit(0)
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        check(open_store(here), expected)
        listed = {(info.job, info.number) for info in open_store(f"{slow}{step}").list()}
        check(open_store(f"{slow}{step}"), {name: expected[name] for name in listed})
        drain(tier_of(open_store(here)))
        check(open_store(f"{slow}{step}"), expected)
        if status == 0:
            assert step > 20
            return
        assert status == -signal.SIGKILL
    raise AssertionError("it never ended")


class Away(Folder):
    """A slow place that cannot be reached while `away` is set."""

    away = False

    def __getattribute__(self, name: str) -> Any:
        if name in ("put", "get", "list", "stat", "create", "delete", "prepare", "touch") and Away.away:
            raise OSError(5, "no route to host", "slow")
        return super().__getattribute__(name)


def test_a_save_does_without_the_slow_place(
    fast: str, slow: str, save: Any, check: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def opened() -> Store:
        return Store(Tier(Folder(fast), Away(slow)))

    save(opened(), "j", [A])
    drain(tier_of(opened()))
    save(opened(), "j", [B])
    monkeypatch.setattr(Away, "away", True)
    info, _ = save(opened(), "j", [B, C])
    assert info.number == 3
    with pytest.raises(TorporError, match="no route to host"):
        opened().collect()
    with pytest.raises(OSError, match="no route to host"):
        drain(tier_of(opened()))
    monkeypatch.setattr(Away, "away", False)
    assert drain(tier_of(opened())) == 2
    check(opened(), {("j", 1): [A], ("j", 2): [B], ("j", 3): [B, C]})
    check(open_store(slow), {("j", 1): [A], ("j", 2): [B], ("j", 3): [B, C]})


def test_a_process_drains_behind(fast: str, slow: str, save: Any, check: Any) -> None:
    here = f"tier:{fast},{slow}"
    store = open_store(here)
    save(store, "j", [A, B])
    behind.start(here)
    until(lambda: store.waiting() == set())
    check(open_store(slow), {("j", 1): [A, B]})
    assert behind.trouble(here) == ""


def test_many_drains_at_once_are_one(fast: str, slow: str, save: Any, check: Any) -> None:
    here = f"tier:{fast},{slow}"
    store = open_store(here)
    expected = {}
    for number in range(1, 6):
        chunk = os.urandom(70_000)
        save(store, "j", [chunk])
        expected["j", number] = [chunk]
        behind.start(here)
        behind.start_thread(here)
    until(lambda: store.waiting() == set())
    check(open_store(slow), expected)


def test_what_keeps_it_from_draining_is_said(fast: str, slow: str, save: Any) -> None:
    here = f"tier:{fast},{slow}"
    save(open_store(here), "j", [A])
    shutil.rmtree(slow)
    with open(slow, "w"):
        pass
    behind.run(here, ())
    assert "Not a directory" in behind.trouble(here)
    os.unlink(slow)
    os.makedirs(slow)
    behind.run(here, ())
    assert behind.trouble(here) == ""
    assert open_store(here).waiting() == set()


def test_other_locations_are_not_drained(fast: str) -> None:
    for location in (fast, f"stripe:{fast},{fast}2", "s3://bucket/x", "memory:x", "", "word"):
        assert not behind.is_tier(location)
