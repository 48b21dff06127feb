"""The wrapping that every small object of a store has, and the manifest too: what is it, which version, is it
whole.

    offset  size
    0       8     magic: what kind of object this is
    8       2     format version (little-endian, as all numbers)
    10      2     seal: 0 = none. Room for signatures and encryption; a reader refuses a kind it does not know
    12      4     zero
    16      8     length of the payload
    24      n     payload
    24+n    32    BLAKE3 of everything before

The digest notices damage; it proves nothing about who wrote the object.
"""

from __future__ import annotations

import struct

from blake3 import blake3

from torpor.model.data import Buffer
from torpor.model.errors import Damaged

HEAD = struct.Struct("<8sHHIQ")
DIGEST = 32


def wrap(magic: bytes, version: int, payload: Buffer) -> bytes:
    """`payload` with the head before it and the digest behind it."""
    head = HEAD.pack(magic, version, 0, 0, len(payload))
    digest = blake3(head)
    digest.update(payload)
    return b"".join((head, payload, digest.digest()))


def size(magic: bytes, version: int, data: Buffer, what: str) -> int:
    """How long the whole object is that starts with `data` (at least HEAD.size bytes if it is whole).

    version: the newest one the caller can read.  what: how to call the object in an error.
    Raises Damaged where it is foreign, newer, sealed in a way unknown here, or shorter than its own head.
    """
    if bytes(data[: len(magic)]) != magic[: len(data)] or not len(data):
        raise Damaged(f"{what} is not what torpor wrote there (foreign or overwritten)")
    if len(data) < HEAD.size:
        raise Damaged(f"{what} is truncated")
    _, found, seal, _, length = HEAD.unpack_from(data)
    if found > version:
        raise Damaged(f"{what} has format {found}, written by a newer torpor; this one reads up to {version}")
    if seal:
        raise Damaged(f"{what} is sealed in a way this torpor does not know ({seal})")
    return HEAD.size + int(length) + DIGEST


def unwrap(magic: bytes, version: int, data: Buffer, what: str) -> memoryview:
    """The payload of a wrapped object, verified. `data` may go on behind it. Raises Damaged as `size` does,
    and where anything of it is missing or altered."""
    end = size(magic, version, data, what)
    if len(data) < end:
        raise Damaged(f"{what} is truncated")
    view = memoryview(data)
    if blake3(view[: end - DIGEST]).digest() != view[end - DIGEST : end]:
        raise Damaged(f"{what} is damaged")
    return view[HEAD.size : end - DIGEST]
