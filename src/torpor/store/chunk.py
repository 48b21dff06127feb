"""A chunk: how it is named and how its bytes are written.

A chunk's name is the 32-byte BLAKE3 hash of its contents, keyed with the random key of the store, so that
names do not tell somebody without the key which well-known data is in there.
"""

from __future__ import annotations

from typing import Any

from blake3 import blake3

from torpor.model.data import CHUNK_SIZE, Buffer

RAW, ZSTD, ZERO = 0, 1, 2
"""Encodings: as it is; one Zstandard frame (RFC 8878); nothing stored, all bytes are zero."""

NAME = 32
ZEROS = bytes(CHUNK_SIZE)
POLICIES = {"auto": (1, 0.6), "none": (0, 0.0), "fast": (-5, 0.95), "zstd": (3, 0.98)}
"""How chunks are compressed: Zstandard's level, and to what part of its size a chunk must shrink to be stored
compressed. `auto` leaves alone what would cost more time than a slow disk takes to write it."""
SAMPLE = 4096
"""Bytes of a chunk that are tried before the whole is compressed: about 6 us where nothing comes of it."""


def name(key: bytes, data: Buffer) -> bytes:
    """The name of a chunk with these contents in a store with this key. Other threads run meanwhile."""
    return blake3(data, key=key).digest()


class Packer:
    """Encodes chunks, one thread at a time (it keeps a compression context)."""

    __slots__ = ("_compress", "_end", "_sampled", "_worth")

    def __init__(self, policy: str = "auto") -> None:
        """policy: one of POLICIES."""
        level, self._worth = POLICIES[policy]
        self._sampled = policy == "auto"
        if self._worth:
            zstd = _zstd()
            self._compress = zstd.ZstdCompressor(level=level).compress
            self._end = zstd.ZstdCompressor.FLUSH_FRAME

    def encode(self, data: Buffer) -> tuple[int, Buffer]:
        """The encoding chosen and the bytes to be stored: `data` itself for RAW. Deterministic, cheap for
        what does not compress."""
        length = len(data)
        if length < 128 or not self._worth:
            return RAW, data
        if self._sampled and length > 2 * SAMPLE:
            middle = length // 2
            sample = memoryview(data)[middle : middle + SAMPLE]
            if len(self._compress(sample, self._end)) > SAMPLE * self._worth:
                return RAW, data
        stored = self._compress(data, self._end)
        return (ZSTD, stored) if len(stored) < length * self._worth else (RAW, data)


def decode(encoding: int, stored: Buffer, length: int) -> Buffer | None:
    """The contents of a chunk of `length` bytes; None if `stored` cannot be such. Verify the name
    afterwards."""
    if encoding == RAW:
        return stored if len(stored) == length else None
    if encoding == ZERO:
        return memoryview(ZEROS)[:length] if length <= CHUNK_SIZE else None
    if encoding == ZSTD:
        return _decompress(stored, length)
    return None


def _decompress(stored: Buffer, length: int) -> bytes | None:
    zstd = _zstd()
    frame = zstd.ZstdDecompressor()
    try:
        # One byte more than there may be: a frame that would yield more is caught without being expanded.
        data: bytes = frame.decompress(stored, length + 1)
    except zstd.ZstdError:
        return None
    return data if len(data) == length and frame.eof else None


def _zstd() -> Any:
    """The zstd module, imported only when a compressed chunk is read or written (1 ms of a restart
    otherwise)."""
    try:
        from compression import zstd  # type: ignore[import-not-found,unused-ignore]  # Python 3.14
    except ImportError:
        from backports import zstd
    return zstd
