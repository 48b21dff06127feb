"""Who coordinates a job: one record in the key-value store, held by whoever keeps writing it.

The record is one key that is only ever written with the revision it was read with. Its holder renews it every third of
its time, TTL. Whoever wants it watches, and when it has not changed for TTL by the watcher's own clock, writes itself
in; of several that try, the store lets one through. No two clocks are ever compared.

What the coordinator must not lose (its *state*) is kept in the same record. So a former coordinator, one that was
stopped for a minute or cut off, can write nothing: its revision is not the last one any more. And it stops by itself:
it counts as the holder only until TTL after it *sent* the last renewal that was answered, which is before anybody else
may take over.

`token` is the revision with which the lease was taken. It only grows from holder to holder: put it into every order,
and have orders with an older one than was seen refused.

`Contender` decides, and is pure: it is told what happened and when, and says what to write. `Lease` carries that out.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable

import msgspec

from torpor.link.link import ABSENT, Conflict, Entry, Link, Status
from torpor.model.errors import TorporError
from torpor.named_tuple import NamedTuple

KEY = "coordinator"
TTL = 10.0
"""Seconds."""


class Record(msgspec.Struct, frozen=True):
    """What stands under the key."""

    holder: str
    """Who holds it: its host, and a random part. '': nobody, take it."""
    token: int
    """The holder's, 0 in the very write that takes it."""
    beat: int
    state: bytes


class Write(NamedTuple):
    """To be written now, expecting this revision."""

    record: Record
    expect: int


class Contender:
    """Times are seconds of any clock that does not jump; one write is under way at most."""

    def __init__(self, me: str, ttl: float = TTL) -> None:
        self.me = me
        self.ttl = ttl
        self.wanted = False
        self.token = 0
        """Ours, 0 if we do not hold it."""
        self.state = b""
        """As last written, or read; the holder's next write says what it is to be."""
        self.revision = ABSENT
        self.holder = ""
        self._known = False
        self._changed = 0.0
        self._renewed = 0.0
        self._beat = 0
        self._sent: tuple[Record, float] | None = None
        self._dirty = False
        self._doubt = False

    def held(self, now: float) -> bool:
        """Do we hold it, beyond doubt?"""
        return self.token != 0 and now < self._renewed + self.ttl

    @property
    def asks(self) -> bool:
        """Has the record to be read before anything else can be decided?"""
        return self._sent is None and (self._doubt or not self._known)

    def set(self, state: bytes) -> None:
        """The holder's state from now on; written with the next write."""
        self.state = state
        self._dirty = True

    def seen(self, entry: Entry | None, record: Record | None, now: float) -> None:
        """The record as it is, or that there is none."""
        revision = entry.revision if entry else ABSENT
        if self._sent is not None or (self._known and not self._doubt and revision <= self.revision):
            return  # a write is under way, and its answer will tell; or this is old
        if not self._known or revision != self.revision:
            self._changed = now
        self._known, self._doubt = True, False
        self.revision = revision
        self.holder = record.holder if record else ""
        if self.token and self.holder == self.me and record is not None:
            self._beat = record.beat  # perhaps of a renewal that we did not hear the answer to
        else:
            self._drop()
            self.state = record.state if record else b""

    def _drop(self) -> None:
        self.token = 0
        self._dirty = False

    def lost_sight(self, now: float) -> None:
        """The link is up again: whatever was renewed meanwhile was not seen."""
        self._changed = now
        self._doubt = True

    def tick(self, now: float) -> Write | None:
        """What is to be written now, if anything is. Then `wrote` has to be called before anything else is written."""
        if self.token and not self.held(now):
            self._drop()
            self._doubt = True  # what was to be written and was not is no state to go on with
        if self._sent is not None or self.asks:
            return None
        if self.token:
            if not self._dirty and now - self._renewed < self.ttl / 3:
                return None
            record = Record(self.me, self.token, self._beat + 1, self.state)
        else:
            free = self.revision == ABSENT or self.holder in ("", self.me)
            if not self.wanted or not (free or now - self._changed >= self.ttl):
                return None
            record = Record(self.me, 0, 1, self.state)
        self._dirty = False
        self._sent = record, now
        return Write(record, self.revision)

    def release(self, now: float) -> Write | None:
        """Give it up, whether or not that can be written; what is to be written for it."""
        self.wanted = False
        held = self.held(now)
        state = self.state
        self._drop()
        if not held or self._sent is not None or self._doubt:
            return None
        self._sent = Record("", 0, self._beat + 1, state), now
        return Write(self._sent[0], self.revision)

    def wrote(self, revision: int | None, now: float) -> None:
        """The answer to the write: its revision; None if it was refused, or nothing is known."""
        assert self._sent is not None
        (record, sent), self._sent = self._sent, None
        if revision is None:
            self._doubt = True
            self._dirty = self.token != 0
            return
        self.revision = revision
        self._changed = now
        self.holder = record.holder
        if record.holder and self.wanted and (self.token or not record.token):
            self.token = self.token or revision
            self._beat = record.beat
            self._renewed = sent
        else:
            self._doubt = True  # given up while this was under way


class Lease:
    """Carries out what a Contender says, over a link. later: of the caller's loop.

    on_change(held): whenever we have come to hold it, or do not hold it any more.
    """

    def __init__(
        self, link: Link, later: Callable[[float, Callable[[], None]], None], on_change: Callable[[bool], None],
        ttl: float = TTL, key: str = KEY,
    ) -> None:  # fmt: skip
        self._link = link
        self._later = later
        self._on_change = on_change
        self._key = key
        self._contender = Contender(f"{link.host}/{os.urandom(6).hex()}", ttl)
        self._held = False
        self._asking = False
        self._closed = False
        self._waiting: list[Callable[[TorporError | None], None]] = []
        link.on_status(self._turned)
        link.watch(key, lambda _key, entry: self._saw(entry))
        self._tick()

    @property
    def held(self) -> bool:
        """Do we hold it at this moment?"""
        return self._contender.held(time.monotonic())

    @property
    def token(self) -> int:
        """Ours; 0 if we do not hold it."""
        return self._contender.token if self.held else 0

    @property
    def holder(self) -> str:
        """The host that holds it as far as we know, '' if none does."""
        return self._contender.holder.rpartition("/")[0]

    @property
    def state(self) -> bytes:
        """What was last written, or read; of the former holder, once we have come to hold it."""
        return self._contender.state

    def contend(self) -> None:
        """Take it as soon as nobody holds it."""
        self._contender.wanted = True
        self._step()

    def put(self, state: bytes, done: Callable[[TorporError | None], None]) -> None:
        """Write the state: `done(None)` once it is kept; `done(error)` if we do not hold the lease, or lost it over
        this, and then nobody can say whether it was written. Several in quick succession may be written as one."""
        if not self.held:
            done(Conflict(f"{self._link.host} does not coordinate the job (any more)"))
            return
        self._contender.set(state)
        self._waiting.append(done)
        self._step()

    def release(self) -> None:
        """Let another take it at once, and do not take it again."""
        self._write(self._contender.release(time.monotonic()))

    def close(self) -> None:
        """Stop. Does not release."""
        self._closed = True
        self._link.unwatch(self._key)
        self._fail()

    def _turned(self, status: Status) -> None:
        if status.up and not self._closed:
            self._contender.lost_sight(time.monotonic())
            self._step()

    def _saw(self, entry: Entry | None) -> None:
        if self._closed:
            return
        record: Record | None = None
        if entry is not None:
            try:
                record = msgspec.msgpack.decode(entry.value, type=Record)
            except msgspec.MsgspecError:
                return
        self._contender.seen(entry, record, time.monotonic())
        self._step()

    def _tick(self) -> None:
        if not self._closed:
            self._step()
            self._later(self._contender.ttl / 12, self._tick)

    def _step(self) -> None:
        now = time.monotonic()
        contender = self._contender
        if contender.asks and not self._asking:
            self._asking = True
            self._link.get(self._key, self._read, limit=contender.ttl / 2)
        self._write(contender.tick(now))
        held = contender.held(now)
        if held != self._held:
            self._held = held
            if not held:
                self._fail()
            self._on_change(held)

    def _read(self, entry: Entry | None, error: TorporError | None) -> None:
        self._asking = False
        if error is None:
            self._saw(entry)

    def _write(self, write: Write | None) -> None:
        if write is None:
            return
        waiting, self._waiting = self._waiting, []

        def done(revision: int | None, error: TorporError | None) -> None:
            if self._closed:
                return
            self._contender.wrote(revision if error is None else None, time.monotonic())
            if error is None:
                for each in waiting:
                    each(None)
            else:
                self._waiting = waiting + self._waiting  # with the next write, or never
            self._step()

        data = msgspec.msgpack.encode(write.record)
        self._link.put(self._key, data, done, expect=write.expect, limit=self._contender.ttl / 2)

    def _fail(self) -> None:
        waiting, self._waiting = self._waiting, []
        for each in waiting:
            each(Conflict(f"{self._link.host} does not coordinate the job any more"))
