"""A table of chunks as packed columns: which chunks, in which packs, where. It stands in roots, in the index,
and at the end of packs.

    u32     P, number of packs
    u32     N, number of chunks
    16 * P  pack ids
    32 * N  names
    4 * N   pack: place in the list of packs; 0xFFFFFFFF where nothing is stored (encoding ZERO)
    4 * N   offset in the pack
    4 * N   stored length
    4 * N   length of the contents
    N       encoding

All numbers are little-endian. Columns and not rows: a table is then read and written at the speed of memory,
and the names can be searched as one block.
"""

from __future__ import annotations

import struct
import sys
from array import array
from collections.abc import Iterable, Sequence

from torpor.model.data import Buffer
from torpor.model.errors import Damaged
from torpor.named_tuple import NamedTuple
from torpor.store.chunk import NAME

COUNTS = struct.Struct("<II")
PACK_ID = 16
NOWHERE = 0xFFFFFFFF
ROW = NAME + 4 * 4 + 1

if sys.byteorder != "little":  # pragma: no cover
    raise ImportError("torpor's store needs a little-endian computer")


class Place(NamedTuple):
    """Where a chunk is. pack: 16 bytes, b'' where nothing is stored."""

    pack: bytes
    offset: int
    stored: int
    length: int
    encoding: int


class Columns:
    """A table that is being made. Not safe for several threads."""

    __slots__ = ("encoding", "length", "numbers", "offset", "pack", "packs", "stored")

    def __init__(self) -> None:
        self.packs: list[bytes] = []
        self.numbers: dict[bytes, int] = {b"": NOWHERE}
        self.pack = array("I")
        self.offset = array("I")
        self.stored = array("I")
        self.length = array("I")
        self.encoding = bytearray()

    @classmethod
    def of(cls, places: Sequence[Place]) -> Columns:
        """A table with these rows, none of them NOWHERE; several times as fast as row by row."""
        made = cls()
        made.packs = sorted({place.pack for place in places})
        numbers = made.numbers = {pack: number for number, pack in enumerate(made.packs)}
        made.pack = array("I", [numbers[place.pack] for place in places])
        made.offset = array("I", [place.offset for place in places])
        made.stored = array("I", [place.stored for place in places])
        made.length = array("I", [place.length for place in places])
        made.encoding = bytearray([place.encoding for place in places])
        return made

    def grow(self) -> int:
        """One more row, to be filled by `set`; its place."""
        row = len(self.encoding)
        self.pack.append(NOWHERE)
        self.offset.append(0)
        self.stored.append(0)
        self.length.append(0)
        self.encoding.append(0)
        return row

    def append(self, place: Place) -> int:
        """One more row, with this in it; its place."""
        pack, offset, stored, length, encoding = place
        self.pack.append(self._number(pack))
        self.offset.append(offset)
        self.stored.append(stored)
        self.length.append(length)
        self.encoding.append(encoding)
        return len(self.encoding) - 1

    def packs_of(self, rows: Iterable[int]) -> set[bytes]:
        """The packs that some rows are in."""
        return {self.packs[number] for number in {self.pack[row] for row in rows} - {NOWHERE}}

    def extend(self, other: Columns, rows: Sequence[int]) -> None:
        """More rows, with what these rows of another table have in them; several times as fast as one by one."""
        numbers = {NOWHERE: NOWHERE}
        found = [other.pack[row] for row in rows]
        for number in dict.fromkeys(found):
            if number != NOWHERE:
                numbers[number] = self._number(other.packs[number])
        self.pack.extend([numbers[number] for number in found])
        self.offset.extend([other.offset[row] for row in rows])
        self.stored.extend([other.stored[row] for row in rows])
        self.length.extend([other.length[row] for row in rows])
        self.encoding.extend([other.encoding[row] for row in rows])

    def set(self, row: int, place: Place) -> None:
        pack, self.offset[row], self.stored[row], self.length[row], self.encoding[row] = place
        self.pack[row] = self._number(pack)

    def _number(self, pack: bytes) -> int:
        number = self.numbers.get(pack)
        if number is None:
            number = self.numbers[pack] = len(self.packs)
            self.packs.append(pack)
        return number

    def get(self, row: int) -> Place:
        number = self.pack[row]
        return Place(
            b"" if number == NOWHERE else self.packs[number],
            self.offset[row],
            self.stored[row],
            self.length[row],
            self.encoding[row],
        )

    def encode(self, names: Iterable[bytes]) -> list[Buffer]:
        """The table as pieces to be written one after the other. names: of all rows, in order."""
        return [
            COUNTS.pack(len(self.packs), len(self.encoding)),
            b"".join(self.packs),
            b"".join(names),
            memoryview(self.pack).cast("B"),
            memoryview(self.offset).cast("B"),
            memoryview(self.stored).cast("B"),
            memoryview(self.length).cast("B"),
            self.encoding,
        ]


class Table:
    """A table that was read; nothing of it is copied."""

    __slots__ = ("count", "encoding", "length", "names", "offset", "pack", "packs", "size", "stored")

    def __init__(self, data: Buffer, what: str) -> None:
        """data: the table, and perhaps more behind it.  what: how to call it in an error. Raises Damaged if
        `data` is too short for what it says; whatever else is in it was verified by the caller."""
        view = memoryview(data)
        if len(view) < COUNTS.size:
            raise Damaged(f"{what} is truncated")
        packs, count = COUNTS.unpack_from(view)
        self.size = COUNTS.size + PACK_ID * packs + ROW * count
        if len(view) < self.size:
            raise Damaged(f"{what} is truncated")
        self.count: int = count
        at = COUNTS.size
        self.packs = [bytes(view[at + PACK_ID * i : at + PACK_ID * i + PACK_ID]) for i in range(packs)]
        at += PACK_ID * packs
        self.names = view[at : at + NAME * count]
        at += NAME * count
        columns = []
        for _ in range(4):
            columns.append(view[at : at + 4 * count].cast("I"))
            at += 4 * count
        self.pack, self.offset, self.stored, self.length = columns
        self.encoding = view[at : at + count]

    def name(self, row: int) -> bytes:
        return bytes(self.names[row * NAME : row * NAME + NAME])

    def place(self, row: int) -> Place:
        """Raises IndexError if there is no such row, or if it speaks of a pack that is not listed."""
        pack = self.pack[row]
        return Place(
            b"" if pack == NOWHERE else self.packs[pack],
            self.offset[row],
            self.stored[row],
            self.length[row],
            self.encoding[row],
        )
