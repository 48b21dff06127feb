"""What goes on in the thread of a NATS link: a connection is kept, questions are asked until they are answered.

A connection that fails is given up and a new one is made, to the next server. A question that was under way is asked
again, until its limit, with the same message id, by which it is seen whether it was carried out already.

What other hosts write is noticed by messages that the server sends once it has stored something (`republish`); because
a message can be lost, what is watched is also looked at anew after each reconnection and every RESYNC seconds.

Everything is closed with the job's key (secret.Seal), and a message that was sent before is not heard again: each
carries the sender's number of it.
"""

from __future__ import annotations

import asyncio
import os
import struct
import time
from collections.abc import Awaitable, Callable
from typing import Any

from nats.aio.msg import Msg

from torpor.link.connection import CONNECT, OPERATION, REQUEST, TROUBLE, Connection, Job, Loop, Work, ids, removed
from torpor.link.engine import Engine
from torpor.link.link import ABSENT, Conflict, Done, Entry, LinkDown, Message, Mismatch, Status, Stranger, matches
from torpor.link.secret import Seal
from torpor.model.errors import TorporError
from torpor.named_tuple import NamedTuple

PING = 1.0
"""Seconds between two looks whether the server still answers."""
PAUSE = 0.2
"""Seconds between two attempts to connect."""
RESYNC = 10.0
"""Seconds between two looks at what is watched."""

_HEAD = struct.Struct(">8sQH")
"""Before a message: which run of the sender it is from, its number, the length of the sender's name that follows."""
_SEQUENCE = "Nats-Sequence"
"""The header with the revision, of what the server sends once it has stored something."""


class Out(NamedTuple):
    """Where it all goes; called in this thread."""

    status: Callable[[Status], None]
    message: Callable[[Message], None]
    change: Callable[[str, str, Entry | None], None]
    """(pattern, key, entry)."""
    answer: Callable[[Done, Any, TorporError | None], None]


class Watched:
    """What is known of the keys of one pattern: the last revision, and whether it is there."""

    def __init__(self, pattern: str) -> None:
        self.pattern = pattern
        self.known: dict[str, tuple[int, bool]] = {}
        self.busy = False
        self.subscription: Any = None


class Session:
    """All of it belongs to the thread that runs `live`."""

    def __init__(self, engine: Engine, job: Job, loop: Loop, out: Out) -> None:
        self._engine = engine
        self._job = job
        self._loop = loop
        self._out = out
        self._seal = Seal(job.secret)
        self._run = os.urandom(8)
        self._number = 0
        self._heard: dict[tuple[bytes, str], int] = {}
        self._topics: dict[str, Any] = {}
        """The subscriptions, None where there is no connection."""
        self._watched: dict[str, Watched] = {}
        self._connection: Connection | None = None
        self._ready = asyncio.Event()
        self._stop = asyncio.Event()
        self._final: TorporError | None = None
        self._known = b""
        self._why = ""
        self._tasks: set[asyncio.Task[None]] = set()

    def begin(self, work: Callable[[], Awaitable[None]]) -> None:
        """Start something. Where a connection fails over it, the next one makes up for it."""

        async def whole() -> None:
            connection = self._connection
            try:
                await work()
            except TROUBLE as error:
                if connection is not None:
                    connection.why = error
                    connection.broken.set()

        task = self._loop.create_task(whole())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def stop(self) -> None:
        """Let `live` return."""
        self._stop.set()

    # ---- the connection

    async def live(self) -> None:
        """Keep a connection until `stop`."""
        urls = list(self._engine.urls)
        turn = int.from_bytes(os.urandom(2), "big")  # the hosts spread over the servers
        while not self._stop.is_set() and self._final is None:
            connection = Connection(self._engine, self._job)
            why: BaseException | None = None
            try:
                url = urls[turn % len(urls)]
                self._known = await asyncio.wait_for(connection.open(url, self._known), 3 * CONNECT)
                await self._stay(connection)
            except (Mismatch, Stranger) as error:
                self._final = error
            except (*TROUBLE, TorporError) as error:
                why = error
            self._ready.clear()
            self._connection = None
            self._topics = dict.fromkeys(self._topics)
            if not self._engine.tls_first:  # of our own servers all are known
                scheme = urls[0].partition(":")[0]
                found = [f"{scheme}://{url.netloc.rpartition('@')[2]}" for url in connection.client.discovered_servers]
                urls += [url for url in found if url not in urls]
            turn += 1
            self._why = str(self._final) if self._final else self._reason(connection.why or why)
            self._out.status(Status(False, self._why, self._final is not None))
            await self._leave(connection)
        await self._stop.wait()

    async def _leave(self, connection: Connection) -> None:
        closing = asyncio.ensure_future(connection.close())
        self._tasks.add(closing)
        closing.add_done_callback(self._tasks.discard)
        if self._stop.is_set():
            await asyncio.wait([closing], timeout=REQUEST)
        elif self._final is None:
            await self._sleep(PAUSE)

    def _reason(self, error: BaseException | None) -> str:
        text = str(error or "").removeprefix("nats: ").strip() or (type(error).__name__ if error else "it was lost")
        return f"no connection to NATS ({', '.join(self._engine.urls)}): {text}"

    async def _sleep(self, seconds: float) -> None:
        try:
            await asyncio.wait_for(self._stop.wait(), seconds)
        except TimeoutError:
            pass

    async def _stay(self, connection: Connection) -> None:
        """The link is up, until the server stops answering."""
        self._connection = connection
        for topic in self._topics:
            await self._hear(connection, topic)
        for watched in self._watched.values():
            await self._follow(connection, watched)
        await connection.client.flush(REQUEST)  # type: ignore[arg-type]
        self._ready.set()
        self._out.status(Status(True))
        looked = 0.0
        while not self._stop.is_set() and not connection.broken.is_set() and self._final is None:
            if time.monotonic() - looked > RESYNC:
                looked = time.monotonic()
                for watched in self._watched.values():
                    self.begin(lambda watched=watched: self._refresh(watched))  # type: ignore[misc]
            await connection.client.flush(REQUEST)  # type: ignore[arg-type]
            waits = [asyncio.ensure_future(event.wait()) for event in (self._stop, connection.broken)]
            try:
                await asyncio.wait(waits, timeout=PING, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for each in waits:
                    each.cancel()

    # ---- messages

    async def send(self, host: str, topic: str, payload: bytes) -> None:
        self._number += 1
        if self._connection is not None and self._ready.is_set():
            name = host.encode()
            sealed = self._seal.close(_HEAD.pack(self._run, self._number, len(name)) + name + payload, f"topic {topic}")
            await self._connection.client.publish(self._job.prefix + topic, sealed)

    async def subscribe(self, topic: str) -> None:
        if topic not in self._topics:
            self._topics[topic] = None
            if self._connection is not None:
                await self._hear(self._connection, topic)

    async def unsubscribe(self, topic: str) -> None:
        subscription = self._topics.pop(topic, None)
        if subscription is not None:
            await subscription.unsubscribe()

    async def _hear(self, connection: Connection, topic: str) -> None:
        async def arrived(msg: Msg) -> None:
            plain = self._seal.open(msg.data, f"topic {topic}")
            if plain is None or len(plain) < _HEAD.size:
                return  # not of this job
            run, number, length = _HEAD.unpack_from(plain)
            if self._heard.get((run, topic), 0) >= number:
                return  # played back by somebody
            self._heard[run, topic] = number
            sender = plain[_HEAD.size : _HEAD.size + length].decode(errors="replace")
            self._out.message(Message(sender, topic, plain[_HEAD.size + length :]))

        self._topics[topic] = await connection.client.subscribe(self._job.prefix + topic, cb=arrived)

    # ---- keys and values

    async def persist(self, work: Work, done: Done, until: float) -> None:
        """Ask until there is an answer, or no time left (monotonic)."""
        result: Any = None
        error: TorporError | None = None
        why = ""
        while not self._stop.is_set():
            try:
                if self._final is not None:
                    raise self._final
                left = until - time.monotonic()
                if left <= 0:
                    raise LinkDown(f"no answer from NATS in time: {self._why or why or 'it is busy'}")
                await asyncio.wait_for(self._ready.wait(), min(left, 0.5))
                if self._connection is None:
                    continue
                result = await asyncio.wait_for(work(self._connection), min(left, REQUEST))
                break
            except TorporError as failed:
                error = failed
                break
            except TROUBLE as failed:
                why = str(failed) or why
                if self._ready.is_set():
                    await self._sleep(0.1)
        else:
            return
        self._out.answer(done, result, error)

    def read(self, key: str) -> Work:
        async def work(connection: Connection) -> Entry | None:
            raw = await connection.raw(key)
            if raw is None or removed(raw):
                return None
            value = self._seal.open(raw.data or b"", f"key {key}")
            if value is None:
                raise Stranger(f"the key {key} was written by somebody who does not know the job's secret")
            return Entry(key, value, raw.seq or 0)

        return work

    def write(self, key: str, value: bytes, expect: int) -> Work:
        sealed = self._seal.close(value, f"key {key}")
        headers = ids()
        return lambda connection: connection.store(key, sealed, headers, expect)

    def remove(self, key: str, expect: int) -> Work:
        headers = {**ids(), OPERATION: "DEL"}

        async def work(connection: Connection) -> None:
            if expect == ABSENT:
                raise Conflict(f"{key}: what is not there cannot be removed")
            await connection.store(key, b"", headers, expect)

        return work

    def destroy(self) -> Work:
        async def work(connection: Connection) -> None:
            await connection.js.delete_key_value(self._job.bucket)
            self._final = LinkDown("the job has ended")

        return work

    # ---- watching

    async def watch(self, pattern: str) -> None:
        await self.unwatch(pattern)
        watched = self._watched[pattern] = Watched(pattern)
        if self._connection is not None and self._ready.is_set():
            await self._follow(self._connection, watched)
            await self._refresh(watched)

    async def unwatch(self, pattern: str) -> None:
        watched = self._watched.pop(pattern, None)
        if watched is not None and watched.subscription is not None and self._connection is not None:
            await watched.subscription.unsubscribe()

    async def _follow(self, connection: Connection, watched: Watched) -> None:
        """Have the server tell what it has stored."""
        source = f"{self._job.prefix}kv."

        async def stored(msg: Msg) -> None:
            headers = msg.headers or {}
            # What `>` of the source stood for is all that changes: servers differ in how much of it they keep.
            key = msg.subject.removeprefix(source).removeprefix(f"$KV.{self._job.bucket}.")
            sealed = None if OPERATION in headers else msg.data
            self._notice(watched, key, sealed, int(headers.get(_SEQUENCE, "0")))

        watched.subscription = await connection.client.subscribe(source + watched.pattern, cb=stored)

    async def _refresh(self, watched: Watched) -> None:
        """Look at everything that is watched by one pattern."""
        connection = self._connection
        if connection is None or watched.busy:
            return
        watched.busy = True
        try:
            if not watched.pattern.endswith(".>"):
                raw = await connection.raw(watched.pattern)
                if raw is not None:
                    sealed = None if removed(raw) else raw.data or b""
                    self._notice(watched, watched.pattern, sealed, raw.seq or 0)
                return
            watching = connection.kv.watch(watched.pattern, inactive_threshold=5.0)
            watcher: Any = await asyncio.wait_for(watching, REQUEST)
            try:
                while (entry := await watcher.updates(timeout=REQUEST)) is not None:
                    sealed = None if entry.operation else entry.value or b""
                    self._notice(watched, entry.key, sealed, entry.revision or 0)
            finally:
                await asyncio.wait_for(watcher.stop(), REQUEST)
        finally:
            watched.busy = False

    def _notice(self, watched: Watched, key: str, sealed: bytes | None, revision: int) -> None:
        """Somebody has written (None: removed) a key; tell it once."""
        if not matches(watched.pattern, key) or self._watched.get(watched.pattern) is not watched:
            return
        known, there = watched.known.get(key, (0, False))
        if revision <= known:
            return
        entry: Entry | None = None
        if sealed is not None:
            value = self._seal.open(sealed, f"key {key}")
            if value is None:
                return  # not of this job
            entry = Entry(key, value, revision)
        watched.known[key] = (revision, entry is not None)
        if entry is not None or there:
            self._out.change(watched.pattern, key, entry)
