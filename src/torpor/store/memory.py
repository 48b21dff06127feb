"""A store in the memory of this process, for tests: the smallest back end there is."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from typing import ClassVar

from torpor.model.data import Buffer
from torpor.store.backend import Stat


class MemoryUpload:
    """See backend.Upload. on_finish: called with the bytes."""

    def __init__(self, memory: Memory, name: str) -> None:
        self._memory: Memory | None = memory
        self._name = name
        self._data = bytearray()

    def write(self, offset: int, data: Buffer) -> None:
        self._data.extend(bytes(offset - len(self._data)))
        self._data.extend(data)

    def finish(self) -> None:
        if self._memory is not None:
            self._memory.put(self._name, [self._data])
            self._memory = None

    def discard(self) -> None:
        self._memory = None


class Memory:
    """See backend.Backend. Stores of one name are the same store."""

    lanes = 1
    pack_size = 32 << 20
    _all: ClassVar[dict[str, Memory]] = {}

    def __init__(self, place: str) -> None:
        self.place = place
        self._objects: dict[str, tuple[bytes, float]] = {}
        self._lock = threading.Lock()

    @classmethod
    def of(cls, name: str) -> Memory:
        return cls._all.setdefault(name, cls(f"memory:{name}"))

    def prepare(self) -> None:
        pass

    def lag(self) -> float:
        return 0.0

    def put(self, name: str, pieces: Sequence[Buffer], durable: bool = True) -> bool:
        made = (b"".join(pieces), time.time())
        with self._lock:
            return self._objects.setdefault(name, made) is made

    def create(self, name: str, lane: int = 0) -> MemoryUpload:
        return MemoryUpload(self, name)

    def sync(self, folder: str) -> None:
        pass

    def get(self, name: str, offset: int = 0, length: int = -1) -> bytes:
        data = self._look(name)[0]
        return data[offset:] if length < 0 else data[offset : offset + length]

    def list(self, folder: str) -> list[str]:
        start = f"{folder}/" if folder else ""
        with self._lock:
            found = [name[len(start) :] for name in self._objects if name.startswith(start)]
        return sorted({name.partition("/")[0] for name in found})

    def stat(self, name: str) -> Stat:
        data, when = self._look(name)
        return Stat(len(data), when)

    def touch(self, name: str) -> None:
        with self._lock:
            self._objects[name] = (self._look(name)[0], time.time())

    def delete(self, name: str) -> None:
        with self._lock:
            self._objects.pop(name, None)

    def path(self, name: str) -> str | None:
        return None

    def tidy(self, before: float) -> None:
        pass

    def close(self) -> None:
        pass

    def _look(self, name: str) -> tuple[bytes, float]:
        try:
            return self._objects[name]
        except KeyError:
            raise FileNotFoundError(2, "no such object", f"{self.place}/{name}") from None
