"""The coordinator, one situation at a time."""

from __future__ import annotations

import os
import sys

import pytest

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

from world import DEAD, ENDED, FROZEN, LIMITS, NONE, RUNNING, World

from torpor.coordinate import record, words
from torpor.coordinate.core import Coordinator
from torpor.coordinate.host import Host
from torpor.coordinate.phases import PLANS, Kind, Phase
from torpor.coordinate.record import Stage


def until(world: World, phase: Phase, host: str = "h0") -> None:
    """Let time go by until that host is in that phase."""
    for _ in range(20000):
        brain = world.machines[host].brain
        if brain is not None and brain.attempt and brain.phase is phase:
            return
        world.run(0.01)
    raise AssertionError(f"{host} never came to {phase}: {world.answers}")


def job(hosts: int = 3) -> World:
    world = World(hosts, 1)
    world.run(5.0)
    world.checkpoint("one")
    return world


CHECKPOINT = [Phase.SURVEY, Phase.FREEZE, Phase.SETTLE, Phase.CAPTURE, Phase.RESUME, Phase.STORE]


@pytest.mark.parametrize("phase", CHECKPOINT)
def test_a_host_that_fails_ends_the_checkpoint_and_is_named(phase: Phase) -> None:
    world = job()
    until(world, phase, "h1")
    machine = world.machines["h1"]
    assert machine.brain is not None
    machine.work += 1
    world.host(machine, words.Broke(1, phase, "disk full"))
    world.run(30.0)
    answer = world.answers["one"][0]
    assert (answer.ok, answer.text) == (False, f"h1: disk full ({phase})")
    assert set(world.state().values()) == {RUNNING} and world.roots == {}


@pytest.mark.parametrize("phase", CHECKPOINT)
@pytest.mark.parametrize("how", ["cut", "kill", "destroy"])
def test_a_silent_host_ends_the_checkpoint_and_is_named(phase: Phase, how: str) -> None:
    world = job()
    until(world, phase, "h1")
    if how == "cut":
        world.machines["h1"].cut_off = True
    else:
        getattr(world, how)("h1")
    world.run(LIMITS.host + LIMITS.ending + 40.0)
    answer = world.answers["one"][0]
    assert not answer.ok and answer.text.startswith("h1: not a word for 30 s ("), answer
    # It has let its job go by itself, although nobody could tell it.
    assert set(world.state().values()) == ({RUNNING, DEAD} if how == "destroy" else {RUNNING})
    world.calm()
    world.checkpoint("two")
    world.run(200.0)
    assert world.answers["two"][0].ok is (how != "destroy")


def test_a_host_that_can_be_reached_again_is_not_given_up() -> None:
    """Of one that stores nobody expects to hear soon; but who was quiet for long is asked more often: here only those
    words are lost that are said at the usual pace."""
    world = job()
    machine = world.machines["h1"]
    machine.slow = 1.5 * LIMITS.silence
    until(world, Phase.STORE, "h1")
    for second in range(int(2 * LIMITS.silence)):
        machine.cut_off = second > 2 and not 3 <= second % LIMITS.slowly <= 7
        world.run(1.0)
    machine.cut_off = False
    world.run(LIMITS.silence)
    assert world.answers["one"][0].ok, world.answers


@pytest.mark.parametrize("phase", CHECKPOINT)
@pytest.mark.parametrize("stop", [False, True])
def test_a_successor_ends_it_or_goes_on(phase: Phase, stop: bool) -> None:
    if stop and phase is Phase.RESUME:
        return
    world = World(3, 1)
    world.run(5.0)
    world.checkpoint("one", stop)
    until(world, phase)
    world.bury()
    world.run(3.0)
    world.elect()
    world.run(LIMITS.host + 60.0)
    answer = world.answers["one"][0]
    captured = phase in (Phase.RESUME, Phase.STORE)
    assert answer.ok is captured, answer
    if not captured:
        assert answer.text == "the coordinator was lost, and another took over"
    assert set(world.state().values()) == {ENDED if stop and captured else RUNNING}


def test_without_any_coordinator_all_hosts_run_on() -> None:
    world = job()
    until(world, Phase.SETTLE)
    world.bury()
    assert FROZEN in world.state().values()
    world.run(LIMITS.host + 1.0)
    assert set(world.state().values()) == {RUNNING}


@pytest.mark.parametrize("phase", CHECKPOINT)
def test_a_host_that_comes_meanwhile_waits_until_all_have_their_copy(phase: Phase) -> None:
    world = job()
    until(world, phase)
    world.arrive("late")
    brain = world.machines["late"].brain
    assert brain is not None
    before = world.now
    while not brain.admitted:
        assert world.now < before + 60.0
        world.run(0.05)
    captured = [machine.captured_for.get(1) for machine in world.machines.values() if machine.name != "late"]
    assert None not in captured
    world.run(60.0)
    assert world.answers["one"][0].ok and "late" not in dict(world.roots[1])
    world.checkpoint("two")
    world.run(60.0)
    assert "late" in dict(world.roots[2])


def test_who_comes_while_the_job_is_saved_to_be_ended_is_turned_away() -> None:
    world = World(2, 1)
    world.run(5.0)
    world.checkpoint("one", stop=True)
    until(world, Phase.STORE)
    world.arrive("late")
    world.run(60.0)
    late = world.machines["late"]
    assert world.answers["one"][0].ok and late.state == NONE and late.brain is not None and late.brain.left


@pytest.mark.parametrize("phase", [Phase.SURVEY, Phase.FREEZE])
def test_a_host_that_leaves_before_it_is_frozen_is_left_out(phase: Phase) -> None:
    world = job()
    until(world, Phase.SURVEY)
    if phase is Phase.FREEZE:
        world.machines["h1"].cut_off = True
        world.run(3.0)
        assert world.machines["h0"].brain.phase is Phase.SURVEY  # type: ignore[union-attr]
        world.machines["h1"].cut_off = False
    world.empty("h1")
    world.run(60.0)
    assert world.answers["one"][0].ok, world.answers
    assert [host for host, _ in world.roots[1]] == ["h0", "h2"]


def test_a_supervisor_that_was_started_again_ends_the_checkpoint() -> None:
    world = job()
    until(world, Phase.CAPTURE)
    world.kill("h2")
    world.revive("h2")
    world.run(30.0)
    assert world.answers["one"][0].text == "h2: its supervisor was started again during the phase capture"


def test_a_lost_host_is_known_before_anybody_is_stopped() -> None:
    world = World(3, 1)
    world.run(5.0)
    world.lost("h1")
    world.checkpoint("one")
    world.run(5.0)
    assert "h1 cannot be reached" in world.answers["one"][0].text
    assert world.record is not None and world.record.number == 0


def test_the_store_refuses() -> None:
    world = World(3, 1, refuses=1.0)
    world.run(5.0)
    world.checkpoint("one")
    world.run(60.0)
    assert world.answers["one"][0].text == "no space left (commit)"
    world.refuses = 0.0
    world.checkpoint("two", stop=True)
    world.run(60.0)
    assert world.answers["two"][0].ok and list(world.roots) == [2]


def test_one_thing_at_a_time_and_an_answer_is_given_again() -> None:
    world = job()
    until(world, Phase.CAPTURE)
    world.checkpoint("two")
    world.run(1.0)
    assert world.answers["two"][0].text == "a checkpoint is under way"
    world.run(60.0)
    one = Coordinator(9, world.record, world.revision)
    one.start(0.0)
    one.handle(words.Saved(99), 0.0)
    answer = one.handle(words.AskCheckpoint("one"), 0.0)[-1]
    assert isinstance(answer, words.Answer) and answer.ok and answer.attempt == 1


def test_what_is_asked_while_the_attempt_before_ends_is_done_after_it() -> None:
    world = job()
    until(world, Phase.SETTLE, "h1")
    machine = world.machines["h1"]
    assert machine.brain is not None
    machine.work += 1
    world.host(machine, words.Broke(1, Phase.SETTLE, "disk full"))
    while (ending := world.coordinators[-1][1].ending) is None or not ending.awaited:
        world.run(0.001)
    world.checkpoint("two")
    world.run(60.0)
    assert world.answers["one"][0].text == "h1: disk full (settle)"
    assert world.answers["two"][0].ok and list(world.roots) == [2]


@pytest.mark.parametrize("hosts", [3, 30])
def test_messages_for_a_checkpoint(hosts: int) -> None:
    """One announcement for a phase, one word of each host for a phase."""
    world = job(hosts)
    sent = world.sent
    announced, told = [0], [0]
    term, one = world.coordinators[0]
    handle = one.handle

    def count(event: words.Event, now: float) -> list[words.Instruction]:
        out = handle(event, now)
        announced[0] += sum(isinstance(instruction, words.Announce) for instruction in out)
        told[0] += sum(isinstance(instruction, words.Tell) for instruction in out)
        return out

    one.handle = count  # type: ignore[method-assign]
    world.run(20.0)
    assert world.answers["one"][0].ok
    # SETTLE is told to each by itself: all have something to settle.
    assert announced[0] == len(PLANS[Kind.CHECKPOINT]) and told[0] == hosts
    assert world.settled == hosts * (hosts - 1)
    # Those who are asked whether they are still at it say so.
    assert world.sent - sent <= hosts * 2 * (len(PLANS[Kind.CHECKPOINT]) + 1)
    assert term == 1


def test_a_burst_of_hosts_is_written_a_few_times() -> None:
    world = World(200, 1)
    world.run(5.0)
    assert world.revision < 20 and world.record is not None and len(world.record.members) == 200


def test_the_record_comes_back_as_it_was() -> None:
    world = job()
    until(world, Phase.STORE)
    assert world.record is not None and world.record.open is not None
    assert world.record.open.stage is Stage.CAPTURED
    assert record.decode(record.encode(world.record)) == world.record


def test_a_host_says_again_what_it_has_done_and_nothing_to_strangers() -> None:
    host = Host("a", 5)
    host.start(0.0)
    host.handle(words.Admitted(3, "a", 4, 0), 0.0)
    assert not host.admitted
    host.handle(words.Admitted(3, "a", 5, 6), 0.0)
    survey = words.Order(3, 7, Kind.CHECKPOINT, Phase.SURVEY)
    work = words.Work(7, Kind.CHECKPOINT, Phase.SURVEY)
    assert host.handle(survey, 1.0)[0] == work
    assert host.handle(words.Order(2, 8, Kind.CHECKPOINT, Phase.SURVEY), 1.0)[:-1] == []  # an earlier term
    assert host.handle(survey, 1.0)[0] == words.Say(words.Alive("a", 5, 7))
    did = words.Say(words.Did("a", 5, 7, Phase.SURVEY))
    assert host.handle(words.Finished(7, Phase.SURVEY), 2.0)[0] == did
    assert host.handle(survey, 2.0)[0] == did
    old = words.Order(3, 6, Kind.CHECKPOINT, Phase.FREEZE)
    assert host.handle(old, 2.0)[0].word.reason == "that is over here"  # type: ignore[union-attr]


def restarting(hosts: int = 3) -> World:
    world = World(hosts, 1, empty=True)
    world.run(5.0)
    plan = tuple((f"old{number}", f"h{number % hosts}") for number in range(hosts + 1))
    world.ask(words.AskRestart("back", "job@1", plan))
    return world


def test_two_old_hosts_come_back_on_one() -> None:
    world = restarting()
    until(world, Phase.CONNECT)
    world.run(60.0)
    assert world.answers["back"][0].ok and set(world.state().values()) == {RUNNING}
    assert world.record is not None and world.record.running == 1
    world.checkpoint("one")
    world.run(60.0)
    assert world.answers["one"][0].ok


@pytest.mark.parametrize("phase", PLANS[Kind.RESTART])
def test_a_checkpoint_that_is_asked_for_in_a_restart_waits_for_its_end(phase: Phase) -> None:
    """A host whose processes run already is not the last."""
    world = restarting()
    until(world, phase, "h1")
    world.checkpoint("one")
    world.run(60.0)
    assert world.answers["back"][0].ok and world.answers["one"][0].ok


@pytest.mark.parametrize("phase", PLANS[Kind.RESTART])
@pytest.mark.parametrize("how", ["broke", "cut", "kill"])
def test_a_restart_that_fails_leaves_nothing_behind(phase: Phase, how: str) -> None:
    world = restarting()
    until(world, phase, "h1")
    machine = world.machines["h1"]
    if how == "broke":
        machine.work += 1
        world.host(machine, words.Broke(1, phase, "it is taken"))
    elif how == "cut":
        machine.cut_off = True
    else:
        world.kill("h1")
    world.run(LIMITS.host + LIMITS.ending + 60.0)
    answer = world.answers["back"][0]
    assert not answer.ok and answer.text.startswith("h1: "), answer
    world.calm()
    assert set(world.state().values()) == {NONE}
    world.ask(words.AskRestart("again", "job@1", (("old0", "h0"),)))
    world.run(60.0)
    assert world.answers["again"][0].ok and world.state()["h0"] == RUNNING


def test_a_restart_on_a_host_that_is_not_there() -> None:
    world = restarting()
    world.ask(words.AskRestart("elsewhere", "job@1", (("old0", "h7"),)))
    world.run(60.0)
    world2 = World(2, 1, empty=True)
    world2.run(5.0)
    world2.ask(words.AskRestart("elsewhere", "job@1", (("old0", "h0"), ("old1", "h7"))))
    world2.ask(words.AskRestart("twice", "job@1", (("old0", "h0"), ("old0", "h1"))))
    world2.run(5.0)
    assert world2.answers["elsewhere"][0].text == "h7 is not there to restart on"
    assert world2.answers["twice"][0].text == "a host of the checkpoint is to come back twice"


def test_a_host_in_doubt_lets_its_job_go_and_ends_it_when_it_hears_that_it_was_saved() -> None:
    world = World(3, 1)
    world.run(5.0)
    world.checkpoint("one", stop=True)
    until(world, Phase.STORE, "h1")
    brain = world.machines["h1"].brain
    assert brain is not None
    while not brain.done:
        world.run(0.01)
    world.run(0.05)
    world.machines["h1"].cut_off = True
    world.run(LIMITS.host + LIMITS.ending + 30.0)
    assert world.answers["one"][0].ok and "h1 did not answer" in world.answers["one"][0].text
    assert world.state() == {"h0": ENDED, "h1": RUNNING, "h2": ENDED}
    world.machines["h1"].cut_off = False
    world.run(60.0)
    assert world.state()["h1"] == ENDED


def test_a_supervisor_that_comes_back_removes_what_was_undone_without_it() -> None:
    world = restarting()
    until(world, Phase.RELEASE, "h1")
    brain, other = world.machines["h1"].brain, world.machines["h2"]
    assert brain is not None
    until(world, Phase.RELEASE, "h2")
    other.work += 1
    while not brain.done:
        world.run(0.01)
    world.kill("h1")
    world.host(other, words.Broke(1, Phase.RELEASE, "no"))
    world.run(100.0)
    assert world.answers["back"][0].text == "h2: no (release); h1 did not answer (undo)"
    assert world.state() == {"h0": NONE, "h1": RUNNING, "h2": NONE}  # nobody is there who could remove it
    world.revive("h1")
    world.run(30.0)
    assert world.state() == {"h0": NONE, "h1": NONE, "h2": NONE}
