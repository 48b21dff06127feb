"""A store in an object store (S3 and what speaks like it, Google Cloud Storage, Azure), through `obstore`.

Where it is comes from the URL; endpoint, region and credentials from the usual environment variables (AWS_...,
GOOGLE_..., AZURE_...) or from the configuration file.

A pack is one PUT: it is there whole or not at all, and whoever is killed in the middle of one leaves nothing behind.
(Parts of a multipart upload that was never completed would stay, invisible and paid for, and could be neither listed
nor removed from here.) So a pack is gathered in memory, and packs are smaller than on a disk; several go at the same
time.

A put-if-absent is a PUT with `If-None-Match: *`. Its answer may get lost, and then the repetition finds an object:
ours. That is told by a token in the object's metadata. Requests that fail in ways that pass (a cut connection, a 500)
are repeated for `patience` seconds; until the place has answered once, no longer than FIRST: who has the endpoint or
the credentials wrong is not to wait for minutes to be told.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from torpor.model.data import Buffer
from torpor.model.errors import UsageError
from torpor.store.backend import Stat

LANES = 4
PACK_SIZE = 16 << 20
PATIENCE = 60.0
FIRST = 8.0
"""Seconds for which requests are repeated as long as there was no answer at all."""
BACKOFF = 0.1
"""Seconds before the first repetition; then twice as long each time, up to 5 s."""
TIMEOUT = 120
"""Seconds that one request may take: a pack needs 140 kB/s at least."""
TOKEN = "torporput"
"""Name of the metadata field; Azure wants that of an identifier."""
MISSING = "NoSuchBucket"
"""What S3 answers where there is no bucket of that name."""
METADATA = "//169.254.169.254/"
"""Where machines of all three clouds ask who they are."""
ENDPOINTS = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT", "AZURE_STORAGE_ENDPOINT", "AZURE_ENDPOINT")

T = TypeVar("T")


def _library() -> Any:
    try:
        import obstore  # type: ignore[import-not-found,unused-ignore]
    except ImportError:
        raise UsageError("object stores need one more package: pip install 'torpor[cloud]'") from None
    return obstore


class ObjectUpload:
    """See backend.Upload. Gathered in memory, one PUT at the end."""

    def __init__(self, objects: Objects, name: str) -> None:
        self._objects: Objects | None = objects
        self._name = name
        self._pieces: list[bytes] = []
        self._size = 0

    def write(self, offset: int, data: Buffer) -> None:
        if offset > self._size:
            self._pieces.append(bytes(offset - self._size))
        self._pieces.append(bytes(data))
        self._size = offset + len(data)

    def finish(self) -> None:
        if self._objects is not None:
            self._objects.replace(self._name, b"".join(self._pieces))
            self.discard()

    def discard(self) -> None:
        self._objects = None
        self._pieces.clear()


class Objects:
    """See backend.Backend. `place` is the URL."""

    lanes = LANES
    pack_size = PACK_SIZE

    def __init__(self, place: str, *, lag: float = 0.0, patience: float = PATIENCE, **config: Any) -> None:
        """lag: see Backend.lag; S3, GCS and Azure never show old listings. patience: seconds for which a request is
        repeated. config: what obstore calls the options of that kind of store. Raises UsageError."""
        self.place = place
        self._lag = lag
        self._patience = patience
        self._obstore = _library()
        from datetime import timedelta

        from obstore import store as stores

        # Whoever names an http endpoint means it.
        endpoints = [str(config.get("endpoint", "")), *(os.environ.get(name, "") for name in ENDPOINTS)]
        plain = any(each.startswith("http:") for each in endpoints)
        client = {"timeout": f"{TIMEOUT}s", "connect_timeout": "10s", "allow_http": plain}

        def connect(seconds: float) -> Any:
            retry = {
                "max_retries": 100,
                "retry_timeout": timedelta(seconds=seconds),
                "backoff": {"init_backoff": timedelta(seconds=BACKOFF), "max_backoff": timedelta(seconds=5), "base": 2},
            }
            from_url: Any = stores.from_url
            try:
                return from_url(place, config=config or None, client_options=client, retry_config=retry)
            except (self._obstore.exceptions.BaseError, ValueError, TypeError) as error:
                raise UsageError(f"{place}: {_line(error)}") from None

        self._connect = connect
        self._answered = patience <= FIRST
        self._store = connect(min(patience, FIRST))

    def prepare(self) -> None:
        pass

    def lag(self) -> float:
        return self._lag

    def put(self, name: str, pieces: Sequence[Buffer], durable: bool = True) -> bool:
        token = os.urandom(16).hex()
        data = b"".join(pieces)

        def once() -> bool:
            try:
                mine = {TOKEN: token}
                self._obstore.put(self._store, name, data, mode="create", attributes=mine, use_multipart=False)
            except self._obstore.exceptions.AlreadyExistsError:
                return self._token(name) == token
            return True

        return self._persist(name, once)

    def replace(self, name: str, data: bytes) -> None:
        """Put a large object of a unique name."""
        self._persist(name, lambda: self._obstore.put(self._store, name, data, use_multipart=False))

    def create(self, name: str, lane: int = 0) -> ObjectUpload:
        return ObjectUpload(self, name)

    def sync(self, folder: str) -> None:
        pass

    def get(self, name: str, offset: int = 0, length: int = -1) -> bytes:
        if not length:
            self.stat(name)
            return b""

        def once() -> bytes:
            if length > 0:
                return bytes(self._obstore.get_range(self._store, name, start=offset, length=length))
            options = {"range": {"offset": offset}} if offset else None
            return bytes(self._obstore.get(self._store, name, options=options).bytes())

        try:
            return self._persist(name, once, (_PastTheEnd,))
        except _PastTheEnd:
            return b""

    def list(self, folder: str) -> list[str]:
        start = f"{folder}/" if folder else ""
        found = self._persist(folder, lambda: self._obstore.list_with_delimiter(self._store, start or None))
        names = [*found["common_prefixes"], *(each["path"] for each in found["objects"])]
        # Some servers list the folder itself as an object without a name.
        return [name[len(start) :] for name in names if len(name) > len(start)]

    def stat(self, name: str) -> Stat:
        found = self._persist(name, lambda: self._obstore.head(self._store, name))
        return Stat(found["size"], found["last_modified"].timestamp())

    def touch(self, name: str) -> None:
        """Put the same again, if it is still there: an object cannot be touched in any other way."""

        def once() -> None:
            found = self._obstore.head(self._store, name)
            data = bytes(self._obstore.get(self._store, name).bytes()) if found["size"] else b""
            version = {key: found[key] for key in ("e_tag", "version") if found[key]}
            try:
                self._obstore.put(self._store, name, data, mode=version, use_multipart=False)
            except self._obstore.exceptions.PreconditionError:
                # Gone, or touched by somebody else: the next look tells.
                self._obstore.head(self._store, name)

        self._persist(name, once)

    def delete(self, name: str) -> None:
        try:
            self._persist(name, lambda: self._obstore.delete(self._store, name))
        except FileNotFoundError:
            pass

    def path(self, name: str) -> str | None:
        return None

    def tidy(self, before: float) -> None:
        pass

    def close(self) -> None:
        pass

    def _token(self, name: str) -> str:
        try:
            found = self._obstore.get(self._store, name)
            return str(found.attributes.get(TOKEN, ""))
        except FileNotFoundError:
            return ""

    def _persist(self, name: str, call: Callable[[], T], expected: tuple[type[Exception], ...] = ()) -> T:
        """Carry out a request. What obstore does not repeat by itself (a put-if-absent whose answer was lost, a body
        that was cut off) is repeated here. Raises FileNotFoundError, OSError."""
        exceptions = self._obstore.exceptions
        end = time.monotonic() + (self._patience if self._answered else min(self._patience, FIRST))
        pause = BACKOFF
        while True:
            try:
                result = call()
                self._has_answered()
                return result
            except FileNotFoundError:
                self._has_answered()
                raise FileNotFoundError(errno.ENOENT, "no such object", f"{self.place}/{name}") from None
            except (exceptions.PermissionDeniedError, exceptions.UnauthenticatedError) as error:
                raise OSError(errno.EACCES, _line(error), f"{self.place}/{name}") from None
            except (exceptions.BaseError, OSError) as error:
                if _PastTheEnd in expected and "416" in _line(error):
                    raise _PastTheEnd from None
                if MISSING in str(error):
                    raise OSError(errno.EIO, "there is no such bucket", self.place) from None
                if time.monotonic() + pause > end or not isinstance(error, exceptions.GenericError):
                    raise OSError(errno.EIO, _line(error), f"{self.place}/{name}") from None
            time.sleep(pause)
            pause = min(2 * pause, 5.0)

    def _has_answered(self) -> None:
        if not self._answered:
            self._store = self._connect(self._patience)
            self._answered = True


class _PastTheEnd(Exception):
    """The range that was asked for begins behind the object's end."""


def _line(error: Exception) -> str:
    """What an error of obstore says, in one line."""
    text = " ".join(str(error).split("\n\nDebug")[0].split())
    if METADATA in text:
        # What it goes on to when it finds none, and then complains of at length.
        return "no credentials are set, and this machine has no metadata service that gives any"
    return text[:500]
