"""A save: takes chunks from several threads, and at the end makes the root that makes the checkpoint exist.

What a chunk costs is hashing, a look-up, and one write (lanes.py), each outside any lock; no chunk is kept.

Order: packs durable, then a number claimed, then the root, then the index. Until its root is there nobody
else knows of this save's packs (the index comes after), so a save that fails deletes them.
"""

from __future__ import annotations

import os
import threading
import time
from array import array
from collections.abc import Mapping, Sequence

import msgspec
from blake3 import blake3

from torpor.model.data import CHUNK_SIZE, Buffer, Ref
from torpor.model.errors import CheckpointFailed
from torpor.named_tuple import NamedTuple
from torpor.store import index, lanes, lease, pack, root, sealing
from torpor.store.backend import Backend
from torpor.store.chunk import ZERO, ZEROS
from torpor.store.coding import Coder
from torpor.store.numbers import claim
from torpor.store.parts import Part, digest, is_part, name_of
from torpor.store.sealing import Sealer
from torpor.store.table import Columns, Place


class Kept(NamedTuple):
    """The chunks of a save that is over: names and places by their references."""

    names: list[bytes] = []
    places: Columns = Columns()


class Save:
    """See model.data.Sink. Made by Store.begin; ends with `commit` or `abort`."""

    def __init__(
        self, backend: Backend, key: bytes, job: str, sealer: Sealer, compression: str = "auto", number: int = 0
    ) -> None:
        """key: the store's. compression: see coding.Coder. number: of the checkpoint, where it was claimed
        already; job: then perhaps that of a part (parts.py). Raises OSError."""
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
        self._packs = lanes.of(backend, self._failed)
        self._coder = Coder(compression, self._packs.gauge, self._cipher)
        self._keeper = lease.Keeper(backend, self._lease)
        self._number = number
        self.written: Part | None = None
        """What `commit` has written, if it is a part: for the root that is to name it."""
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

    @property
    def names_by(self) -> bytes:
        """Tells whether two saves name chunks alike: the hash of the key of their names."""
        return blake3(self._key).digest()

    def kept(self) -> Kept:
        """What `take_over` of a later save wants, once this one has been committed."""
        return Kept(list(self._refs), self._columns)

    def again(self, name: bytes, length: int) -> Ref | None:
        """Keep a chunk that an earlier save had under this name, without its bytes. None if the store has it no more,
        or it was zero."""
        with self._lock:
            row = self._refs.get(name)
            if row is not None:
                self._total += length
                return row
        place = self._index.find(name)
        if place is None or place.length != length:
            return None
        with self._lock:
            if self._error is not None:
                raise self._error
            self._total += length
            row = self._refs.get(name)
            if row is None:
                row = self._refs[name] = self._columns.append(place)
            return row

    def take_over(self, kept: Kept, refs: bytes) -> bytes | None:
        """Keep many chunks that an earlier save of this store has kept. refs: its references, four bytes each; ours are
        returned, or None if it is not certain that the store has all of them still."""
        rows = array("I", refs)
        places = kept.places
        if not places.packs_of(rows) <= self._index.packs:
            return None
        names = [kept.names[row] for row in rows]
        with self._lock:
            if self._error is not None:
                raise self._error
            self._total += sum([places.length[row] for row in rows])
            first = len(self._refs)
            if self._refs.keys().isdisjoint(names) and len(set(names)) == len(names):
                self._refs.update(zip(names, range(first, first + len(names))))
                self._columns.extend(places, rows)
            else:
                for name, row in zip(names, rows):
                    if name not in self._refs:
                        self._refs[name] = self._columns.append(places.get(row))
            return array("I", [self._refs[name] for name in names]).tobytes()

    def number(self) -> int:
        """The number the checkpoint will have: claimed now, if it was not before. Raises CheckpointFailed."""
        if not self._number:
            try:
                self._number = claim(self._backend, self.job)
            except OSError as error:
                raise self._failed(error) from error
        return self._number

    def commit(
        self, body: Buffer, label: Mapping[str, str | int | float], parts: Sequence[Part] = (),
        identity: str = "",
    ) -> root.RootInfo:  # fmt: skip
        """Make the checkpoint exist, with `body` and a small summary that is shown in lists. parts: what others have
        written of it; all of that is there.  identity: which job it is of.

        All `put`s have returned. Raises CheckpointFailed; then nothing of it is left but perhaps unreferenced
        packs.
        """
        try:
            self._finish_packs()
            self._check_packs()
            info = self._put_root(body, dict(label), tuple(parts), identity)
        except OSError as error:
            failed = self._failed(error)
            self.abort()
            raise failed from error
        except BaseException:
            self.abort()
            raise
        self._over = True
        self._coder.close()
        self._tell_index()
        self._index.close()
        return info

    def abort(self) -> None:
        """Leave nothing behind. All `put`s have returned. May be called more than once; does nothing after
        `commit`."""
        if self._over:
            return
        self._over = True
        self._error = self._error or CheckpointFailed("the checkpoint was given up")
        self._packs.discard()
        self._coder.close()
        self._index.close()
        try:
            for name in self._packs.finished:
                self._backend.delete(pack.path(name))
            self._let_go()
        except OSError:
            pass  # left to the next collection

    # -- a chunk

    def _zero_name(self, length: int) -> bytes:
        name = self._zeros[length] = blake3(memoryview(ZEROS)[:length], key=self._key).digest()
        return name

    def _store(self, name: bytes, data: Buffer) -> Place:
        encoding, stored = self._coder.encode(name, data)
        try:
            return self._packs.add(name, encoding, stored, len(data))
        except OSError as error:
            raise self._failed(error) from error

    # -- the end

    def _finish_packs(self) -> None:
        """All packs are durable and under their names when this returns."""
        self._packs.finish()
        if self._error is not None:
            raise self._error
        if self._packs.finished:
            self._backend.sync("packs")

    def _check_packs(self) -> None:
        """Older packs that this checkpoint relies on are still there."""
        mine = set(self._packs.finished)
        for name in self._columns.packs:
            if name not in mine:
                try:
                    self._backend.stat(pack.path(name))
                except FileNotFoundError:
                    where = f"{self._backend.place}/{pack.path(name)}"
                    raise CheckpointFailed(f"pack {where} vanished while it was needed; try again") from None

    def _put_root(
        self, body: Buffer, label: dict[str, str | int | float], parts: tuple[Part, ...], identity: str
    ) -> root.RootInfo:
        mine = set(self._packs.finished)
        columns = self._columns
        numbers = {i for i, name in enumerate(columns.packs) if name in mine}
        new = sum(size for number, size in zip(columns.pack, columns.stored) if number in numbers)
        new += sum(part.bytes_new for part in parts)
        total = self._total + sum(part.bytes_total for part in parts)
        table = columns.encode(self._refs)
        size = sum(map(len, table))
        number = self.number()
        where = root.object_name(self.job, number)
        now = time.time()
        header = root.Header(self.job, number, now, total, new, label, size, len(body), parts=parts, identity=identity)
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
            pieces = root.encode(header, table, body, self._sealer)
            if not self._backend.put(where, pieces):
                raise CheckpointFailed(f"{self._backend.place}/{where} exists although nobody claimed it")
            if not self._keeper.alive():
                # A collection took us for dead, and may have decided before our root was there to be seen.
                why = f"the save stood still for so long that {self._backend.place} was cleaned up meanwhile"
                raise CheckpointFailed(f"{why}; try again")
        except BaseException:
            self._take_back(where)
            raise
        path = self._backend.path(where) or f"{self._backend.place}/{where}"
        readers = tuple(recipient.key.hex() for recipient in header.recipients)
        if is_part(self.job):
            self.written = Part(name_of(self.job), digest(pieces), total, new)
        return root.RootInfo(
            self.job, number, now, total, new, path, label, "", self._sealer.key.hex(), readers, parts, identity
        )

    def _take_back(self, where: str) -> None:
        """Remove our root, which may be there although putting it failed. If that cannot be done for certain,
        keep the packs: then it is a whole checkpoint, or the next collection deletes them."""
        try:
            self._backend.delete(where)
            self._backend.sync(os.path.dirname(where))
        except OSError:
            self._packs.finished.clear()

    def _tell_index(self) -> None:
        """The checkpoint exists; what follows only helps the next one, so failures do not matter."""
        mine = set(self._packs.finished)
        numbers = {number for number, name in enumerate(self._columns.packs) if name in mine}
        rows = [row for row, number in enumerate(self._columns.pack) if number in numbers]
        try:
            index.add_rows(self._backend, list(self._refs), self._columns, rows)
            self._let_go()
            index.merge(self._backend)
        except OSError:
            pass

    def _failed(self, error: OSError) -> CheckpointFailed:
        """This save is lost. The one line for the user."""
        with self._lock:
            if self._error is None:
                why = error.strerror or error
                self._error = CheckpointFailed(f"cannot write to {self._backend.place}: {why}")
            return self._error

    def _let_go(self) -> None:
        """The lease goes. Raises OSError."""
        self._keeper.stop()
        self._backend.delete(self._lease)
