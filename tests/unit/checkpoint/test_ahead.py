"""Which pages are copied ahead of a program, and when it is let be."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest

from torpor.checkpoint import ahead
from torpor.checkpoint.ahead import SHORT, STEP, Ahead, backwards
from torpor.linux import proc, uio

MIB = 1 << 20
STEPS = list(range(30 * MIB, -1, -STEP))


class World:
    """Processes 1 and 2, of which some write, on a machine with two processors. done: (copy, address) of each step."""

    def __init__(self, patch: pytest.MonkeyPatch, *writing: int) -> None:
        self.running, self.done = 2, list[tuple[int, int]]()
        self.writing = {pid: itertools.count(0, 10**6) for pid in writing}
        patch.setattr(ahead, "_faults", lambda pid: next(self.writing[pid]) if pid in self.writing else 7)
        patch.setattr(ahead.os, "sched_getaffinity", lambda pid: {0, 1})
        patch.setattr(proc, "running", lambda: self.running)
        patch.setattr(uio, "unshare", lambda pid, address, size: self.done.append((pid, address)))
        patch.setattr(ahead, "PATIENCE", 0.02)

    def go(self, go_on: Callable[[], bool] = lambda: True) -> None:
        runs = [(0, 30 * MIB), (30 * MIB, 32 * MIB)]
        Ahead({1: 11, 2: 12}).go({1: runs, 2: runs}, (), go_on)


def test_from_the_end_in_steps_of_huge_pages() -> None:
    runs = [(STEP - SHORT, 2 * STEP + SHORT), (5 * STEP, 5 * STEP + SHORT - 1), (6 * STEP, 6 * STEP + SHORT)]
    assert list(backwards(runs)) == [
        (6 * STEP, 6 * STEP + SHORT), (2 * STEP, 2 * STEP + SHORT), (STEP, 2 * STEP), (STEP - SHORT, STEP),
    ]  # fmt: skip


def test_nothing_is_done_for_who_does_not_write(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch)
    world.go()
    assert world.done == []


def test_all_is_done_for_who_does(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch, 2)
    world.go()
    assert world.done == [(12, at) for at in STEPS]


def test_several_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch, 1, 2)
    world.go()
    assert world.done == [(copy, at) for at in STEPS for copy in (11, 12)]


def test_who_stops_writing_is_let_be(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch, 1)

    def unshare(pid: int, address: int, size: int) -> None:
        world.done.append((pid, address))
        world.writing.clear()
        ahead.time.sleep(ahead.LOOK)

    monkeypatch.setattr(uio, "unshare", unshare)
    world.go()
    assert 0 < len(world.done) < 16


@pytest.mark.parametrize(("processors", "running"), [(2, 3), (1, 1)])
def test_not_where_no_processor_is_idle(processors: int, running: int, monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch, 1)
    monkeypatch.setattr(ahead.os, "sched_getaffinity", lambda pid: set(range(processors)))
    monkeypatch.setattr(uio, "unshare", lambda *_: (world.done.append((0, 0)), ahead.time.sleep(ahead.LOOK)))
    world.running = running
    world.go()
    assert len(world.done) < ahead.CROWDED


def test_not_where_memory_is_short(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch, 1)
    world.go(lambda: False)
    assert world.done == []


def test_little_is_not_worth_it(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch, 1)
    Ahead({1: 11}).go({1: [(0, ahead.LEAST - 1)]}, (), lambda: True)
    assert world.done == []
