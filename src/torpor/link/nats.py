"""A link over NATS: messages by its subjects, the small shared state in a bucket of its key-value store (JetStream).

This is the caller's side. asyncio, which nats-py is made for, lives in one thread of its own (session.py, and
connection.py below it); questions go there, and answers come back through a descriptor (mailbox.py). Import this module
where a link is opened, and nowhere else.

Every job has subjects `torpor.JOB.>` and a bucket `torpor-JOB` of its own, on its own servers as on a site's.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable
from typing import Any

from torpor.link import hello
from torpor.link.connection import REQUEST, Job, Loop, Work
from torpor.link.engine import Engine
from torpor.link.link import ANY, LIMIT, PROTOCOL, Done, Entry, LinkDown, LinkError, Message, Status
from torpor.link.mailbox import Mailbox
from torpor.link.secret import Secret
from torpor.link.server import PAYLOAD
from torpor.link.session import Out, Session
from torpor.model.errors import TorporError

LONGEST = PAYLOAD - 4096
"""Bytes of a message or a value."""


class NatsLink:
    """See Link. Opening returns at once; `on_status` tells when it is up."""

    def __init__(self, engine: Engine, secret: Secret, host: str, protocol: int = PROTOCOL) -> None:
        self.host = host
        self._mail = Mailbox()
        self._listeners: list[Callable[[Status], None]] = []
        self._status = Status(False, "not connected yet")
        self._topics: dict[str, Callable[[Message], None]] = {}
        self._watches: dict[str, Callable[[str, Entry | None], None]] = {}
        self._closed = False
        self._loop = Loop()
        job = Job(secret, hello.ours(secret, host, protocol=protocol), secret.job)
        post = self._mail.post
        out = Out(
            status=lambda status: post(lambda: self._turn(status)),
            message=lambda message: post(lambda: self._hear(message)),
            change=lambda pattern, key, entry: post(lambda: self._tell(pattern, key, entry)),
            answer=lambda done, result, error: post(lambda: done(result, error)),
        )
        self._session = Session(engine, job, self._loop, out)
        self._thread = threading.Thread(target=self._body, name="torpor-link", daemon=True)
        self._thread.start()

    @property
    def fd(self) -> int:
        return self._mail.fd

    def deliver(self, events: int = 0) -> None:
        self._mail.deliver(events)

    def on_status(self, callback: Callable[[Status], None]) -> None:
        self._mail.post(lambda: self._listen(callback))

    def _listen(self, callback: Callable[[Status], None]) -> None:
        self._listeners.append(callback)
        callback(self._status)

    def _turn(self, status: Status) -> None:
        self._status = status
        for callback in list(self._listeners):
            callback(status)

    def publish(self, topic: str, payload: bytes) -> None:
        if len(payload) > LONGEST:
            raise LinkError(f"a message of {len(payload)} bytes: {LONGEST} at most")
        self._ask(lambda: self._session.send(self.host, topic, bytes(payload)))

    def subscribe(self, topic: str, callback: Callable[[Message], None]) -> None:
        self._topics[topic] = callback
        self._ask(lambda: self._session.subscribe(topic))

    def unsubscribe(self, topic: str) -> None:
        self._topics.pop(topic, None)
        self._ask(lambda: self._session.unsubscribe(topic))

    def _hear(self, message: Message) -> None:
        callback = self._topics.get(message.topic)
        if callback is not None:
            callback(message)

    def get(self, key: str, done: Done, limit: float = LIMIT) -> None:
        self._persist(self._session.read(key), done, limit)

    def put(self, key: str, value: bytes, done: Done, expect: int = ANY, limit: float = LIMIT) -> None:
        if len(value) > LONGEST:
            self._fail(done, LinkError(f"{key}: a value of {len(value)} bytes: {LONGEST} at most"))
            return
        self._persist(self._session.write(key, bytes(value), expect), done, limit)

    def delete(self, key: str, done: Done, expect: int = ANY, limit: float = LIMIT) -> None:
        self._persist(self._session.remove(key, expect), done, limit)

    def watch(self, pattern: str, callback: Callable[[str, Entry | None], None]) -> None:
        self._watches[pattern] = callback
        self._ask(lambda: self._session.watch(pattern))

    def unwatch(self, pattern: str) -> None:
        self._watches.pop(pattern, None)
        self._ask(lambda: self._session.unwatch(pattern))

    def _tell(self, pattern: str, key: str, entry: Entry | None) -> None:
        callback = self._watches.get(pattern)
        if callback is not None:
            callback(key, entry)

    def destroy(self, done: Done, limit: float = LIMIT) -> None:
        self._persist(self._session.destroy(), done, limit)

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._loop.call_soon_threadsafe(self._session.stop)
        self._thread.join(REQUEST + 3.0)
        self._mail.close()

    # ---- to the other thread

    def _ask(self, work: Callable[[], Awaitable[None]]) -> None:
        """Have the other thread do something; in the order of asking."""
        if not self._closed:
            self._loop.call_soon_threadsafe(self._session.begin, work)

    def _persist(self, work: Work, done: Done, limit: float) -> None:
        until = time.monotonic() + limit
        if self._closed:
            self._fail(done, LinkDown("the link is closed"))
        else:
            self._ask(lambda: self._session.persist(work, done, until))

    def _fail(self, done: Done, error: TorporError) -> None:
        self._mail.post(lambda: done(None, error))

    def _body(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.set_exception_handler(_nothing)  # of connections that were given up
        try:
            self._loop.run_until_complete(self._session.live())
        finally:
            for task in asyncio.all_tasks(self._loop):
                task.cancel()
            self._loop.run_until_complete(asyncio.sleep(0))
            self._loop.close()


def _nothing(_loop: asyncio.AbstractEventLoop, _context: dict[str, Any]) -> None:
    pass
