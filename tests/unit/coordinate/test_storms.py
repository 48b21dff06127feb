"""The coordinator and the hosts together, whatever the network, the hosts and the coordinators do."""

from __future__ import annotations

import os
import random
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

from world import DEAD, ENDED, NONE, RUNNING, World

from torpor.coordinate import words
from torpor.coordinate.phases import Kind

ACTIONS = (
    "kill", "revive", "restart", "destroy", "cut", "mend", "lost", "empty", "arrive", "elect", "bury", "succeed",
    "checkpoint", "stop",
)  # fmt: skip
RESTARTS = tuple(deed for deed in ACTIONS if deed not in ("checkpoint", "stop", "arrive"))

Deeds = list[tuple[float, str, int]]

storms = st.fixed_dictionaries(
    {
        "hosts": st.integers(1, 5),
        "seed": st.integers(0, 1 << 32),
        "loss": st.sampled_from((0.0, 0.02, 0.1, 0.4)),
        "double": st.sampled_from((0.0, 0.3)),
        "delay": st.sampled_from((0.01, 0.5, 4.0)),
        "breaks": st.sampled_from((0.0, 0.0, 0.05)),
        "refuses": st.sampled_from((0.0, 0.0, 0.5)),
    }
)
deeds = st.lists(st.tuples(st.floats(0.0, 20.0), st.sampled_from(ACTIONS), st.integers(0, 7)), max_size=14)


def made_up(seed: int, actions: tuple[str, ...]) -> tuple[dict, Deeds, float]:
    """A storm from a number: hypothesis prefers simple ones, these are not."""
    chance = random.Random(seed)
    how = {
        "hosts": chance.randint(1, 5),
        "seed": seed,
        "loss": chance.choice((0.0, 0.0, 0.02, 0.1, 0.4)),
        "double": chance.choice((0.0, 0.3)),
        "delay": chance.choice((0.01, 0.5, 4.0)),
        "breaks": chance.choice((0.0, 0.0, 0.05)),
        "refuses": chance.choice((0.0, 0.0, 0.5)),
    }
    slow = chance.choice((2.0, 6.0, 12.0))
    what = [
        (chance.uniform(0.0, slow) * chance.random(), chance.choice(actions), chance.randint(0, 7))
        for _ in range(chance.randint(0, 10))
    ]
    return how, what, chance.choice((30.0, 120.0))


def act(world: World, deed: str, number: int) -> None:
    names = list(world.machines)
    name = names[number % len(names)]
    if deed in ("kill", "revive", "destroy", "lost", "empty"):
        getattr(world, deed)(name)
    elif deed == "restart":
        world.kill(name)
        world.revive(name)
    elif deed in ("cut", "mend"):
        world.machines[name].cut_off = deed == "cut"
    elif deed == "arrive":
        world.arrive(f"h{len(names)}")
    elif deed == "elect":
        world.elect()
    elif deed in ("bury", "succeed"):
        world.bury()
        if deed == "succeed":
            world.elect()
    else:
        world.checkpoint(f"ask {len(world.asks)}", deed == "stop")


def storm(how: dict, what: Deeds, last: float = 30.0, empty: bool = False) -> World:
    world = World(empty=empty, **how)
    world.run(5.0)
    if empty:
        hosts = list(world.machines)
        plan = tuple((f"old{number}", hosts[number // 2]) for number in range(2 * len(hosts)))
        world.ask(words.AskRestart("restart", "job@1", plan))
    else:
        world.checkpoint("first", stop=how["seed"] % 3 == 0)
    for seconds, deed, number in what:
        world.run(seconds)
        act(world, deed, number)
    world.run(last)
    world.calm()
    world.judge()
    return world


def judge_checkpoints(world: World) -> None:
    """Afterwards the job can be saved again, if it is still there."""
    ended = any(world.kinds[number] is Kind.STOP for number in world.roots)
    dead = any(machine.state == DEAD for machine in world.machines.values())
    there = any(machine.state == RUNNING for machine in world.machines.values())
    world.checkpoint("afterwards")
    world.run(400.0)
    world.judge()
    answer = world.answers["afterwards"][-1]
    assert answer.ok or ended or dead or not there, answer


def judge_restart(world: World) -> None:
    """It runs everywhere or there is nothing of it."""
    answer = world.answers["restart"][-1]
    states = {name: state for name, state in world.state().items() if state != DEAD}
    bereft = [m.name for m in world.machines.values() if m.brain is not None and m.brain.bereft]
    if answer.ok:
        assert all(state in (RUNNING, ENDED) or name in bereft for name, state in states.items()), answer
    else:
        assert all(state in (NONE, ENDED) for state in states.values()), answer


@settings(max_examples=150)
@given(how=storms, what=deeds)
def test_all_or_nothing(how: dict, what: Deeds) -> None:
    """Whatever happens: a checkpoint is whole and of one moment or does not exist, nobody is left frozen, everybody
    who asked is told what is true, and afterwards the job can be saved again."""
    judge_checkpoints(storm(how, what))


@settings(max_examples=100)
@given(how=storms, what=deeds.map(lambda some: [one for one in some if one[1] in RESTARTS]))
def test_a_restart_is_all_or_nothing(how: dict, what: Deeds) -> None:
    judge_restart(storm(how, what, empty=True))


def checkpoints(seeds: range) -> None:
    for seed in seeds:
        how, what, last = made_up(seed, ACTIONS)
        try:
            judge_checkpoints(storm(how, what, last))
        except AssertionError as error:
            raise AssertionError(f"storm {seed}: {error}") from error


def restarts(seeds: range) -> None:
    for seed in seeds:
        how, what, last = made_up(seed, RESTARTS)
        try:
            judge_restart(storm(how, what, last, empty=True))
        except AssertionError as error:
            raise AssertionError(f"storm {seed}: {error}") from error


def test_many_storms() -> None:
    checkpoints(range(500))
    restarts(range(350))


@pytest.mark.exam
def test_very_many_storms() -> None:
    checkpoints(range(500, 20000))
    restarts(range(350, 12000))


@settings(max_examples=50)
@given(
    hosts=st.integers(1, 12), seed=st.integers(0, 1 << 32), stop=st.booleans(), delay=st.sampled_from((0.01, 1.0)),
    loss=st.sampled_from((0.0, 0.02)),
)  # fmt: skip
def test_without_faults_it_always_commits(hosts: int, seed: int, stop: bool, delay: float, loss: float) -> None:
    """Messages that are lost are no fault, unless so many are lost in a row that a host counts as silent: of ten in a
    hundred that happens in 1 of 300 worlds."""
    world = World(hosts, seed, delay=delay, loss=loss, double=loss)
    world.run(30.0)
    world.checkpoint("one", stop)
    world.run(200.0)
    assert world.answers["one"][0].ok, world.answers
    assert list(world.roots) == [1] and len(world.roots[1]) == hosts
    assert set(world.state().values()) == {ENDED if stop else RUNNING}
