"""A pack: many chunks in one immutable object, so that the place that keeps them sees few large ones.

    0       8     magic
    8       2     format version
    10      6     zero
    16      ...   stored chunks. What is a whole number of pages long starts at a multiple of 4096, anything
                  else at one of 8; what is between is zero
    t       ...   table of the chunks in this pack (table.py; this is its only pack), in an envelope
    end-16  8     t
    end-8   8     magic again: the pack was written to its end

The table is not needed to read a checkpoint (the root says where its chunks are): from it the index can be
made anew.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator

from torpor.model.data import Buffer
from torpor.model.errors import Damaged
from torpor.store import envelope
from torpor.store.backend import Backend, Upload
from torpor.store.table import PACK_ID, Columns, Place, Table

MAGIC = b"torporP\0"
TABLE = b"torporT\0"
VERSION = 1
HEAD = struct.Struct("<8sH6x")
TAIL = struct.Struct("<Q8s")
PAGE = 4096
FULL = 32 << 20
"""A pack that has grown to this many bytes takes no more."""


def path(pack: bytes) -> str:
    """The object's name."""
    return f"packs/{pack.hex()}"


class Writer:
    """A pack on its way. One thread at a time places chunks, and one (perhaps another) writes them, in the order of
    their places."""

    __slots__ = ("_backend", "_columns", "_end", "_lane", "_names", "_upload", "pack")

    def __init__(self, backend: Backend, lane: int = 0) -> None:
        self.pack = os.urandom(16)
        self._backend = backend
        self._lane = lane
        self._upload: Upload | None = None
        self._columns = Columns()
        self._names: list[bytes] = []
        self._end = HEAD.size

    @property
    def full(self) -> bool:
        return self._end >= min(FULL, self._backend.pack_size)

    @property
    def size(self) -> int:
        """Bytes of what was placed so far."""
        return self._end

    def place(self, name: bytes, encoding: int, size: int, length: int) -> Place:
        """Make room for a chunk of `size` bytes as stored; where it is to be written."""
        unit = 8 if size % PAGE else PAGE
        offset = -(-self._end // unit) * unit
        self._end = offset + size
        place = Place(self.pack, offset, size, length, encoding)
        self._columns.set(self._columns.grow(), place)
        self._names.append(name)
        return place

    def write(self, offset: int, stored: Buffer) -> None:
        """Write a chunk to its place. The object is begun with the first one. Raises OSError."""
        if self._upload is None:
            self._upload = self._backend.create(path(self.pack), self._lane)
            self._upload.write(0, HEAD.pack(MAGIC, VERSION))
        self._upload.write(offset, stored)

    def finish(self) -> None:
        """Write the table; the pack is there under its name. At least one chunk was written. Raises OSError."""
        assert self._upload is not None
        table = envelope.wrap(TABLE, VERSION, b"".join(self._columns.encode(self._names)))
        self._upload.write(self._end, table)
        self._upload.write(self._end + len(table), TAIL.pack(self._end, MAGIC))
        self._upload.finish()

    def discard(self) -> None:
        if self._upload is not None:
            self._upload.discard()


def begins(data: Buffer) -> bool:
    """Does `data` begin as a pack does that we can read? (One that is shorter than its head may have been cut.)"""
    return HEAD.pack(MAGIC, VERSION).startswith(bytes(data[: HEAD.size]))


def contents(backend: Backend, pack: bytes) -> Iterator[tuple[bytes, Place]]:
    """The chunks that a pack says it has: name and place. Raises Damaged, FileNotFoundError."""
    name = path(pack)
    size = backend.stat(name).size
    what = f"pack {backend.place}/{name}"
    tail = backend.get(name, max(0, size - TAIL.size))
    if len(tail) < TAIL.size or size < HEAD.size + TAIL.size:
        raise Damaged(f"{what} is truncated")
    start, magic = TAIL.unpack(tail)
    if magic != MAGIC or start > size - TAIL.size:
        raise Damaged(f"{what} is truncated or overwritten")
    table = Table(envelope.unwrap(TABLE, VERSION, backend.get(name, start), what), what)
    for row in range(table.count):
        yield table.name(row), Place(pack, table.offset[row], table.stored[row], table.length[row], table.encoding[row])


def damage(backend: Backend) -> list[str]:
    """What is wrong with what packs say of themselves. Raises OSError."""
    found = []
    for name in sorted(name for name in backend.list("packs") if len(name) == 2 * PACK_ID):
        try:
            if not begins(backend.get(f"packs/{name}", 0, HEAD.size)):
                raise Damaged(f"pack {backend.place}/packs/{name} is not what torpor wrote there")
            for _ in contents(backend, bytes.fromhex(name)):
                pass
        except FileNotFoundError:
            pass  # collected meanwhile
        except Damaged as error:
            found.append(str(error))
    return found
