"""Which hosts take part in a job, and which of them are alive.

A host that takes part has a key, `member.HOST`, written once, with what the others should know of it. That it lives, it
says every third of TTL, by a message that only whoever asks (the coordinator) listens to: with thousands of hosts, keys
renewed by each and watched by each would be millions of messages.

A host that has not been heard for TTL has *left*, until it is heard again. While our own link is down nobody leaves,
and afterwards everybody has a full TTL again.

`Roster` decides, and is pure. `Presence` is for every host, `Members` for whoever has to know.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from torpor.link.link import ABSENT, BEATS, Conflict, Entry, Link, Message, Status, quote, unquote
from torpor.model.errors import TorporError
from torpor.named_tuple import NamedTuple

PREFIX = "member."
TTL = 15.0
"""Seconds."""


class Change(NamedTuple):
    """A host has joined (or has been heard again), or has left."""

    host: str
    joined: bool
    info: bytes
    """What it wrote when it joined."""
    why: str = ""
    """Why it has left: 'gone' if it said so, 'silent'."""


class Roster:
    """Times are seconds of any clock that does not jump."""

    def __init__(self, ttl: float = TTL) -> None:
        self.ttl = ttl
        self._info: dict[str, bytes] = {}
        self._heard: dict[str, float] = {}
        self._alive: set[str] = set()
        self._blind = False

    @property
    def alive(self) -> dict[str, bytes]:
        """What is known of the hosts that are there."""
        return {host: self._info[host] for host in sorted(self._alive)}

    def entered(self, host: str, info: bytes, now: float) -> list[Change]:
        """Its key was written."""
        self._info[host] = info
        self._heard[host] = now
        return self._back(host)

    def removed(self, host: str) -> list[Change]:
        """Its key was removed."""
        self._heard.pop(host, None)
        info = self._info.pop(host, b"")
        if host in self._alive:
            self._alive.discard(host)
            return [Change(host, False, info, "gone")]
        return []

    def heard(self, host: str, now: float) -> list[Change]:
        """It gave a sign of life. One of a host without a key counts for nothing."""
        if host not in self._info:
            return []
        self._heard[host] = now
        return self._back(host)

    def _back(self, host: str) -> list[Change]:
        if host in self._alive:
            return []
        self._alive.add(host)
        return [Change(host, True, self._info[host])]

    def blind(self) -> None:
        """Our own link is down."""
        self._blind = True

    def sees(self, now: float) -> None:
        """It is up again."""
        self._blind = False
        for host in self._heard:
            self._heard[host] = now

    def tick(self, now: float) -> list[Change]:
        """Who has been silent for too long?"""
        if self._blind:
            return []
        silent = sorted(host for host in self._alive if now - self._heard[host] >= self.ttl)
        self._alive.difference_update(silent)
        return [Change(host, False, self._info[host], "silent") for host in silent]


Later = Callable[[float, Callable[[], None]], None]
"""Of a loop: call something once, so many seconds from now."""


class Presence:
    """Makes this host a member, and keeps saying that it lives."""

    def __init__(
        self, link: Link, later: Later, info: bytes, done: Callable[[TorporError | None], None], ttl: float = TTL,
        expect: int = ABSENT,
    ) -> None:  # fmt: skip
        """done: with an error if another host of that name is in the job.  expect: the revision of what this host had
        written before, if it had."""
        self._link = link
        self._later = later
        self._ttl = ttl
        self._closed = False
        self._key = PREFIX + quote(link.host)

        def entered(_revision: int | None, error: TorporError | None) -> None:
            if isinstance(error, Conflict):
                error = Conflict(f"a host named {link.host} is in the job already")
            if error is None:
                self._beat()
            done(error)

        link.put(self._key, info, entered, expect=expect)

    def leave(self, done: Callable[[TorporError | None], None]) -> None:
        """Take the host out."""
        self.stop()
        self._link.delete(self._key, lambda _none, error: done(error))

    def stop(self) -> None:
        """Say no more that it lives."""
        self._closed = True

    def _beat(self) -> None:
        if not self._closed:
            self._link.publish(BEATS, b"")
            self._later(self._ttl / 3, self._beat)


class Members:
    """Listens to who lives. on_change: for every host that is there already, too."""

    def __init__(self, link: Link, later: Later, on_change: Callable[[Change], None], ttl: float = TTL) -> None:
        self._link = link
        self._later = later
        self._on_change = on_change
        self._closed = False
        self.roster = Roster(ttl)
        link.on_status(self._turned)
        link.subscribe(BEATS, self._heard)
        link.watch(f"{PREFIX}>", self._changed)
        self._tick()

    def forget(self, host: str, done: Callable[[TorporError | None], None]) -> None:
        """Take a host out that is dead, so that another of its name may join."""
        self._link.delete(PREFIX + quote(host), lambda _none, error: done(error))

    def close(self) -> None:
        """Listen no more."""
        self._closed = True
        self._link.unsubscribe(BEATS)
        self._link.unwatch(f"{PREFIX}>")

    def _turned(self, status: Status) -> None:
        if status.up:
            self.roster.sees(time.monotonic())
        else:
            self.roster.blind()

    def _heard(self, message: Message) -> None:
        self._tell(self.roster.heard(message.sender, time.monotonic()))

    def _changed(self, key: str, entry: Entry | None) -> None:
        try:
            host = unquote(key.removeprefix(PREFIX))
        except ValueError:
            return
        if entry is None:
            self._tell(self.roster.removed(host))
        else:
            self._tell(self.roster.entered(host, entry.value, time.monotonic()))

    def _tick(self) -> None:
        if not self._closed:
            self._tell(self.roster.tick(time.monotonic()))
            self._later(self.roster.ttl / 10, self._tick)

    def _tell(self, changes: list[Change]) -> None:
        for change in changes:
            if not self._closed:
                self._on_change(change)
