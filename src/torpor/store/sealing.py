"""What the store knows of signatures and encryption: that there are such things, and where they go.

Who signs, who is trusted and who may read is decided above (`image/seal.py`) and passed in as one of these objects.
"""

from __future__ import annotations

from typing import Protocol

import msgspec

from torpor.model.data import Buffer
from torpor.named_tuple import NamedTuple


class Signature(NamedTuple):
    """By whom (public key, 32 bytes) and what (64 bytes); `message` is what was signed."""

    key: bytes
    value: bytes
    message: bytes


class Recipient(msgspec.Struct, frozen=True, array_like=True):
    """The data key of a checkpoint, wrapped for one who may read it (docs/format.md, "Encryption")."""

    key: bytes
    ephemeral: bytes
    wrapped: bytes


class Cipher(Protocol):
    """The data key of one checkpoint at work. Safe to use from several threads."""

    names: bytes
    """The key of the names of its chunks."""
    recipients: list[Recipient]

    def seal(self, data: Buffer, purpose: bytes) -> bytes:
        """Encrypt. purpose: what it is; must be the same when it is opened."""
        ...

    def open(self, sealed: Buffer, purpose: bytes) -> bytes | None:
        """What was sealed for that purpose; None if this is not it."""
        ...


class Sealer(Protocol):
    """How a checkpoint is sealed when it is saved."""

    key: bytes
    """Public key of the signer."""

    def sign(self, message: bytes) -> bytes: ...

    def cipher(self, store: bytes) -> Cipher | None:
        """What the next checkpoint in that store (its key) is encrypted with; None if it is not to be."""
        ...


class Opener(Protocol):
    """How a sealed checkpoint is opened."""

    def accept(self, signature: Signature | None, what: str) -> None:
        """Raises Damaged if the signature (None: there is none) is wrong, Untrusted if it does not do."""
        ...

    def cipher(self, recipients: list[Recipient], what: str) -> Cipher:
        """Raises Sealed if we are none of the recipients, Damaged where the wrapped key is not right."""
        ...


CHUNK, BODY, LABEL = b"chunk", b"body", b"label"
"""Purposes."""
