"""A root: the one object that makes a checkpoint exist. It lists the checkpoint's chunks beside an opaque
body.

    ...  header, a msgpack map in a signed envelope (b"torporR\\0"): enough to list checkpoints, read by itself
    ...  table of chunks (table.py); a reference in the body is a row of it
    ...  body, whatever the caller saves (torpor: the manifest); encrypted if the seal says so

The header has the hashes of table and body, so its signature is one of everything. The chunks stand outside the body
so that pruning and copying need not understand, or be able to decrypt, the body.

Format 1 had no signature and no hashes, but the BLAKE3 of everything before at its end.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
from blake3 import blake3

from torpor.model.data import Buffer
from torpor.model.errors import Damaged
from torpor.named_tuple import NamedTuple
from torpor.store import envelope
from torpor.store.parts import Part
from torpor.store.sealing import Recipient, Sealer, Signature
from torpor.store.table import Table

MAGIC = b"torporR\0"
VERSION = 2
SEALS = envelope.SIGNED | envelope.ENCRYPTED
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
    """The caller's small summary; empty where it is encrypted."""
    damaged: str = ""
    """One line about what is wrong with it; then the numbers and the label mean nothing."""
    signer: str = ""
    """Public key of whoever signed it, as the header says (`Store.load` verifies it); '' if nobody did. Hexadecimal."""
    recipients: tuple[str, ...] = ()
    """Public keys of those who can read it; empty where it is not encrypted. Hexadecimal."""
    parts: tuple[Part, ...] = ()
    """What it consists of, where hosts have written a part each; bytes_total and bytes_new count them too."""
    identity: str = ""
    """Which job it is of, whatever that is called (`Header.identity`)."""


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
    table_hash: bytes = b""
    body_hash: bytes = b""
    """BLAKE3 of the body as stored."""
    names: bytes = b""
    """BLAKE3 of the store's key of chunk names; empty where the checkpoint is encrypted and has its own."""
    recipients: list[Recipient] = []
    """Not empty: it is encrypted to these."""
    sealed_label: bytes = b""
    """The label of an encrypted checkpoint, msgpack, encrypted."""
    parts: tuple[Part, ...] = ()
    """See parts.py."""
    identity: str = ""
    """A random word of the job's, the same in all of its checkpoints and copies of them; '' where it is not known."""


class Root(NamedTuple):
    """A root that is whole. signature: by whom it says it is; not verified, None if there is none."""

    header: Header
    table: Table
    body: memoryview
    signature: Signature | None


def object_name(job: str, number: int) -> str:
    return f"roots/{job}/{number}"


def encode(header: Header, table: Sequence[Buffer], body: Buffer, sealer: Sealer) -> list[Buffer]:
    """The root as pieces to be written one after the other; all of `header` is right already but for the hashes."""
    digest = blake3()
    for piece in table:
        digest.update(piece)
    hashed = msgspec.structs.replace(header, table_hash=digest.digest(), body_hash=blake3(body).digest())
    encrypted = bool(header.recipients)
    return [envelope.wrap(MAGIC, VERSION, msgspec.msgpack.encode(hashed), sealer, encrypted), *table, body]


def decode_header(data: Buffer, what: str) -> tuple[Header, envelope.Opened]:
    """The header and its envelope. Raises Damaged."""
    opened = envelope.open_(MAGIC, VERSION, data, what, SEALS)
    try:
        header = msgspec.msgpack.decode(opened.payload, type=Header)
    except msgspec.MsgspecError as error:
        raise Damaged(f"{what} is damaged: {error}") from None
    if opened.version > 1 and opened.signature is None:
        raise Damaged(f"{what} has lost its signature")
    if bool(opened.seal & envelope.ENCRYPTED) != bool(header.recipients):
        raise Damaged(f"{what} is damaged: encrypted or not?")
    return header, opened


def total_size(header: Header, opened: envelope.Opened) -> int:
    """How long the root is, given what `decode_header` returned."""
    return opened.size + header.table + header.body + (envelope.DIGEST if opened.version == 1 else 0)


def decode(data: Buffer, what: str) -> Root:
    """A root, whole; nothing is copied, nothing decrypted. Raises Damaged."""
    header, opened = decode_header(data, what)
    size = total_size(header, opened)
    if len(data) < size:
        raise Damaged(f"{what} is truncated")
    view = memoryview(data)
    start = opened.size + header.table
    stored, body = view[opened.size : start], view[start : start + header.body]
    if opened.version == 1:
        whole = blake3(view[: -envelope.DIGEST]).digest() == view[-envelope.DIGEST :]
    else:
        whole = (blake3(stored).digest(), blake3(body).digest()) == (header.table_hash, header.body_hash)
    if len(data) > size or not whole:
        raise Damaged(f"{what} is damaged")
    table = Table(stored, what)
    if table.size != header.table:
        raise Damaged(f"{what} is damaged")
    return Root(header, table, body, opened.signature)
