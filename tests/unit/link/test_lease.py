"""Who coordinates: the decisions under every order of events, then the whole over each link."""

from __future__ import annotations

import random

import pytest
import worlds
from hypothesis import given
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


class World:
    """Three contenders; writes and readings are on their way for as long as one likes."""

    def __init__(self) -> None:
        self.store = Store()
        self.now = 100.0
        self.who = [Contender(name, TTL) for name in "abc"]
        self.flying: list[tuple[Write, bool, int | None] | None] = [None] * 3
        self.readings: list[tuple[Entry | None, Record | None] | None] = [None] * 3
        self.number = 0
        self.taken = 0
        for each in self.who:
            each.wanted = True

    def step(self, index: int, what: str) -> None:
        contender = self.who[index]
        contender.wanted = True
        flight = self.flying[index]
        if what == "read":
            self.readings[index] = (self.store.entry, self.store.record)
        elif what == "tell":
            if (reading := self.readings[index]) is not None:
                contender.seen(*reading, self.now)
                self.readings[index] = None
        elif what == "tick" and flight is None:
            if (write := contender.tick(self.now)) is not None:
                self.flying[index] = (write, False, None)
        elif what == "release" and flight is None:
            if (write := contender.release(self.now)) is not None:
                self.flying[index] = (write, False, None)
        elif what == "land" and flight is not None and not flight[1]:
            self.flying[index] = (flight[0], True, self.store.write(flight[0]))
        elif what == "answer" and flight is not None and flight[1]:
            contender.wrote(flight[2], self.now)
            record = flight[0].record
            if flight[2] is not None and record.holder:
                self.store.kept = max(self.store.kept, int(record.state or b"0"))
                self.taken += not record.token
            self.flying[index] = None
        elif what == "lose" and flight is not None:  # the answer, or all of it
            contender.wrote(None, self.now)
            self.flying[index] = None
        elif what == "up":
            contender.lost_sight(self.now)
        elif what == "put" and contender.held(self.now):
            self.number += 1
            contender.set(str(self.number).encode())

    def judge(self) -> None:
        holders = [each for each in self.who if each.held(self.now)]
        assert len(holders) <= 1
        assert self.store.tokens == sorted(set(self.store.tokens))
        assert self.store.record is None or int(self.store.record.state or b"0") >= self.store.kept
        for each in holders:
            assert each.token == self.store.tokens[-1]


BLOCKS = [
    ["read", "tell", "tick", "land", "answer"],
    ["read", "tell", "tick", "land"],
    ["read", "tell"],
    ["tick", "land"],
    *([word] for word in ("read", "tell", "tick", "land", "answer", "answer", "lose", "up", "put", "release")),
]
PASSES = [0.0, 0.0, 1.0, 3.0, 12.0]


def play(moves: list[tuple[int, int, int]]) -> World:
    world = World()
    for index, block, passes in moves:
        world.now += PASSES[passes]
        for what in BLOCKS[block]:
            world.step(index, what)
            world.judge()
    return world


@given(
    st.lists(
        st.tuples(st.integers(0, 2), st.integers(0, len(BLOCKS) - 1), st.integers(0, len(PASSES) - 1)), max_size=60
    )
)
def test_never_two_and_nothing_kept_is_lost(moves: list[tuple[int, int, int]]) -> None:
    play(moves)


def test_never_two_in_long_plays() -> None:
    dice = random.Random(1)
    taken = 0
    for _ in range(300):
        moves = [(dice.randrange(3), dice.randrange(len(BLOCKS)), dice.randrange(len(PASSES))) for _ in range(200)]
        taken += play(moves).taken
    assert taken > 1000


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

    def __init__(self, world: worlds.World, name: str, ttl: float = 3.0) -> None:
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
