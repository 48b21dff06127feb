"""A link within one process: for tests, and for whoever coordinates one host the way many are.

A Hub is what the servers are elsewhere. It can be cut off from one host, to see what that does to the others.
"""

from __future__ import annotations

from collections.abc import Callable

from torpor.link.link import ABSENT, ANY, LIMIT, Conflict, Done, Entry, LinkDown, Message, Status, matches
from torpor.link.mailbox import Mailbox


class Hub:
    """Where the links of one job meet."""

    def __init__(self) -> None:
        self.links: list[DirectLink] = []
        self.entries: dict[str, Entry] = {}
        self.revision = 0

    def open(self, host: str) -> DirectLink:
        """A link for one host."""
        link = DirectLink(self, host)
        self.links.append(link)
        return link

    def cut(self, host: str) -> None:
        """Nothing reaches this host any more, and nothing comes from it."""
        self._set(host, Status(False, "the hub is cut off"))

    def mend(self, host: str) -> None:
        """Undo `cut`."""
        self._set(host, Status(True))

    def _set(self, host: str, status: Status) -> None:
        for link in self.links:
            if link.host == host:
                link.turn(status)

    def changed(self, key: str) -> None:
        """Tell those who watch."""
        for link in self.links:
            link.tell(key, self.entries.get(key))


class DirectLink:
    """See Link. While it is cut, questions are answered with LinkDown at once."""

    def __init__(self, hub: Hub, host: str) -> None:
        self.host = host
        self._hub = hub
        self._mail = Mailbox()
        self._status = Status(True)
        self._listeners: list[Callable[[Status], None]] = []
        self._topics: dict[str, Callable[[Message], None]] = {}
        self._watches: dict[str, Callable[[str, Entry | None], None]] = {}
        self._told: dict[str, set[str]] = {}

    @property
    def fd(self) -> int:
        return self._mail.fd

    def deliver(self, events: int = 0) -> None:
        self._mail.deliver(events)

    def on_status(self, callback: Callable[[Status], None]) -> None:
        self._listeners.append(callback)
        status = self._status
        self._mail.post(lambda: callback(status))

    def turn(self, status: Status) -> None:
        """For the hub: cut off, or mended."""
        self._status = status
        for callback in self._listeners:
            self._mail.post(lambda callback=callback: callback(status))  # type: ignore[misc]
        if status.up:
            for pattern in self._watches:
                self._look(pattern)

    def publish(self, topic: str, payload: bytes) -> None:
        if self._status.up:
            message = Message(self.host, topic, bytes(payload))
            for link in list(self._hub.links):
                link.hear(message)

    def hear(self, message: Message) -> None:
        """For the hub: a message came by."""
        if self._status.up and message.topic in self._topics:
            self._mail.post(lambda: self._call(message))

    def _call(self, message: Message) -> None:
        callback = self._topics.get(message.topic)
        if callback is not None:
            callback(message)

    def subscribe(self, topic: str, callback: Callable[[Message], None]) -> None:
        self._topics[topic] = callback

    def unsubscribe(self, topic: str) -> None:
        self._topics.pop(topic, None)

    def _down(self, done: Done) -> bool:
        if self._status.up:
            return False
        error = LinkDown(self._status.why)
        self._mail.post(lambda: done(None, error))
        return True

    def get(self, key: str, done: Done, limit: float = LIMIT) -> None:
        if not self._down(done):
            entry = self._hub.entries.get(key)
            self._mail.post(lambda: done(entry, None))

    def _expected(self, key: str, expect: int, done: Done) -> bool:
        there = self._hub.entries.get(key)
        revision = there.revision if there else ABSENT
        if expect in (ANY, revision):
            return True
        error = Conflict(f"{key} has revision {revision}, not {expect}")
        self._mail.post(lambda: done(None, error))
        return False

    def put(self, key: str, value: bytes, done: Done, expect: int = ANY, limit: float = LIMIT) -> None:
        if not self._down(done) and self._expected(key, expect, done):
            self._hub.revision += 1
            revision = self._hub.revision
            self._hub.entries[key] = Entry(key, bytes(value), revision)
            self._mail.post(lambda: done(revision, None))
            self._hub.changed(key)

    def delete(self, key: str, done: Done, expect: int = ANY, limit: float = LIMIT) -> None:
        if not self._down(done) and self._expected(key, expect, done):
            self._hub.revision += 1
            self._hub.entries.pop(key, None)
            self._mail.post(lambda: done(None, None))
            self._hub.changed(key)

    def watch(self, pattern: str, callback: Callable[[str, Entry | None], None]) -> None:
        self._watches[pattern] = callback
        self._told[pattern] = set()
        if self._status.up:
            self._look(pattern)

    def unwatch(self, pattern: str) -> None:
        self._watches.pop(pattern, None)

    def _look(self, pattern: str) -> None:
        there = {key for key in self._hub.entries if matches(pattern, key)}
        for key in sorted(there | self._told[pattern]):
            self.tell(key, self._hub.entries.get(key))

    def tell(self, key: str, entry: Entry | None) -> None:
        """For the hub: a key has changed."""
        if not self._status.up:
            return
        for pattern in self._watches:
            if matches(pattern, key):
                self._mail.post(lambda pattern=pattern: self._notify(pattern, key, entry))  # type: ignore[misc]

    def _notify(self, pattern: str, key: str, entry: Entry | None) -> None:
        callback = self._watches.get(pattern)
        if callback is None:
            return
        told = self._told[pattern]
        if entry is None and key not in told:
            return
        (told.discard if entry is None else told.add)(key)
        callback(key, entry)

    def destroy(self, done: Done, limit: float = LIMIT) -> None:
        if not self._down(done):
            self._hub.entries.clear()
            self._mail.post(lambda: done(None, None))

    def close(self) -> None:
        if self in self._hub.links:
            self._hub.links.remove(self)
        self._mail.close()
