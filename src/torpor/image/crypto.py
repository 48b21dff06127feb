"""The few primitives that seals are made of: Ed25519, X25519, AES-256-GCM, from the package `cryptography`.

What is combined how is said in docs/format.md.

The package's Python modules are left out and its core is taken directly: on the way of a restart that saves half of
the 12 ms that importing it takes. Where a later version of it is built otherwise, its public modules do.
"""

from __future__ import annotations

import os
import sys
from typing import Any

from blake3 import blake3

from torpor.model.data import Buffer
from torpor.store.sealing import Recipient

NONCE = 24
"""Random bytes before every sealed piece: 12 to derive its key with, 12 as the nonce of AES-GCM."""
TAG = 16
_NEVER = bytes(12)
"""The nonce where a key is used once only."""

DERIVE_SIGN = "torpor 2026 key: signing"
DERIVE_BOX = "torpor 2026 key: opening"
DERIVE_DATA = "torpor 2026 data key of a store"
DERIVE_NAMES = "torpor 2026 data key: names of chunks"
DERIVE_PIECE = "torpor 2026 data key: pieces"
DERIVE_WRAP = "torpor 2026 data key: wrapped"


def derive(context: str, material: Buffer) -> bytes:
    """32 bytes: BLAKE3 in its mode for deriving keys."""
    return blake3(material, derive_key_context=context).digest()


def _ed25519() -> Any:
    try:
        from cryptography.hazmat.bindings._rust import openssl

        return openssl.ed25519.from_public_bytes, openssl.ed25519.from_private_bytes
    except (ImportError, AttributeError):
        from cryptography.hazmat.primitives.asymmetric import ed25519

        return ed25519.Ed25519PublicKey.from_public_bytes, ed25519.Ed25519PrivateKey.from_private_bytes


def _x25519() -> Any:
    try:
        from cryptography.hazmat.bindings._rust import openssl

        return openssl.x25519.from_public_bytes, openssl.x25519.from_private_bytes
    except (ImportError, AttributeError):
        from cryptography.hazmat.primitives.asymmetric import x25519

        return x25519.X25519PublicKey.from_public_bytes, x25519.X25519PrivateKey.from_private_bytes


def _aes() -> Any:
    try:
        from cryptography.hazmat.bindings._rust import openssl

        return openssl.aead.AESGCM
    except (ImportError, AttributeError):
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM

        return AESGCM


def _wrong() -> tuple[type[Exception], ...]:
    """What is raised where a signature or a tag is not right, or a key is impossible."""
    from cryptography.exceptions import InvalidSignature, InvalidTag

    return InvalidSignature, InvalidTag, ValueError


def public_of(seed: bytes) -> tuple[bytes, bytes]:
    """The public keys of a secret one: for signatures (Ed25519), for opening (X25519)."""
    signing = _ed25519()[1](derive(DERIVE_SIGN, seed)).public_key()
    opening = _x25519()[1](derive(DERIVE_BOX, seed)).public_key()
    return signing.public_bytes_raw(), opening.public_bytes_raw()


def sign(seed: bytes, message: bytes) -> bytes:
    """An Ed25519 signature (RFC 8032), 64 bytes."""
    signature: bytes = _ed25519()[1](derive(DERIVE_SIGN, seed)).sign(message)
    return signature


def verify(key: bytes, signature: bytes, message: bytes) -> bool:
    """Was `message` signed with the secret key that belongs to the public `key`?"""
    if "ctypes" in sys.modules and "cryptography.exceptions" not in sys.modules:
        from torpor.image import libcrypto

        if libcrypto.verified(key, signature, message):
            return True
    try:
        _ed25519()[0](key).verify(signature, message)
    except _wrong():
        return False
    return True


def wrap(data_key: bytes, key: bytes) -> Recipient:
    """A data key, to be opened only with the secret key of the public `key`. Raises ValueError for an impossible
    one."""
    public, private = _x25519()
    secret = os.urandom(32)
    ephemeral = private(secret).public_key().public_bytes_raw()
    shared = private(secret).exchange(public(key))
    wrapping = derive(DERIVE_WRAP, shared + ephemeral + key)
    return Recipient(key, ephemeral, _aes()(wrapping).encrypt(_NEVER, data_key, None))


def unwrap(recipient: Recipient, seed: bytes) -> bytes | None:
    """The data key; None if it was not wrapped for this secret key, or was altered."""
    public, private = _x25519()
    try:
        shared = private(derive(DERIVE_BOX, seed)).exchange(public(recipient.ephemeral))
        wrapping = derive(DERIVE_WRAP, shared + recipient.ephemeral + recipient.key)
        data_key: bytes = _aes()(wrapping).decrypt(_NEVER, recipient.wrapped, None)
    except _wrong():
        return None
    return data_key if len(data_key) == 32 else None


class Cipher:
    """See store.sealing.Cipher.

    Each piece has a key of its own, derived from the data key and 12 random bytes, and another 12 random bytes as its
    nonce: 192 random bits, so that no pair is ever met twice, however much is saved.
    """

    __slots__ = ("_aes", "_key", "_wrong", "names", "recipients")

    def __init__(self, data_key: bytes, recipients: list[Recipient]) -> None:
        self.recipients = recipients
        self.names = derive(DERIVE_NAMES, data_key)
        self._key = derive(DERIVE_PIECE, data_key)
        self._aes = _aes()
        self._wrong = _wrong()

    def seal(self, data: Buffer, purpose: bytes) -> bytes:
        nonce = os.urandom(NONCE)
        piece = blake3(nonce[:12], key=self._key).digest()
        sealed: bytes = self._aes(piece).encrypt(nonce[12:], data, purpose)
        return nonce + sealed

    def open(self, sealed: Buffer, purpose: bytes) -> bytes | None:
        view = memoryview(sealed)
        if len(view) < NONCE + TAG:
            return None
        piece = blake3(view[:12], key=self._key).digest()
        try:
            data: bytes = self._aes(piece).decrypt(view[12:NONCE], view[NONCE:], purpose)
        except self._wrong:
            return None
        return data
