"""The wrapping that every small object of a store has, and the manifest too: what is it, which version, is it
whole, who signed it.

    offset  size
    0       8     magic: what kind of object this is
    8       2     format version (little-endian, as all numbers)
    10      2     seal: 0 = none; SIGNED, and perhaps ENCRYPTED; a reader refuses what it does not know
    12      4     zero
    16      8     length of the payload
    24      n     payload
    24+n    96    if SIGNED: public key (32) and signature (64), Ed25519, of b"torpor signature\\0" and all before
    ...     32    BLAKE3 of everything before

The digest notices damage; it proves nothing about who wrote the object. The signature does. ENCRYPTED says that what
follows the envelope is (root.py).
"""

from __future__ import annotations

import struct

from blake3 import blake3

from torpor.model.data import Buffer
from torpor.model.errors import Damaged
from torpor.named_tuple import NamedTuple
from torpor.store.sealing import Sealer, Signature

HEAD = struct.Struct("<8sHHIQ")
DIGEST = 32
SIGNED, ENCRYPTED = 1, 2
SIGNATURE = 32 + 64
CONTEXT = b"torpor signature\0"
"""Stands before what is signed, so that a signature made for something else is worth nothing here."""


class Opened(NamedTuple):
    """A verified envelope. size: of all of it."""

    payload: memoryview
    version: int
    seal: int
    size: int
    signature: Signature | None


def wrap(magic: bytes, version: int, payload: Buffer, sealer: Sealer | None = None, encrypted: bool = False) -> bytes:
    """`payload` with the head before it and the digest behind it; signed if there is a `sealer`."""
    seal = (SIGNED if sealer is not None else 0) | (ENCRYPTED if encrypted else 0)
    parts = [HEAD.pack(magic, version, seal, 0, len(payload)), payload]
    if sealer is not None:
        parts += [sealer.key, sealer.sign(b"".join((CONTEXT, *parts)))]
    digest = blake3()
    for part in parts:
        digest.update(part)
    return b"".join((*parts, digest.digest()))


def size(magic: bytes, version: int, data: Buffer, what: str, seals: int = 0) -> int:
    """How long the whole object is that starts with `data` (at least HEAD.size bytes if it is whole).

    version: the newest one the caller can read.  seals: the kinds it knows.  what: how to call the object in an error.
    Raises Damaged where it is foreign, newer, sealed in a way unknown here, or shorter than its own head.
    """
    if bytes(data[: len(magic)]) != magic[: len(data)] or not len(data):
        raise Damaged(f"{what} is not what torpor wrote there (foreign or overwritten)")
    if len(data) < HEAD.size:
        raise Damaged(f"{what} is truncated")
    _, found, seal, _, length = HEAD.unpack_from(data)
    if found > version:
        raise Damaged(f"{what} has format {found}, written by a newer torpor; this one reads up to {version}")
    if seal & ~seals:
        raise Damaged(f"{what} is sealed in a way this torpor does not know ({seal})")
    return HEAD.size + int(length) + (SIGNATURE if seal & SIGNED else 0) + DIGEST


def unwrap(magic: bytes, version: int, data: Buffer, what: str) -> memoryview:
    """The payload of a wrapped object that is not sealed, verified. `data` may go on behind it. Raises Damaged as
    `size` does, and where anything of it is missing or altered."""
    return open_(magic, version, data, what, 0).payload


def open_(magic: bytes, version: int, data: Buffer, what: str, seals: int) -> Opened:
    """A wrapped object, whole; the signature is not looked at. Raises Damaged as `unwrap` does."""
    end = size(magic, version, data, what, seals)
    if len(data) < end:
        raise Damaged(f"{what} is truncated")
    view = memoryview(data)
    if blake3(view[: end - DIGEST]).digest() != view[end - DIGEST : end]:
        raise Damaged(f"{what} is damaged")
    _, found, seal, _, length = HEAD.unpack_from(data)
    stop = HEAD.size + length
    signature = None
    if seal & SIGNED:
        key, value = view[stop : stop + 32], view[stop + 32 : stop + SIGNATURE]
        signature = Signature(bytes(key), bytes(value), b"".join((CONTEXT, view[:stop])))
    return Opened(view[HEAD.size : stop], found, seal, end, signature)
