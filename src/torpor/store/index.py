"""The index: which chunks the store has, and where. Only a save reads it; losing it costs space, never data.

It is a set of immutable segments, `index/<random>`: each save adds one for what it wrote, and small ones are
merged from time to time so that there stay a few. A segment, in an envelope:

    4       B, number of bits
    4*(2^B+1)  for each value of the first B bits of a name: the first row with these bits, or behind them
    ...     table of chunks (table.py), sorted by name

Names are uniformly distributed, so a bucket has a handful of rows, and a look-up is one search for the name
in a short range of memory-mapped bytes. An entry is only believed if its pack is there.
"""

from __future__ import annotations

import mmap
import os
import struct
from array import array
from bisect import bisect_left
from collections.abc import Iterable, Sequence

from torpor.model.data import Buffer
from torpor.model.errors import Damaged
from torpor.store import envelope
from torpor.store.backend import Backend
from torpor.store.chunk import NAME
from torpor.store.table import COUNTS, PACK_ID, Columns, Place, Table

MAGIC = b"torporI\0"
VERSION = 1
BITS = struct.Struct("<I")
BUCKET = 16
"""Rows aimed at in a bucket."""
GROWTH = 2
"""A merge takes along a segment that is at most this many times as large as all smaller ones together."""
MERGE_LIMIT = 250_000
"""Rows beyond which a segment is left alone: merging it would take a second."""


class Segment:
    """A segment, open for look-ups. Safe for several threads."""

    __slots__ = ("_buckets", "_data", "_first", "_shift", "known", "table")

    def __init__(self, data: bytes | mmap.mmap, what: str) -> None:
        payload = envelope.unwrap(MAGIC, VERSION, memoryview(data), what)
        (bits,) = BITS.unpack_from(payload)
        if bits > 32 or len(payload) < BITS.size + 4 * ((1 << bits) + 1):
            raise Damaged(f"{what} is damaged")
        start = BITS.size + 4 * ((1 << bits) + 1)
        self._data = data
        self._buckets = payload[BITS.size : start].cast("I")
        self._shift = 32 - bits
        self.table = Table(payload[start:], what)
        self._first = envelope.HEAD.size + start + COUNTS.size + PACK_ID * len(self.table.packs)
        self.known: list[bool] = []

    def believe(self, packs: set[bytes]) -> None:
        """Believe only entries whose pack is one of `packs`."""
        self.known = [pack in packs for pack in self.table.packs]

    def find(self, name: bytes) -> Place | None:
        bucket = int.from_bytes(name[:4], "big") >> self._shift
        first, end = self._first, self._first + self._buckets[bucket + 1] * NAME
        at = first + self._buckets[bucket] * NAME
        while at < end:
            at = self._data.find(name, at, end)
            if at < 0:
                return None
            row, beside = divmod(at - first, NAME)
            if not beside:
                return self.table.place(row) if self.known[self.table.pack[row]] else None
            at += 1
        return None


def encode(names: Sequence[bytes], columns: Columns) -> bytes:
    """A segment with these chunks. names: of the rows of `columns`, ascending and without repetition."""
    bits = max(0, (len(names) // BUCKET).bit_length() - 1)
    shift = 32 - bits
    firsts = array("I", [bisect_left(names, (bucket << shift).to_bytes(4, "big")) for bucket in range(1 << bits)])
    firsts.append(len(names))
    payload: list[Buffer] = [BITS.pack(bits), memoryview(firsts).cast("B"), *columns.encode(names)]
    return envelope.wrap(MAGIC, VERSION, b"".join(payload))


def add(backend: Backend, entries: Iterable[tuple[bytes, Place]]) -> None:
    """Put a segment with these chunks. Raises OSError."""
    rows = sorted(dict(entries).items())
    add_rows(backend, [name for name, _ in rows], Columns.of([place for _, place in rows]), range(len(rows)))


def add_rows(backend: Backend, names: Sequence[bytes], columns: Columns, rows: Iterable[int]) -> None:
    """Put a segment with these rows of a table. names: of all of its rows, none of them twice. Raises OSError."""
    order = sorted(rows, key=names.__getitem__)
    if order:
        chosen = Columns()
        chosen.extend(columns, order)
        segment = encode([names[row] for row in order], chosen)
        backend.put(f"index/{os.urandom(16).hex()}", [segment], durable=False)


def open_segment(backend: Backend, name: str) -> Segment:
    """Raises Damaged, FileNotFoundError."""
    where = f"index/{name}"
    what = f"index {backend.place}/{where}"
    path = backend.path(where)
    if path is None:
        return Segment(backend.get(where), what)
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        if not os.fstat(fd).st_size:
            raise Damaged(f"{what} is truncated")
        return Segment(mmap.mmap(fd, 0, prot=mmap.PROT_READ), what)
    finally:
        os.close(fd)


def damage(backend: Backend) -> list[str]:
    """What is wrong with which segment. Raises OSError."""
    found = []
    for name in sorted(backend.list("index")):
        try:
            open_segment(backend, name)
        except FileNotFoundError:
            pass  # merged away meanwhile
        except Damaged as error:
            found.append(str(error))
    return found


class Index:
    """What the store has, as far as could be seen when this was made. To be closed: a long-lived process would keep
    the mapped segments until it collects garbage."""

    def __init__(self, backend: Backend, avoid: set[bytes]) -> None:
        """avoid: packs whose chunks must not be used although they are there. Raises OSError."""
        self.segments: dict[str, Segment] = {}
        self.bad: list[str] = []
        # Segments first, then packs: an entry of a segment that is listed has its pack in place already. A
        # segment that is merged away meanwhile shows up in a new one.
        for _ in range(3):
            gone = False
            for name in backend.list("index"):
                if name not in self.segments and name not in self.bad:
                    try:
                        self.segments[name] = open_segment(backend, name)
                    except FileNotFoundError:
                        gone = True
                    except Damaged:
                        self.bad.append(name)
            if not gone:
                break
        self.packs = {bytes.fromhex(name) for name in backend.list("packs") if len(name) == 2 * PACK_ID} - avoid
        """Those that chunks may be in."""
        for segment in self.segments.values():
            segment.believe(self.packs)
        self._find = [s.find for s in sorted(self.segments.values(), key=lambda s: -s.table.count)]

    def close(self) -> None:
        """Unmap what was mapped; nothing is found any more."""
        self.segments.clear()
        self._find.clear()

    def find(self, name: bytes) -> Place | None:
        """Where a chunk is, or None. Safe for several threads."""
        for find in self._find:
            if (place := find(name)) is not None:
                return place
        return None


def to_merge(sizes: dict[str, int], growth: int = GROWTH, limit: int = MERGE_LIMIT) -> list[str]:
    """Which segments (name: rows) should become one. Pure.

    All up to the last one, by size, that is at most `growth` times as large as those before it together. What
    remains then grows by more than that factor from one to the next, so there are few; and a row is rewritten
    a logarithmic number of times, since each merge makes its segment larger by the factor 1 + 1/growth at
    least.
    """
    chosen: list[str] = []
    passed: list[str] = []
    total = 0
    for name, size in sorted(sizes.items(), key=lambda item: (item[1], item[0])):
        if size > limit:
            break
        passed.append(name)
        if total and size <= growth * total:
            chosen = passed.copy()
        total += size
    return chosen


def merge(backend: Backend) -> None:
    """Merge small segments, dropping entries whose packs are gone. At worst something is listed twice if two
    do it at once. Raises OSError."""
    index = Index(backend, set())
    for name in index.bad:
        backend.delete(f"index/{name}")
    chosen = to_merge({name: segment.table.count for name, segment in index.segments.items()})
    if not chosen:
        return
    rows: dict[bytes, Place] = {}
    for name in chosen:
        table, known = index.segments[name].table, index.segments[name].known
        for row in range(table.count):
            if known[table.pack[row]]:
                rows[table.name(row)] = table.place(row)
    add(backend, rows.items())
    for name in chosen:
        backend.delete(f"index/{name}")
