"""Who takes part, and who is alive."""

from __future__ import annotations

import worlds

from torpor.link.members import Change, Members, Presence, Roster
from torpor.model.errors import TorporError


def test_silence_is_leaving_until_heard_again() -> None:
    roster = Roster(10.0)
    assert roster.heard("a", 0.0) == []
    assert roster.entered("a", b"i", 0.0) == [Change("a", True, b"i")]
    assert roster.entered("b", b"j", 0.0) == [Change("b", True, b"j")]
    assert roster.heard("a", 5.0) == []
    assert roster.tick(9.9) == []
    assert roster.tick(10.0) == [Change("b", False, b"j", "silent")]
    assert roster.alive == {"a": b"i"}
    assert roster.tick(10.1) == []
    assert roster.heard("b", 11.0) == [Change("b", True, b"j")]
    assert roster.removed("b") == [Change("b", False, b"j", "gone")]
    assert roster.heard("b", 12.0) == []


def test_nobody_leaves_while_we_see_nothing() -> None:
    roster = Roster(10.0)
    roster.entered("a", b"", 0.0)
    roster.blind()
    assert roster.tick(100.0) == []
    roster.sees(100.0)
    assert roster.tick(109.0) == []
    assert roster.tick(110.0) == [Change("a", False, b"", "silent")]


def test_hosts_come_and_go(world: worlds.World) -> None:
    later = world.driver.loop.later
    changes: list[Change] = []
    errors: list[TorporError | None] = []
    a = world.host("a.example")
    first = Presence(a.link, later, b"first", errors.append, ttl=1.2)
    watcher = world.host("w")
    members = Members(watcher.link, later, changes.append, ttl=1.2)
    world.driver.until(lambda: changes == [Change("a.example", True, b"first")], "a is there")
    b = world.host("b")
    second = Presence(b.link, later, b"second", errors.append, ttl=1.2)
    world.driver.until(lambda: Change("b", True, b"second") in changes, "b has joined")
    world.driver.turn(2.5)
    assert len(changes) == 2 and set(members.roster.alive) == {"a.example", "b"} and errors == [None, None]
    double = world.host("b")
    Presence(double.link, later, b"", errors.append, ttl=1.2)
    world.driver.until(lambda: len(errors) == 3, "an answer")
    assert "a host named b is in the job already" in str(errors[2])
    second.stop()
    world.driver.until(lambda: Change("b", False, b"second", "silent") in changes, "b is silent")
    first.leave(errors.append)
    world.driver.until(lambda: Change("a.example", False, b"first", "gone") in changes, "a is gone")
    members.forget("b", errors.append)
    world.driver.until(lambda: len(errors) == 5, "answers")
    assert errors[3:] == [None, None]
    again = Presence(double.link, later, b"third", errors.append, ttl=1.2)
    world.driver.until(lambda: changes[-1] == Change("b", True, b"third"), "another b")
    again.stop()
    members.close()
