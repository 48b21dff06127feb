"""How a manifest becomes bytes and comes back: msgpack in the envelope that all of torpor's objects have."""

from __future__ import annotations

from typing import TypeVar

import msgspec

from torpor.model.data import Buffer
from torpor.model.errors import Damaged
from torpor.store import envelope

MAGIC = b"torporM\0"
VERSION = 1
"""Raised when an older reader would misunderstand a new manifest. Fields added with a default do not need
that."""

T = TypeVar("T")


def encode(manifest: msgspec.Struct) -> bytes:
    """`manifest` as bytes."""
    return envelope.wrap(MAGIC, VERSION, msgspec.msgpack.encode(manifest))


def decode(data: Buffer, kind: type[T], what: str = "manifest") -> T:
    """What `encode` was given, as a `kind`.

    what: how to call it in an error (`checkpoint train@3`). Raises Damaged where it is foreign, newer,
    truncated or altered, or does not hold what a `kind` must.
    """
    try:
        return msgspec.msgpack.decode(envelope.unwrap(MAGIC, VERSION, data, what), type=kind)
    except msgspec.MsgspecError as error:
        raise Damaged(f"{what} is damaged: {error}") from None
