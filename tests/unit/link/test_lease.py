"""Who coordinates: the decisions under every order of events, then the whole over each link."""

from __future__ import annotations

from typing import Any

import pytest
import worlds
from hypothesis import given, settings
from hypothesis import strategies as st

from torpor.link.lease import Contender, Lease, Record, Write
from torpor.link.link import ABSENT, Entry
from torpor.model.errors import TorporError

TTL = 12.0


class Store:
    """The key, with compare and set; and all that was ever written and answered."""

    def __init__(self) -> None:
        self.revision = 0
        self.entry: Entry | None = None
        self.record: Record | None = None
        self.tokens: list[int] = []
        self.kept = 0
        """The largest state (a number) that a put was answered for."""

    def write(self, write: Write) -> int | None:
        if write.expect != (self.entry.revision if self.entry else ABSENT):
            return None
        self.revision += 1
        self.entry, self.record = Entry("k", b"", self.revision), write.record
        if write.record.holder and not write.record.token:
            self.tokens.append(self.revision)
        return self.revision


STEPS = st.lists(
    st.tuples(
        st.integers(0, 2),
        st.sampled_from(["tick", "tick", "tick", "read", "tell", "land", "answer", "lose", "up", "put", "release"]),
        st.sampled_from([0.0, 0.5, 1.0, 4.0, 13.0]),
    ),
    max_size=120,
)


@settings(max_examples=400)
@given(STEPS)
def test_never_two_and_nothing_kept_is_lost(steps: list[tuple[int, str, float]]) -> None:
    store = Store()
    now = 100.0
    who = [Contender(name, TTL) for name in "abc"]
    for each in who:
        each.wanted = True
    flying: list[list[Any]] = [[] for _ in who]  # [write, landed?, revision]
    reads: list[tuple[Entry | None, Record | None] | None] = [None] * 3
    number = 0
    for index, what, passed in steps:
        now += passed
        contender = who[index]
        flight = flying[index]
        if what == "tick" and not flight:
            write = contender.tick(now)
            if write is not None:
                flight[:] = [write, False, None]
        elif what == "release" and not flight:
            write = contender.release(now)
            contender.wanted = True
            if write is not None:
                flight[:] = [write, False, None]
        elif what == "read":  # what is read may be told later
            reads[index] = (store.entry, store.record)
        elif what == "tell" and reads[index] is not None:
            contender.seen(*reads[index], now)  # type: ignore[misc]
            reads[index] = None
        elif what == "land" and flight and not flight[1]:
            flight[1:] = [True, store.write(flight[0])]
        elif what == "answer" and flight and flight[1]:
            contender.wrote(flight[2], now)
            if flight[2] is not None and flight[0].record.token and flight[0].record.holder:
                store.kept = max(store.kept, int(flight[0].record.state or b"0"))
            flight.clear()
        elif what == "lose" and flight:  # the answer, or all of it
            contender.wrote(None, now)
            flight.clear()
        elif what == "up":
            contender.lost_sight(now)
        elif what == "put" and contender.held(now):
            number += 1
            contender.set(str(number).encode())
        assert sum(each.held(now) for each in who) <= 1
        assert store.tokens == sorted(set(store.tokens))
        assert store.record is None or int(store.record.state or b"0") >= store.kept
        for each in who:
            assert not each.held(now) or each.token == store.tokens[-1]


def drive(store: Store, contender: Contender, now: float) -> None:
    """Everything works: read if need be, write, be answered."""
    if contender.asks:
        contender.seen(store.entry, store.record, now)
    write = contender.tick(now)
    if write is not None:
        contender.wrote(store.write(write), now)


def test_the_first_takes_it_and_another_takes_over() -> None:
    store, a, b = Store(), Contender("a", TTL), Contender("b", TTL)
    a.wanted = b.wanted = True
    drive(store, a, 0.0)
    assert a.held(0.0) and a.token == 1
    a.set(b"state")
    drive(store, a, 1.0)
    drive(store, b, 1.0)
    assert not b.held(1.0) and b.holder == "a"
    assert a.held(12.9) and not a.held(13.0)
    drive(store, b, 12.9)
    assert not b.held(12.9)
    drive(store, b, 13.0)
    assert b.held(13.0) and b.token == 3 and b.state == b"state"
    assert a.tick(13.0) is None and a.token == 0
    drive(store, a, 13.0)
    assert a.holder == "b" and not a.held(13.0)


def test_it_is_renewed_by_its_holder_only() -> None:
    store, a = Store(), Contender("a", TTL)
    a.wanted = True
    for now in range(0, 100, 2):
        drive(store, a, float(now))
        assert a.held(float(now))
    assert a.token == 1 and 20 <= store.revision <= 30


def test_released_it_is_free_at_once() -> None:
    store, a, b = Store(), Contender("a", TTL), Contender("b", TTL)
    a.wanted = b.wanted = True
    drive(store, a, 0.0)
    drive(store, b, 0.0)
    write = a.release(1.0)
    assert write is not None and not a.held(1.0)
    a.wrote(store.write(write), 1.0)
    b.seen(store.entry, store.record, 1.0)
    drive(store, b, 1.0)
    assert b.held(1.0)
    drive(store, a, 50.0)
    assert not a.held(50.0)


class Candidate:
    """One host that wants to coordinate."""

    def __init__(self, world: worlds.World, name: str, ttl: float = 1.5) -> None:
        self.host = world.host(name)
        self.changes: list[bool] = []
        self.lease = Lease(self.host.link, world.driver.loop.later, self.changes.append, ttl=ttl)
        self.lease.contend()

    def put(self, state: bytes) -> TorporError | None:
        answers: list[TorporError | None] = []
        self.lease.put(state, answers.append)
        self.host.driver.until(lambda: answers, "the state is written")
        return answers[0]


def test_one_coordinates_and_another_takes_over(world: worlds.World) -> None:
    a = Candidate(world, "a")
    world.driver.until(lambda: a.lease.held, "a holds it")
    b = Candidate(world, "b")
    assert a.put(b"one") is None
    assert a.put(b"two") is None
    world.driver.until(lambda: b.lease.holder == "a", "b knows")
    world.driver.turn(2.5)
    assert a.lease.held and not b.lease.held and a.changes == [True]
    token = a.lease.token
    a.lease.close()  # silent from now on
    world.driver.until(lambda: b.lease.held, "b has taken over")
    assert b.lease.token > token and b.lease.state == b"two" and b.changes == [True]
    assert not a.lease.held
    assert b.put(b"three") is None


def test_a_former_coordinator_can_write_nothing(world: worlds.World) -> None:
    a = Candidate(world, "a")
    world.driver.until(lambda: a.lease.held, "a holds it")
    assert a.put(b"a's") is None
    b = Candidate(world, "b")
    world.driver.until(lambda: b.lease.holder == "a", "b knows")
    a.lease._closed = True  # as if its supervisor were stopped: it neither renews nor looks at a clock
    world.driver.until(lambda: b.lease.held, "b has taken over")
    assert b.put(b"b's") is None
    # It goes on as if no time had passed, and does not yet know better.
    contender = a.lease._contender
    contender._renewed += 100.0
    a.lease._closed = False
    assert contender.token and a.lease.held
    error = a.put(b"late")
    assert error is not None and "does not coordinate" in str(error)
    assert not a.lease.held
    entry = b.host.get("coordinator")
    assert entry is not None and b"b's" in entry.value and b"late" not in entry.value


def test_released_it_goes_to_another_at_once(world: worlds.World) -> None:
    a = Candidate(world, "a", ttl=30.0)
    world.driver.until(lambda: a.lease.held, "a holds it")
    b = Candidate(world, "b", ttl=30.0)
    world.driver.until(lambda: b.lease.holder == "a", "b knows")
    a.lease.release()
    assert not a.lease.held
    world.driver.until(lambda: b.lease.held, "b has it", limit=15.0)
    with pytest.raises(TorporError):
        raise a.put(b"x") or AssertionError("written")
