"""A stored checkpoint, opened: its body and its chunks."""

from __future__ import annotations

import mmap
import os
from array import array
from collections.abc import Container, Iterable, Sequence
from typing import TYPE_CHECKING

import msgspec
from blake3 import blake3

from torpor.model.data import Buffer, Ref
from torpor.model.errors import Damaged
from torpor.store import chunk, pack, root, sealing
from torpor.store.chunk import NAME
from torpor.store.table import NOWHERE, Table

if TYPE_CHECKING:
    from torpor.store.backend import Backend
    from torpor.store.sealing import Cipher, Opener

NEAR = 1 << 16
"""Bytes between two chunks that are rather read than left out."""
_FOREIGN = "is not what torpor wrote there, or is of a newer torpor's"
MAPPED = 4
"""Packs kept mapped: what is read of them counts as this process' resident memory until they are let go."""


def open_load(backend: Backend, key: bytes, info: root.RootInfo, found: root.Root, opener: Opener, what: str) -> Load:
    """Open a root whose signature has been accepted. key: of the store's chunk names. Raises Damaged, and what
    `opener` raises where it is encrypted."""
    header, body = found.header, bytes(found.body)
    if not header.recipients:
        if header.names and header.names != blake3(key).digest():
            raise Damaged(f"{what}: its chunks were named with another key than this store's")
        return Load(backend, key, info, found.table, body)
    cipher = opener.cipher(header.recipients, what)
    opened = cipher.open(body, sealing.BODY)
    label = cipher.open(header.sealed_label, sealing.LABEL)
    if opened is None or label is None:
        raise Damaged(f"{what} is damaged: it cannot be decrypted with its own key")
    info = info._replace(label=msgspec.msgpack.decode(label))
    return Load(backend, cipher.names, info, found.table, opened, cipher)


class Load:
    """See model.data.Source. Made by Store.load."""

    __slots__ = ("_backend", "_cipher", "_kept", "_key", "_mapped", "_recent", "_table", "body", "info")

    def __init__(
        self, backend: Backend, key: bytes, info: root.RootInfo, table: Table, body: bytes, cipher: Cipher | None = None
    ) -> None:
        self.info = info
        self.body = body
        self._backend = backend
        self._key = key
        self._table = table
        self._cipher = cipher
        self._mapped: dict[int, memoryview] = {}
        self._recent: list[int] = []
        self._kept: tuple[array[int], memoryview] | None = None

    def get(self, ref: Ref) -> Buffer:
        """The bytes of one chunk, read-only, verified by their name; safe from several threads.

        A chunk that is stored raw is not copied: the buffer is a view of the pack's pages. Raises Damaged,
        naming the checkpoint and the pack.
        """
        table = self._table
        if not 0 <= ref < table.count:
            raise Damaged(f"{self._where()}: it has no chunk {ref}")
        if self._kept is not None and self._kept[0][ref] >= 0:
            at = self._kept[0][ref]
            return self._kept[1][at : at + table.length[ref]]
        number = table.pack[ref]
        encoding, length = table.encoding[ref], table.length[ref]
        if number == NOWHERE:
            data = chunk.decode(encoding, b"", length)
            if data is None or encoding != chunk.ZERO:
                raise Damaged(f"{self._where()}: chunk {ref} is nowhere")
            return data
        view = self._mapped.get(number)
        if view is None:
            view = self._map(number)
        start = table.offset[ref]
        return self._verified(ref, view[start : start + table.stored[ref]])

    def fetch(self, refs: Sequence[Ref]) -> list[Buffer]:
        """The bytes of some chunks, as `get` gives one, but read for the caller alone, and nothing is kept: for whoever
        takes a chunk now and then, of a store that may change or go away meanwhile. Neighbours are read at once."""
        table = self._table
        found: dict[Ref, Buffer] = {}
        stored = [ref for ref in refs if 0 <= ref < table.count and table.pack[ref] != NOWHERE]
        stored.sort(key=lambda ref: (table.pack[ref], table.offset[ref]))
        while stored:
            first, together = stored[0], [stored[0]]
            start, number = table.offset[first], table.pack[first]
            end = start + table.stored[first]
            for ref in stored[1:]:
                if table.pack[ref] != number or table.offset[ref] > end + NEAR:
                    break
                end = max(end, table.offset[ref] + table.stored[ref])
                together.append(ref)
            data = memoryview(self._read(number, start, end - start))
            for ref in together:
                at = table.offset[ref] - start
                found[ref] = self._verified(ref, data[at : at + table.stored[ref]])
            del stored[: len(together)]
        return [found[ref] if ref in found else self.get(ref) for ref in refs]

    def _verified(self, ref: Ref, stored: memoryview) -> Buffer:
        """The bytes of a chunk, from what the store has. Raises Damaged."""
        table = self._table
        number, start = table.pack[ref], table.offset[ref]
        encoding, length = table.encoding[ref], table.length[ref]
        if len(stored) != table.stored[ref]:
            raise self._damaged(number, "is truncated")
        name = table.names[ref * NAME : ref * NAME + NAME]
        plain: Buffer | None = stored
        if self._cipher is not None:
            plain = self._cipher.open(stored, sealing.CHUNK + name)
        data = plain if plain is None or encoding == chunk.RAW else chunk.decode(encoding, plain, length)
        if data is None or len(data) != length or blake3(data, key=self._key).digest() != name:
            raise self._damaged(number, f"is damaged (chunk {ref}, at {start})")
        return data

    @property
    def near(self) -> Load | None:
        """Itself, where all packs are files here, so that processes which are forked from us may read them as well."""
        here = all(self._backend.path(pack.path(name)) is not None for name in self._table.packs)
        return self if here else None

    def lies(self, ref: Ref) -> tuple[int, int] | None:
        """Where a chunk is kept as it is, neither compressed nor encrypted: number of the pack, and offset. None where
        only `get` knows its bytes."""
        table = self._table
        if self._kept is not None or self._cipher is not None or not 0 <= ref < table.count:
            return None
        number = table.pack[ref]
        plain = number != NOWHERE and number < len(table.packs) and table.encoding[ref] == chunk.RAW
        return (number, table.offset[ref]) if plain and table.stored[ref] == table.length[ref] else None

    def read_into(self, wanted: Iterable[tuple[Sequence[Ref], memoryview]]) -> None:
        """Read chunks into memory, and verify them there: each time some that lie one behind the other (`lies`), and
        memory that is as large as they are. Raises Damaged; what is in the memory must not be used then."""
        files: dict[int, int] = {}
        try:
            for refs, room in wanted:
                number = self._table.pack[refs[0]]
                try:
                    if number not in files:
                        files[number] = self._open_pack(number)
                    done, offset = 0, self._table.offset[refs[0]]
                    while done < len(room) and (count := os.preadv(files[number], [room[done:]], offset + done)):
                        done += count
                except FileNotFoundError:
                    raise self._damaged(number, "is missing") from None
                except OSError as error:
                    raise self._damaged(number, f"cannot be read: {error.strerror or error}") from None
                at = 0
                for ref in refs:
                    end = at + self._table.stored[ref]
                    self._verified(ref, room[at : min(end, done)])
                    at = end
        finally:
            for fd in files.values():
                os.close(fd)

    def keep(self, most: int, but: Container[Ref] = ()) -> bool:
        """Fetch and verify all chunks but some, into memory that processes which are forked from here on share with us:
        they `get` views of it. False, and nothing is done, if that takes more than `most` bytes. Raises Damaged."""
        table = self._table
        kept = array("q", [-1]) * table.count
        total = 0
        for ref, number in enumerate(table.pack):
            if number != NOWHERE and ref not in but:
                kept[ref] = total
                total += table.length[ref]
        if not 0 < total <= most:
            return False
        room = memoryview(mmap.mmap(-1, total))
        for ref, at in enumerate(kept):
            if at >= 0:
                room[at : at + table.length[ref]] = self.get(ref)
        self.close()
        self._kept = kept, room.toreadonly()
        return True

    def look(self) -> None:
        """Are all packs there, and long enough? Raises Damaged."""
        table = self._table
        ends = [0] * len(table.packs)
        for number, offset, stored in zip(table.pack, table.offset, table.stored):
            if number != NOWHERE:
                ends[number] = max(ends[number], offset + stored)
        for number, end in enumerate(ends):
            try:
                if self._backend.stat(pack.path(table.packs[number])).size < end:
                    raise self._damaged(number, "is truncated")
            except FileNotFoundError:
                raise self._damaged(number, "is missing") from None
            except OSError as error:
                raise self._damaged(number, f"cannot be read: {error.strerror or error}") from None

    @property
    def refs(self) -> range:
        """All references there are."""
        return range(self._table.count)

    def size(self, ref: Ref) -> int:
        """How many bytes `get` will return."""
        return self._table.length[ref]

    def close(self) -> None:
        """Let go of the packs. Buffers that were handed out stay good."""
        self._mapped.clear()
        self._recent.clear()
        self._kept = None

    def _where(self) -> str:
        return f"checkpoint {self.info.job}@{self.info.number}"

    def _damaged(self, number: int, how: str) -> Damaged:
        name = pack.path(self._table.packs[number])
        return Damaged(f"{self._where()}: pack {self._backend.place}/{name} {how}")

    def _read(self, number: int, start: int, size: int) -> bytes:
        """A range of a pack. Raises Damaged."""
        try:
            return self._backend.get(pack.path(self._table.packs[number]), start, size)
        except FileNotFoundError:
            raise self._damaged(number, "is missing") from None
        except OSError as error:
            raise self._damaged(number, f"cannot be read: {error.strerror or error}") from None

    def _open(self, number: int) -> int | None:
        """A descriptor of a pack that is a file here; None of any other. Raises OSError."""
        path = self._backend.path(pack.path(self._table.packs[number]))
        return None if path is None else os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def _open_pack(self, number: int) -> int:
        """A descriptor of a pack that is a file here, and begins as one. Raises OSError, Damaged."""
        fd = self._open(number)
        assert fd is not None
        if not pack.begins(os.pread(fd, pack.HEAD.size, 0)):
            os.close(fd)
            raise self._damaged(number, _FOREIGN)
        return fd

    def _map(self, number: int) -> memoryview:
        """The bytes of a pack. A map goes when nothing refers to it any more, which is what makes forgetting
        one safe while others still use it."""
        if number >= len(self._table.packs):
            raise Damaged(f"{self._where()}: its root is damaged")
        try:
            fd = self._open(number)
            if fd is None:
                view = memoryview(self._backend.get(pack.path(self._table.packs[number])))
            else:
                try:
                    size = os.fstat(fd).st_size
                    view = memoryview(mmap.mmap(fd, size, prot=mmap.PROT_READ) if size else b"")
                finally:
                    os.close(fd)
        except FileNotFoundError:
            raise self._damaged(number, "is missing") from None
        except OSError as error:
            raise self._damaged(number, f"cannot be read: {error.strerror or error}") from None
        if not pack.begins(view):
            raise self._damaged(number, _FOREIGN)
        self._mapped[number] = view
        self._recent.append(number)
        if len(self._recent) > MAPPED:
            self._mapped.pop(self._recent.pop(0), None)
        return view
