"""What a link offers: messages, a small key-value store with revisions, and word of being cut off.

Two kinds implement it and one conformance suite runs on both: `direct.py` within one process, `nats.py` between hosts.
Everything is asynchronous, because a supervisor waits in poll(2) and nowhere else: what is asked for is answered by a
callback, and all callbacks are called by `deliver`, in the thread that calls it. What the payloads and values mean is
not known here.

Messages arrive at most once, and those of one sender on one topic in their order. While a link is down nothing
arrives, and for a moment after it is up again something may still be missed, until all servers know who listens: so
what matters is said again until it is answered. What has to last goes into the key-value store: a `put` that was
answered without an error is kept, whichever one of three servers is lost.

Every wait has a limit: `done` is called within `limit` seconds, and with LinkDown if nothing is known by then.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, TypeAlias

from torpor.model.errors import TorporError
from torpor.named_tuple import NamedTuple

PROTOCOL = 1
"""The version of everything that this floor says to other hosts (hello.py)."""

LIMIT = 10.0
"""Seconds after which a question is answered with LinkDown, if not told otherwise."""

ALL = "all"
"""The topic that every host of the job hears, also the one that speaks."""
COORDINATOR = "coordinator"
"""The topic that whoever coordinates listens to."""
BEATS = "beats"
"""The topic of the signs of life (members.py)."""

ANY = -1
ABSENT = 0
"""What `put` may expect besides a revision: nothing in particular; that there is no such key."""

Done: TypeAlias = Callable[[Any, TorporError | None], None]
"""`done(result, error)`: exactly one call, with an error or with a result."""


class LinkError(TorporError):
    """Something that was asked of a link did not come about."""


class LinkDown(LinkError):
    """No answer within the limit. What was to be changed may have been changed, or be changed a moment later."""


class Conflict(LinkError):
    """The key has another revision than was expected: nothing was changed, or (where an answer was lost on the way) the
    change has been written over already."""


class Mismatch(LinkError):
    """The other side is of another version, and there is no way to speak with it."""


class Stranger(LinkError):
    """The other side does not know the job's secret, or it says that we do not."""


class Message(NamedTuple):
    sender: str
    """The host that sent it, as it is called in the job."""
    topic: str
    payload: bytes


class Entry(NamedTuple):
    key: str
    value: bytes
    revision: int
    """Grows with every change of any key; never used twice."""


class Status(NamedTuple):
    up: bool
    why: str = ""
    """What is wrong, in words, if it is not up."""
    final: bool = False
    """It will not come up again: wrong version, not let in, the job's state is gone."""


def host_topic(host: str) -> str:
    """The topic that one host hears."""
    return f"host.{quote(host)}"


def quote(name: str) -> str:
    """A name as one word of a topic or key: what is not a letter, a digit, '-' or '_' becomes =XX."""
    data = name.encode()
    return "".join(chr(b) if (chr(b).isalnum() and b < 128) or b in b"-_" else f"={b:02X}" for b in data)


def unquote(word: str) -> str:
    """What `quote` was given. Raises ValueError."""
    first, *rest = word.encode().split(b"=")
    return (first + b"".join(bytes((int(part[:2], 16),)) + part[2:] for part in rest)).decode()


def matches(pattern: str, key: str) -> bool:
    """Is `key` meant? A pattern is a key, or `words.>` for all keys that begin with these words."""
    return key.startswith(pattern[:-1]) if pattern.endswith(".>") else key == pattern


class Link(Protocol):
    """One host's end of the link. All methods return at once and are called in one thread, that of `deliver`."""

    host: str
    """What we are called in the job."""

    @property
    def fd(self) -> int:
        """Readable when there is something to deliver."""
        ...

    def deliver(self, events: int = 0) -> None:
        """Call the callbacks whose time has come. For a loop that polls `fd`."""
        ...

    def on_status(self, callback: Callable[[Status], None]) -> None:
        """Have every change told, the present state first."""
        ...

    def publish(self, topic: str, payload: bytes) -> None:
        """Send to whoever listens to `topic`. Nobody says whether it arrived; what is sent while the link is down is
        lost. Raises LinkError for what is too long."""
        ...

    def subscribe(self, topic: str, callback: Callable[[Message], None]) -> None:
        """Hear a topic from now on (again: with another callback)."""
        ...

    def unsubscribe(self, topic: str) -> None:
        """Do not hear a topic any more."""
        ...

    def get(self, key: str, done: Done, limit: float = LIMIT) -> None:
        """Read: the Entry, or None. At least as new as every `put` that was answered before."""
        ...

    def put(self, key: str, value: bytes, done: Done, expect: int = ANY, limit: float = LIMIT) -> None:
        """Write, if the key has the revision `expect` (ABSENT, ANY): the new revision, or Conflict."""
        ...

    def delete(self, key: str, done: Done, expect: int = ANY, limit: float = LIMIT) -> None:
        """Remove a key, if it has the revision `expect`: None, or Conflict."""
        ...

    def watch(self, pattern: str, callback: Callable[[str, Entry | None], None]) -> None:
        """Have `callback(key, entry)` called for every key that there is, and whenever one has changed; None: it is
        gone. Changes in quick succession may be told as one; in the end the last state has been told."""
        ...

    def unwatch(self, pattern: str) -> None:
        """No longer tell of these keys."""
        ...

    def destroy(self, done: Done, limit: float = LIMIT) -> None:
        """The job is over: remove all it has put, for all hosts."""
        ...

    def close(self) -> None:
        """End this host's link. Nothing is delivered afterwards; what was under way is forgotten."""
        ...
