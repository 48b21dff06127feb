"""One connection to NATS, made as a whole or not at all: TLS, login, the job's bucket, versions. For session.py.

Closed for ever when it fails: nats-py's own reconnecting knows no limit for some of its waits.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
import os
from collections.abc import Awaitable, Callable
from typing import Any

import nats.errors
import nats.js.errors
from nats.aio.client import Client
from nats.js import JetStreamContext, api
from nats.js.kv import KeyValue

from torpor.link import hello
from torpor.link.engine import Engine, credentials
from torpor.link.link import ABSENT, ANY, Conflict, Stranger
from torpor.link.secret import Secret
from torpor.named_tuple import NamedTuple

CONNECT = 5.0
"""Seconds for each step of connecting."""
REQUEST = 3.0
"""Seconds for one answer of a server; after that the connection counts as lost."""
HELLO = "hello"
"""The key of what the first host of the job says about itself. Written once."""
OPERATION = "KV-Operation"
"""The header of what is stored where a key was removed."""
TROUBLE = (nats.errors.Error, OSError, TimeoutError, asyncio.TimeoutError, ValueError, KeyError)
"""What nats-py raises where a connection or a server fails, or an answer is not one."""
_ID = api.Header.MSG_ID.value
_WRONG_SEQUENCE = (10071, 10164)
_TOO_FEW_SERVERS = (10005, 10074)
"""JetStream's err_codes: another revision; no peers for so many replicas, replicas without a cluster."""
_REFUSED = ("authorization violation", "authentication")

# Without a handler Python prints their warnings on the standard error: the job's.
for _name in ("asyncio", "nats"):
    logging.getLogger(_name).addHandler(logging.NullHandler())


class Loop(asyncio.SelectorEventLoop):
    """With a limit for the end of TLS (asyncio waits 30 s for the other side's farewell); and it tells a Connection
    that TLS has begun: nats-py would go on in plain text if the server does not ask for it."""

    async def start_tls(self, *args: Any, **options: Any) -> Any:
        options.setdefault("ssl_handshake_timeout", CONNECT)
        options.setdefault("ssl_shutdown_timeout", 1.0)
        transport = await super().start_tls(*args, **options)
        _opening.get().secure = True
        return transport


_opening: contextvars.ContextVar[Connection] = contextvars.ContextVar("opening")
"""Whose `open` it is that a task runs."""


class Job(NamedTuple):
    """What a connection has to know of the job."""

    secret: Secret
    mine: hello.Hello
    name: str
    """Of the job among all on these servers."""

    @property
    def prefix(self) -> str:
        """Of its subjects."""
        return f"torpor.{self.name}."

    @property
    def bucket(self) -> str:
        return f"torpor-{self.name}"


class Connection:
    """Open it with `open`; `broken` is set once it is of no use any more."""

    def __init__(self, engine: Engine, job: Job) -> None:
        self.client = Client()
        self.js: JetStreamContext
        self.kv: KeyValue
        self.broken = asyncio.Event()
        self.why: BaseException | None = None
        self._engine = engine
        self._job = job
        self.secure = False

    async def open(self, url: str, known: bytes) -> bytes:
        """Connect. known: the first host's hello, b'' if we have not seen it yet; returns it. Raises what is in
        TROUBLE; Stranger and Mismatch where it makes no sense to try again."""
        _opening.set(self)
        try:
            await self.client.connect(
                [url],
                error_cb=self._failed,
                closed_cb=self._over,
                name=f"torpor {self._job.mine.host}",
                allow_reconnect=False,
                max_reconnect_attempts=1,
                reconnect_time_wait=0,
                connect_timeout=CONNECT,  # type: ignore[arg-type]
                ping_interval=3600,  # session.py looks by itself
                flush_timeout=REQUEST,
                **login(self._engine, self._secured),
            )
        except nats.errors.NoServersError:
            raise self.why or OSError("no answer") from None
        except nats.errors.Error as error:
            if any(word in str(error).lower() for word in _REFUSED):
                raise Stranger(f"the NATS server {url} does not let us in: {error}") from None
            raise
        self._secured()
        self.broken.clear()
        self.js = self.client.jetstream(timeout=REQUEST)
        self.kv = await self._prepare(new=not known)
        return await self._greet(known)

    async def close(self) -> None:
        """What it still has to say is not waited for long. Raises nothing."""
        try:
            await asyncio.wait_for(self.client.close(), REQUEST)
        except (*TROUBLE, AssertionError, AttributeError):
            pass

    async def _failed(self, error: Exception) -> None:
        self.why = error
        if not isinstance(error, nats.errors.SlowConsumerError):
            self.broken.set()

    async def _over(self) -> None:
        self.broken.set()

    def _secured(self) -> None:
        if self._engine.insist and not self.secure:
            raise OSError("the server does not begin with TLS")

    async def _prepare(self, new: bool) -> KeyValue:
        """The job's bucket, made by whoever comes first. Never made again once it was seen."""
        bucket, wanted = self._job.bucket, self._engine.replicas
        try:
            return await self.js.key_value(bucket)
        except nats.js.errors.NotFoundError:
            if not new:
                raise _gone() from None
        for replicas in (wanted,) if wanted else (3, 1):
            try:
                return await self.js.create_key_value(
                    bucket=bucket,
                    replicas=replicas,
                    history=1,
                    direct=False,  # the leader answers: as new as the last write
                    republish=api.RePublish(src=f"$KV.{bucket}.>", dest=f"{self._job.prefix}kv.>"),
                )
            except nats.js.errors.APIError as error:
                if replicas == 1 or wanted or error.err_code not in _TOO_FEW_SERVERS:
                    raise
        raise AssertionError("replicas")

    async def _greet(self, known: bytes) -> bytes:
        """Is this the state we know, and of a version that we know?"""
        raw = await self.raw(HELLO)
        if raw is None and not known:
            mine = hello.encode(self._job.mine, self._job.secret, "state")
            try:
                await self.store(HELLO, mine, ids(), ABSENT)
            except Conflict:
                pass  # somebody else was quicker
            raw = await self.raw(HELLO)
        found = bytes(raw.data or b"") if raw is not None else b""
        if known and found != known:
            raise _gone()
        hello.check(self._job.mine, hello.decode(found, self._job.secret, "state"))
        return found

    async def raw(self, key: str) -> api.RawStreamMsg | None:
        """The last that was stored for a key; None if nothing ever was. Where the key was removed, see `removed`."""
        try:
            return await self.js.get_msg(
                f"KV_{self._job.bucket}", subject=f"$KV.{self._job.bucket}.{key}", direct=False
            )
        except nats.js.errors.NotFoundError:
            return None

    async def store(self, key: str, data: bytes, headers: dict[str, str], expect: int) -> int:
        """Publish to the key's subject; the revision. headers: among them a message id, by which a question that is
        asked again is known to have been answered before. Raises Conflict."""
        expected = expect
        for again in (False, True):
            told = dict(headers)
            if expect != ANY:
                told[api.Header.EXPECTED_LAST_SUBJECT_SEQUENCE.value] = str(expected)
            try:
                ack = await self.js.publish(f"$KV.{self._job.bucket}.{key}", data, timeout=REQUEST, headers=told)
                return ack.seq
            except nats.js.errors.APIError as error:
                if error.err_code not in _WRONG_SEQUENCE:
                    raise
            # The server looks at the revision first and at the message id then, or not at all.
            last = await self.raw(key)
            if last is not None and last.seq and (last.headers or {}).get(_ID) == headers[_ID]:
                return last.seq
            # What was removed has left a revision behind.
            if again or expect != ABSENT or last is None or not last.seq or not removed(last):
                break
            expected = last.seq
        raise Conflict(f"{key} has another revision" if expect else f"{key} is there already")


def removed(raw: api.RawStreamMsg) -> bool:
    """Does this say that the key is there no more?"""
    return OPERATION in (raw.headers or {})


def ids() -> dict[str, str]:
    """The header that tells one question from all others."""
    return {_ID: os.urandom(12).hex()}


def _gone() -> Stranger:
    return Stranger("the job's state is gone from the NATS servers")


def login(engine: Engine, secured: Callable[[], None]) -> dict[str, Any]:
    """What we show to a server. secured: raises OSError where nothing may be shown yet, because TLS has not begun."""
    out: dict[str, Any] = {"tls_handshake_first": engine.tls_first}
    if engine.tls is not None:
        out["tls"] = engine.tls()
        if engine.tls_name:
            out["tls_hostname"] = engine.tls_name

    def guarded(value: str) -> Callable[[], str]:
        def give() -> str:
            secured()
            return value

        return give

    if engine.user and engine.password:
        out |= {"user": engine.user, "password": guarded(engine.password)}
    elif engine.user:
        out["token"] = guarded(engine.user)
    if engine.credentials:
        with open(engine.credentials, encoding="utf-8") as file:
            given = credentials(file.read())

        def sign(nonce: str) -> bytes:
            secured()
            return given.sign(nonce)

        out |= {"user_jwt_cb": lambda: bytearray(given.jwt.encode()), "signature_cb": sign}
    return out


Work = Callable[[Connection], Awaitable[Any]]
"""Something to be asked over a connection, and once more over the next if that one fails."""
