"""A save: takes chunks from several threads, and at the end makes the root that makes the checkpoint exist.

What a chunk costs is hashing, a look-up, and one write into the page cache, each outside any lock; no chunk
is copied in between and none is kept. A thread that writes has a pack to itself for that moment; full packs
go to a background thread that makes them durable. If it falls behind, `put` waits.

Order: packs durable, then a number claimed, then the root, then the index. Until its root is there nobody
else knows of this save's packs (the index comes after), so a save that fails deletes them.
"""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Mapping

import msgspec
from blake3 import blake3

from torpor.model.data import CHUNK_SIZE, Buffer, Ref
from torpor.model.errors import CheckpointFailed
from torpor.store import index, lease, pack, root, sealing
from torpor.store.backend import Backend
from torpor.store.chunk import ZERO, ZEROS, Packer
from torpor.store.numbers import claim
from torpor.store.sealing import Sealer
from torpor.store.table import Columns, Place

WAITING = 4
"""Full packs that may wait to be made durable before `put` waits."""


class _Slot:
    """What a thread needs to itself while it stores a chunk."""

    __slots__ = ("packer", "writer")

    def __init__(self) -> None:
        self.packer = Packer()
        self.writer: pack.Writer | None = None


class Save:
    """See model.data.Sink. Made by Store.begin; ends with `commit` or `abort`."""

    def __init__(self, backend: Backend, key: bytes, job: str, sealer: Sealer) -> None:
        """key: the store's. Raises OSError."""
        self.job = job
        self._backend = backend
        self._sealer = sealer
        self._cipher = sealer.cipher(key)
        self._key = self._cipher.names if self._cipher is not None else key
        self._lease = lease.take(backend)
        try:
            # The order matters: lease, warrants, index (see lease.py).
            self._index = index.Index(backend, lease.condemned(backend))
        except BaseException:
            backend.delete(self._lease)
            raise
        self._lock = threading.Lock()
        self._refs: dict[bytes, int] = {}
        self._columns = Columns()
        self._zeros: dict[int, bytes] = {}
        self._total = 0
        # The first context imports the compressor: now, and not while the job stands still.
        self._idle: list[_Slot] = [_Slot()]
        self._finished: list[bytes] = []
        self._changed = threading.Condition()
        self._queue: deque[pack.Writer] = deque()
        self._thread: threading.Thread | None = None
        self._closing = False
        self._error: CheckpointFailed | None = None
        self._over = False

    def put(self, data: Buffer) -> Ref:
        """Keep `data` (1 to CHUNK_SIZE bytes); see model.data.Sink."""
        length = len(data)
        if not 0 < length <= CHUNK_SIZE:
            raise ValueError(f"a chunk has 1 to {CHUNK_SIZE} bytes, not {length}")
        # Compares until the first difference; == would go through a memoryview byte by byte in slow motion.
        zero = ZEROS.startswith(data)
        if zero:  # noqa: SIM108
            name = self._zeros.get(length) or self._zero_name(length)
        else:
            name = blake3(data, key=self._key).digest()
        with self._lock:
            if self._error is not None:
                raise self._error
            self._total += length
            row = self._refs.get(name)
            if row is not None:
                return row
            row = self._refs[name] = self._columns.grow()
        place = Place(b"", 0, 0, length, ZERO) if zero else self._index.find(name) or self._store(name, data)
        with self._lock:
            self._columns.set(row, place)
        return row

    def commit(self, body: Buffer, label: Mapping[str, str | int | float]) -> root.RootInfo:
        """Make the checkpoint exist, with `body` and a small summary that is shown in lists.

        All `put`s have returned. Raises CheckpointFailed; then nothing of it is left but perhaps unreferenced
        packs.
        """
        try:
            self._finish_packs()
            self._check_packs()
            info = self._put_root(body, dict(label))
        except OSError as error:
            failed = self._failed(error)
            self.abort()
            raise failed from error
        except BaseException:
            self.abort()
            raise
        self._over = True
        self._tell_index()
        return info

    def abort(self) -> None:
        """Leave nothing behind. All `put`s have returned. May be called more than once; does nothing after
        `commit`."""
        if self._over:
            return
        self._over = True
        with self._changed:
            self._error = self._error or CheckpointFailed("the checkpoint was given up")
            self._closing = True
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join()
        for slot in self._idle:
            if slot.writer is not None:
                slot.writer.discard()
        for writer in self._queue:
            writer.discard()
        try:
            for name in self._finished:
                self._backend.delete(pack.path(name))
            self._backend.delete(self._lease)
        except OSError:
            pass  # left to the next collection

    # -- a chunk

    def _zero_name(self, length: int) -> bytes:
        name = self._zeros[length] = blake3(memoryview(ZEROS)[:length], key=self._key).digest()
        return name

    def _store(self, name: bytes, data: Buffer) -> Place:
        try:
            slot = self._idle.pop()
        except IndexError:
            slot = _Slot()
        encoding, stored = slot.packer.encode(data)
        if self._cipher is not None:
            stored = self._cipher.seal(stored, sealing.CHUNK + name)
        try:
            writer = slot.writer
            if writer is None:
                writer = slot.writer = pack.Writer(self._backend)
            place = writer.add(name, encoding, stored, len(data))
            if writer.full:
                slot.writer = None
                self._hand_over(writer)
        except OSError as error:
            raise self._failed(error) from error
        finally:
            self._idle.append(slot)
        return place

    def _hand_over(self, writer: pack.Writer) -> None:
        """Give a full pack to the background thread; wait while it has enough."""
        with self._changed:
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="torpor-store", daemon=True)
                self._thread.start()
            while len(self._queue) >= WAITING and self._error is None:
                self._changed.wait()
            self._queue.append(writer)
            self._changed.notify_all()

    def _run(self) -> None:
        """The background thread: makes packs durable, and keeps the lease alive."""
        touched = time.monotonic()
        while True:
            with self._changed:
                self._changed.notify_all()
                while not self._queue and not self._closing:
                    if not self._changed.wait(lease.TOUCH):
                        break
                if self._closing and (self._error is not None or not self._queue):
                    return
                writer = self._queue.popleft() if self._queue else None
            try:
                if writer is not None:
                    self._finish(writer)
                if time.monotonic() - touched >= lease.TOUCH:
                    touched = time.monotonic()
                    self._alive()
            except OSError as error:
                self._failed(error)

    def _finish(self, writer: pack.Writer) -> None:
        try:
            writer.finish()
        except OSError:
            writer.discard()
            raise
        self._finished.append(writer.pack)

    # -- the end

    def _finish_packs(self) -> None:
        """All packs are durable and under their names when this returns."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        for slot in self._idle:
            writer, slot.writer = slot.writer, None
            if writer is not None:
                self._finish(writer)
        if self._thread is not None:
            self._thread.join()
        if self._error is not None:
            raise self._error
        if self._finished:
            self._backend.sync("packs")

    def _check_packs(self) -> None:
        """Older packs that this checkpoint relies on are still there."""
        mine = set(self._finished)
        for name in self._columns.packs:
            if name not in mine:
                try:
                    self._backend.stat(pack.path(name))
                except FileNotFoundError:
                    where = f"{self._backend.place}/{pack.path(name)}"
                    raise CheckpointFailed(f"pack {where} vanished while it was needed; try again") from None

    def _put_root(self, body: Buffer, label: dict[str, str | int | float]) -> root.RootInfo:
        mine = set(self._finished)
        columns = self._columns
        numbers = {i for i, name in enumerate(columns.packs) if name in mine}
        new = sum(size for number, size in zip(columns.pack, columns.stored) if number in numbers)
        table = columns.encode(self._refs)
        size = sum(map(len, table))
        number = claim(self._backend, self.job)
        where = root.object_name(self.job, number)
        now = time.time()
        header = root.Header(self.job, number, now, self._total, new, label, size, len(body))
        cipher = self._cipher
        if cipher is None:
            header = msgspec.structs.replace(header, names=blake3(self._key).digest())
        else:
            sealed = cipher.seal(msgspec.msgpack.encode(label), sealing.LABEL)
            body = cipher.seal(body, sealing.BODY)
            header = msgspec.structs.replace(
                header, label={}, sealed_label=sealed, recipients=cipher.recipients, body=len(body)
            )
        try:
            if not self._backend.put(where, root.encode(header, table, body, self._sealer)):
                raise CheckpointFailed(f"{self._backend.place}/{where} exists although nobody claimed it")
            if not self._alive():
                # A collection took us for dead, and may have decided before our root was there to be seen.
                why = f"the save stood still for so long that {self._backend.place} was cleaned up meanwhile"
                raise CheckpointFailed(f"{why}; try again")
        except BaseException:
            self._take_back(where)
            raise
        path = self._backend.path(where) or f"{self._backend.place}/{where}"
        readers = tuple(recipient.key.hex() for recipient in header.recipients)
        return root.RootInfo(self.job, number, now, self._total, new, path, label, "", self._sealer.key.hex(), readers)

    def _alive(self) -> bool:
        """Is our lease still there?"""
        try:
            self._backend.touch(self._lease)
        except FileNotFoundError:
            return False
        return True

    def _take_back(self, where: str) -> None:
        """Remove our root, which may be there although putting it failed. If that cannot be done for certain,
        keep the packs: then it is a whole checkpoint, or the next collection deletes them."""
        try:
            self._backend.delete(where)
            self._backend.sync(os.path.dirname(where))
        except OSError:
            self._finished.clear()

    def _tell_index(self) -> None:
        """The checkpoint exists; what follows only helps the next one, so failures do not matter."""
        mine = set(self._finished)
        places = ((name, self._columns.get(row)) for row, name in enumerate(self._refs))
        try:
            index.add(self._backend, ((name, place) for name, place in places if place.pack in mine))
            self._backend.delete(self._lease)
            index.merge(self._backend)
        except OSError:
            pass

    def _failed(self, error: OSError) -> CheckpointFailed:
        """This save is lost. The one line for the user."""
        with self._changed:
            if self._error is None:
                why = error.strerror or error
                self._error = CheckpointFailed(f"cannot write to {self._backend.place}: {why}")
            self._changed.notify_all()
            return self._error
