"""A store in one file, an SQLite database: an example of a back end that torpor does not know.

What a back end has to promise stands in torpor/store/backend.py; the tests in tests/unit/store/test_store_backend.py
hold it, also for this one. An entry point in the group `torpor.stores` names the function that is called with the
location as the user gave it, and with whatever else the configuration file says about that store as keywords.
"""

from __future__ import annotations

import os
import sqlite3
import threading
import time
from collections.abc import Sequence

from torpor.model.data import Buffer
from torpor.store.backend import Stat, Upload


def open_onefile(location: str, *, timeout: float = 60.0) -> OneFile:
    """The store in the file behind `onefile:`. timeout: seconds to wait for another process that writes."""
    path = location.partition(":")[2]
    if not os.path.isabs(path):
        raise ValueError("the file has to be named with its whole path")
    return OneFile(location, path, timeout)


class OneFile:
    """See torpor.store.backend.Backend."""

    lanes = 1
    pack_size = 16 << 20

    def __init__(self, place: str, path: str, timeout: float) -> None:
        self.place = place
        self._path = path
        self._timeout = timeout
        self._lock = threading.Lock()
        self._connection: sqlite3.Connection | None = None
        self._owner = 0

    def prepare(self) -> None:
        os.makedirs(os.path.dirname(self._path), mode=0o700, exist_ok=True)
        if not os.path.exists(self._path):
            os.close(os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        with self._lock:
            self._run("CREATE TABLE IF NOT EXISTS objects (name TEXT PRIMARY KEY, data BLOB, time REAL)")

    def lag(self) -> float:
        return 0.0

    def put(self, name: str, pieces: Sequence[Buffer], durable: bool = True) -> bool:
        # The primary key is the put-if-absent; a commit is durable (PRAGMA synchronous is FULL unless changed).
        words = "INSERT OR IGNORE INTO objects VALUES (?, ?, ?)"
        with self._lock:
            return self._run(words, name, b"".join(pieces), time.time()).rowcount == 1

    def create(self, name: str, lane: int = 0) -> Upload:
        return _Upload(self, name)

    def sync(self, folder: str) -> None:
        pass

    def get(self, name: str, offset: int = 0, length: int = -1) -> bytes:
        size = "length(data)" if length < 0 else "?3"
        words = f"SELECT substr(data, ?2 + 1, {size}) FROM objects WHERE name = ?1"
        return bytes(self._one(words, name, offset, *(() if length < 0 else (length,)))[0])

    def list(self, folder: str) -> list[str]:
        start = f"{folder}/" if folder else ""
        with self._lock:
            found = self._run("SELECT name FROM objects WHERE substr(name, 1, ?) = ?", len(start), start).fetchall()
        return sorted({name[len(start) :].partition("/")[0] for (name,) in found})

    def stat(self, name: str) -> Stat:
        return Stat(*self._one("SELECT length(data), time FROM objects WHERE name = ?1", name))

    def touch(self, name: str) -> None:
        with self._lock:
            if not self._run("UPDATE objects SET time = ? WHERE name = ?", time.time(), name).rowcount:
                raise FileNotFoundError(2, "no such object", f"{self.place}/{name}")

    def delete(self, name: str) -> None:
        with self._lock:
            self._run("DELETE FROM objects WHERE name = ?", name)

    def path(self, name: str) -> str | None:
        return None

    def tidy(self, before: float) -> None:
        pass

    def close(self) -> None:
        with self._lock:
            if self._connection is not None and self._owner == os.getpid():
                self._connection.close()
            self._connection = None

    def _one(self, words: str, name: str, *more: object) -> tuple[object, ...]:
        with self._lock:
            found: tuple[object, ...] | None = self._run(words, name, *more).fetchone()
        if found is None:
            raise FileNotFoundError(2, "no such object", f"{self.place}/{name}")
        return found

    def _run(self, words: str, *values: object) -> sqlite3.Cursor:
        """Carry out a statement. A connection must not be taken over a fork. Errors become OSErrors, as a back end's
        have to be."""
        try:
            if self._connection is None or self._owner != os.getpid():
                if not os.path.exists(self._path):
                    return sqlite3.connect(":memory:").execute("SELECT 0 WHERE 0")
                self._connection = sqlite3.connect(
                    self._path, timeout=self._timeout, isolation_level=None, check_same_thread=False
                )
                self._owner = os.getpid()
            return self._connection.execute(words, values)
        except sqlite3.OperationalError as error:
            if "no such table" in str(error):
                return sqlite3.connect(":memory:").execute("SELECT 0 WHERE 0")
            raise OSError(5, str(error), self._path) from None
        except sqlite3.DatabaseError as error:
            raise OSError(5, str(error), self._path) from None


class _Upload:
    """See torpor.store.backend.Upload. Gathered in memory: then it is one transaction."""

    def __init__(self, store: OneFile, name: str) -> None:
        self._store: OneFile | None = store
        self._name = name
        self._data = bytearray()

    def write(self, offset: int, data: Buffer) -> None:
        self._data.extend(bytes(offset - len(self._data)))
        self._data.extend(data)

    def finish(self) -> None:
        if self._store is not None:
            self._store.put(self._name, [self._data])
            self._store = None

    def discard(self) -> None:
        self._store = None
