"""The coordinator and the hosts together, whatever the network, the hosts and the coordinators do."""

from __future__ import annotations

import os
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

from world import DEAD, NONE, RUNNING, World

from torpor.coordinate import words
from torpor.coordinate.phases import Kind

MANY = int(os.environ.get("TORPOR_STORMS", "0"))

ACTIONS = (
    "kill", "revive", "destroy", "cut", "mend", "lost", "empty", "arrive", "elect", "bury", "checkpoint", "stop",
)  # fmt: skip

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


def act(world: World, deed: str, number: int) -> None:
    names = list(world.machines)
    name = names[number % len(names)]
    if deed in ("kill", "revive", "destroy", "lost", "empty"):
        getattr(world, deed)(name)
    elif deed in ("cut", "mend"):
        world.machines[name].cut_off = deed == "cut"
    elif deed == "arrive":
        world.arrive(f"h{len(names)}")
    elif deed == "elect":
        world.elect()
    elif deed == "bury":
        world.bury()
    else:
        world.checkpoint(f"ask {len(world.asks)}", deed == "stop")


def storm(how: dict, what: list[tuple[float, str, int]], empty: bool = False) -> World:
    world = World(empty=empty, **how)
    world.run(5.0)
    if empty:
        hosts = list(world.machines)
        plan = tuple((f"old{number}", hosts[number // 2]) for number in range(2 * len(hosts)))
        world.ask(words.AskRestart("restart", "job@1", plan))
    else:
        world.checkpoint("first")
    for seconds, deed, number in what:
        world.run(seconds)
        act(world, deed, number)
    world.run(30.0)
    world.calm()
    world.judge()
    return world


@settings(max_examples=MANY or 150)
@given(how=storms, what=deeds)
def test_all_or_nothing(how: dict, what: list[tuple[float, str, int]]) -> None:
    """Whatever happens: a checkpoint is whole and of one moment or does not exist, nobody is left frozen, everybody
    who asked is told what is true, and afterwards the job can be saved again."""
    world = storm(how, what)
    ended = any(world.kinds[number] is Kind.STOP for number in world.roots)
    dead = any(machine.state == DEAD for machine in world.machines.values())
    there = any(machine.state == RUNNING for machine in world.machines.values())
    world.checkpoint("afterwards")
    world.run(400.0)
    world.judge()
    answer = world.answers["afterwards"][-1]
    assert answer.ok or ended or dead or not there, answer


@settings(max_examples=MANY or 100)
@given(how=storms, what=deeds.map(lambda some: [one for one in some if one[1] not in ("checkpoint", "stop", "arrive")]))
def test_a_restart_is_all_or_nothing(how: dict, what: list[tuple[float, str, int]]) -> None:
    world = storm(how, what, empty=True)
    answer = world.answers["restart"][-1]
    states = {name: state for name, state in world.state().items() if state != DEAD}
    bereft = [m.name for m in world.machines.values() if m.brain is not None and m.brain.bereft]
    if answer.ok:
        assert all(state == RUNNING or name in bereft or state == "ended" for name, state in states.items()), answer
    else:
        assert all(state in (NONE, "ended") for state in states.values()), answer


@settings(max_examples=50)
@given(hosts=st.integers(1, 12), seed=st.integers(0, 1 << 32), stop=st.booleans(), delay=st.sampled_from((0.01, 1.0)))
def test_without_faults_it_always_commits(hosts: int, seed: int, stop: bool, delay: float) -> None:
    world = World(hosts, seed, delay=delay)
    world.run(10.0)
    world.checkpoint("one", stop)
    world.run(100.0)
    assert world.answers["one"][0].ok, world.answers
    assert list(world.roots) == [1] and len(world.roots[1]) == hosts
    assert set(world.state().values()) == {"ended" if stop else RUNNING}


@pytest.mark.exam
@settings(max_examples=5000)
@given(how=storms, what=deeds)
def test_all_or_nothing_at_length(how: dict, what: list[tuple[float, str, int]]) -> None:
    storm(how, what)
