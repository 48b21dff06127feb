"""A root: the one object that makes a checkpoint exist. It lists the checkpoint's chunks beside an opaque
body.

    ...  header, a msgpack map in an envelope (b"torporR\\0"): enough to list checkpoints, read by itself
    ...  table of chunks (table.py); a reference in the body is a row of it
    ...  body, whatever the caller saves (torpor: the manifest)
    32   BLAKE3 of everything before

The chunks stand outside the body so that pruning and copying need not understand, or be able to decrypt, the
body.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import msgspec
from blake3 import blake3

from torpor.model.data import Buffer
from torpor.model.errors import Damaged
from torpor.store import envelope
from torpor.store.table import Table

MAGIC = b"torporR\0"
VERSION = 1
HEADER_GUESS = 4096
"""Bytes read to list a root; a longer header takes a second read."""


class RootInfo(NamedTuple):
    """A stored checkpoint, as `list` shows it."""

    job: str
    number: int
    time: float
    """When it was committed, unix seconds."""
    bytes_total: int
    """Bytes that were put, equal ones counted each time."""
    bytes_new: int
    """Bytes this checkpoint added to the store's packs."""
    path: str
    """Where its root is."""
    label: dict[str, str | int | float]
    """The caller's small summary."""
    damaged: str = ""
    """One line about what is wrong with it; then the numbers and the label mean nothing."""


class Header(msgspec.Struct, frozen=True, omit_defaults=True):
    """The header. Fields may be added with a default, never changed in meaning; unknown ones are ignored."""

    job: str
    number: int
    time: float
    bytes_total: int
    bytes_new: int
    label: dict[str, str | int | float]
    table: int
    """Length of the table of chunks."""
    body: int
    """Length of the body."""


def object_name(job: str, number: int) -> str:
    return f"roots/{job}/{number}"


def encode(header: Header, table: Sequence[Buffer], body: Buffer) -> list[Buffer]:
    """The root as pieces to be written one after the other; `header.table` and `header.body` are right
    already."""
    pieces: list[Buffer] = [envelope.wrap(MAGIC, VERSION, msgspec.msgpack.encode(header)), *table, body]
    digest = blake3()
    for piece in pieces:
        digest.update(piece)
    return [*pieces, digest.digest()]


def decode_header(data: Buffer, what: str) -> tuple[Header, int]:
    """The header and its whole length. Raises Damaged."""
    payload = envelope.unwrap(MAGIC, VERSION, data, what)
    try:
        header = msgspec.msgpack.decode(payload, type=Header)
    except msgspec.MsgspecError as error:
        raise Damaged(f"{what} is damaged: {error}") from None
    return header, envelope.HEAD.size + len(payload) + envelope.DIGEST


def total_size(header: Header, length: int) -> int:
    """How long the root is, given the length that `decode_header` returned."""
    return length + header.table + header.body + envelope.DIGEST


def decode(data: Buffer, what: str) -> tuple[Header, Table, memoryview]:
    """Header, table and body, all verified; nothing is copied. Raises Damaged."""
    header, length = decode_header(data, what)
    size = total_size(header, length)
    if len(data) < size:
        raise Damaged(f"{what} is truncated")
    view = memoryview(data)
    if len(data) > size or blake3(view[: -envelope.DIGEST]).digest() != view[-envelope.DIGEST :]:
        raise Damaged(f"{what} is damaged")
    table = Table(view[length : length + header.table], what)
    if table.size != header.table:
        raise Damaged(f"{what} is damaged")
    start = length + header.table
    return header, table, view[start : start + header.body]
