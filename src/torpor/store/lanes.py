"""How chunks get into packs: which pack takes one, who writes it, and when.

Where the page cache takes what is written (`Backend.lanes` is 1), the thread that has a chunk writes it: no chunk
is copied, and each thread has a pack to itself for that moment. Full packs go to a background thread that makes
them durable; if that falls behind, `add` waits.

Where several places can take data at the same time (many disks, connections to an object store), each has a
*lane*: a queue of chunks with a thread that writes them, and an open pack. A chunk goes to the lane that is in use
until that one falls behind, then to whichever has least to do: so all lanes are busy when data comes faster than
one can take it, and a slow disk gets less. The waiting chunks are the only ones that are copied.

Both tell a gauge (pace.py) how long it takes.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Protocol

from torpor.model.data import Buffer
from torpor.store import pack
from torpor.store.backend import Backend
from torpor.store.pace import Gauge
from torpor.store.table import Place

WAITING = 4
"""Full packs that may wait to be made durable before `add` waits."""
BEHIND = 1 << 20
"""Bytes not yet written with which a lane counts as falling behind."""
BACKLOG = 4 << 20
"""Bytes not yet written with which a lane takes no more."""


class Packs(Protocol):
    """Takes encoded chunks. `add` may be called from several threads; the rest when all calls have returned."""

    finished: list[bytes]
    """IDs of the packs that are there under their names."""
    gauge: Gauge

    def add(self, name: bytes, encoding: int, stored: Buffer, length: int) -> Place:
        """Write a chunk, now or soon; where it will be. `stored` may be reused at once. Raises OSError, also for
        what went wrong with earlier ones."""
        ...

    def finish(self) -> None:
        """All packs are there when this returns. Raises OSError."""
        ...

    def discard(self) -> None:
        """Forget what is not finished. May be called at any time."""
        ...


def of(backend: Backend, on_error: Callable[[OSError], object]) -> Packs:
    """What suits the back end. on_error: called as soon as something cannot be written, from any thread."""
    return Spread(backend, on_error) if backend.lanes > 1 else Direct(backend, on_error)


class Direct:
    """See Packs: whoever adds writes."""

    def __init__(self, backend: Backend, on_error: Callable[[OSError], object]) -> None:
        self.finished: list[bytes] = []
        self.gauge = _gauge(backend)
        self._backend = backend
        self._on_error = on_error
        self._idle: list[pack.Writer] = []
        self._queue: deque[pack.Writer] = deque()
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._closing = False
        self._error: OSError | None = None

    def add(self, name: bytes, encoding: int, stored: Buffer, length: int) -> Place:
        try:
            writer = self._idle.pop()
        except IndexError:
            writer = pack.Writer(self._backend)
        began, waited = time.monotonic(), 0.0
        place = writer.place(name, encoding, len(stored), length)
        try:
            writer.write(place.offset, stored)
        except OSError:
            self._idle.append(writer)
            raise
        if writer.full:
            waited = self._hand_over(writer)
        else:
            self._idle.append(writer)
        self.gauge.added(began, time.monotonic(), waited, len(stored))
        return place

    def finish(self) -> None:
        self._close()
        while self._idle:
            writer = self._idle.pop()
            try:
                self._finish(writer)
            except OSError:
                writer.discard()
                raise
        if self._thread is not None:
            self._thread.join()
        if self._error is not None:
            raise self._error

    def discard(self) -> None:
        self._error = self._error or OSError("given up")
        self._close()
        if self._thread is not None:
            self._thread.join()
        for writer in (*self._idle, *self._queue):
            writer.discard()

    def _close(self) -> None:
        with self._changed:
            self._closing = True
            self._changed.notify_all()

    def _hand_over(self, writer: pack.Writer) -> float:
        """Give a full pack to the background thread; wait while it has enough, for so many seconds."""
        waited = 0.0
        with self._changed:
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="torpor-store", daemon=True)
                self._thread.start()
            while len(self._queue) >= WAITING and self._error is None:
                waited += _wait(self._changed)
            self._queue.append(writer)
            self._changed.notify_all()
        return waited

    def _run(self) -> None:
        """The background thread: makes packs durable."""
        while True:
            with self._changed:
                self._changed.notify_all()
                while not self._queue and not self._closing:
                    self._changed.wait()
                if self._error is not None or not self._queue:
                    return
                writer = self._queue.popleft()
            began = time.monotonic()
            self.gauge.begin(began)
            try:
                self._finish(writer)
            except OSError as error:
                writer.discard()
                with self._changed:
                    self._error = error
                    self._changed.notify_all()
                self._on_error(error)
                return
            now = time.monotonic()
            self.gauge.pack(now, writer.size, now - began)
            self.gauge.end(now, 0)

    def _finish(self, writer: pack.Writer) -> None:
        writer.finish()
        self.finished.append(writer.pack)


class _Lane:
    __slots__ = ("backlog", "before", "busy", "done", "number", "queue", "taken", "thread", "writer")

    def __init__(self, number: int) -> None:
        self.number = number
        self.queue: deque[tuple[pack.Writer, int, bytes]] = deque()
        """What is to be written: pack, offset, chunk; no chunk: the pack is to be finished."""
        self.backlog = 0
        """Bytes that are not written yet."""
        self.taken = self.done = 0
        """Bytes it ever got, and has written."""
        self.busy = 0.0
        """Seconds it took to write them."""
        self.before = 0.0
        """The same up to the pack that it is writing."""
        self.writer: pack.Writer | None = None
        self.thread: threading.Thread | None = None


class Spread:
    """See Packs: a thread for each lane writes."""

    def __init__(self, backend: Backend, on_error: Callable[[OSError], object]) -> None:
        self.finished: list[bytes] = []
        self.gauge = _gauge(backend)
        self._backend = backend
        self._on_error = on_error
        self._lanes = [_Lane(number) for number in range(backend.lanes)]
        self._current = self._lanes[0]
        self._open: set[pack.Writer] = set()
        self._changed = threading.Condition()
        self._closing = False
        self._error: OSError | None = None

    def add(self, name: bytes, encoding: int, stored: Buffer, length: int) -> Place:
        began = time.monotonic()
        own = stored if isinstance(stored, bytes) else bytes(stored)
        with self._changed:
            lane, waited = self._choose()
            writer = lane.writer
            if writer is None:
                writer = lane.writer = pack.Writer(self._backend, lane.number)
                self._open.add(writer)
            place = writer.place(name, encoding, len(own), length)
            lane.queue.append((writer, place.offset, own))
            lane.backlog += len(own)
            lane.taken += len(own)
            if writer.full:
                self._end_pack(lane)
                self._current = min(self._lanes, key=_work)
            self._changed.notify_all()
        if lane.thread is None:
            self._start(lane)
        self.gauge.added(began, time.monotonic(), waited, len(own))
        return place

    def finish(self) -> None:
        with self._changed:
            for lane in self._lanes:
                self._end_pack(lane)
            self._closing = True
            self._changed.notify_all()
        self._join()
        if self._error is not None:
            raise self._error

    def discard(self) -> None:
        with self._changed:
            self._error = self._error or OSError("given up")
            self._closing = True
            self._changed.notify_all()
        self._join()
        for writer in self._open:
            writer.discard()

    def _choose(self) -> tuple[_Lane, float]:
        """The lane that takes the next chunk; waits until one can, for so many seconds. The lock is held."""
        waited = 0.0
        while True:
            if self._error is not None:
                raise self._error
            if self._current.backlog >= BEHIND:
                self._current = min(self._lanes, key=_work)
            if self._current.backlog < BACKLOG:
                return self._current, waited
            waited += _wait(self._changed)

    def _end_pack(self, lane: _Lane) -> None:
        if lane.writer is not None:
            lane.queue.append((lane.writer, 0, b""))
            lane.writer = None

    def _start(self, lane: _Lane) -> None:
        with self._changed:
            if lane.thread is None:
                lane.thread = threading.Thread(target=self._run, args=(lane,), name="torpor-lane", daemon=True)
                lane.thread.start()

    def _join(self) -> None:
        for lane in self._lanes:
            if lane.thread is not None:
                lane.thread.join()

    def _run(self, lane: _Lane) -> None:
        """A lane's thread."""
        while True:
            with self._changed:
                while not lane.queue and not self._closing:
                    self._changed.wait()
                if self._error is not None or not lane.queue:
                    return
                writer, offset, data = lane.queue.popleft()
            began = time.monotonic()
            self.gauge.begin(began)
            try:
                if data:
                    writer.write(offset, data)
                else:
                    writer.finish()
            except OSError as error:
                with self._changed:
                    self._error = self._error or error
                    self._changed.notify_all()
                self._on_error(error)
                return
            now = time.monotonic()
            lane.busy += now - began
            if not data:
                self.gauge.pack(now, writer.size, lane.busy - lane.before)
                lane.before = lane.busy
            self.gauge.end(now, len(data))
            with self._changed:
                lane.backlog -= len(data)
                lane.done += len(data)
                if not data:
                    self.finished.append(writer.pack)
                    self._open.discard(writer)
                self._changed.notify_all()


def _work(lane: _Lane) -> tuple[float, int]:
    """How long it will be busy, going by how long it was so far."""
    return lane.backlog * (lane.busy + 1e-3) / (lane.done + 1), lane.taken


def _gauge(backend: Backend) -> Gauge:
    return Gauge(backend.lanes, remote=backend.lanes > 1 and backend.path("store") is None)


def _wait(changed: threading.Condition) -> float:
    """Wait for something to change; for how many seconds."""
    began = time.monotonic()
    changed.wait()
    return time.monotonic() - began
