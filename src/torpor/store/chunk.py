"""A chunk: how it is named and how its bytes are written.

A chunk's name is the 32-byte BLAKE3 hash of its contents, keyed with the random key of the store, so that
names do not tell somebody without the key which well-known data is in there.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from blake3 import blake3

from torpor.model.data import CHUNK_SIZE, Buffer

RAW, ZSTD, ZERO = 0, 1, 2
"""Encodings: as it is; one Zstandard frame (RFC 8878); nothing stored, all bytes are zero."""

NAME = 32
ZEROS = bytes(CHUNK_SIZE)
KINDS = {"none": (0, 0.0), "fast": (-5, 0.95), "zstd": (3, 0.98)}
"""How chunks are compressed: Zstandard's level, and to what part of its size a chunk must shrink to be stored
compressed. Each takes more time than the one before, and leaves less."""
SAMPLE = 16384
"""Bytes of a chunk that are tried before the whole is compressed: a few microseconds where nothing comes of it."""
PROMISING = 0.9
"""To what part of its size a sample must shrink for the whole to be tried."""
ANYWAY = 16
"""Of so many chunks whose samples do not shrink one is tried all the same: what comes again may be farther apart than a
sample is long."""


def name(key: bytes, data: Buffer) -> bytes:
    """The name of a chunk with these contents in a store with this key. Other threads run meanwhile."""
    return blake3(data, key=key).digest()


class Packer:
    """Compresses chunks, one thread at a time (it keeps compression contexts). kind: one of KINDS."""

    __slots__ = ("_compress", "_end", "_raw")

    def __init__(self, kinds: Iterable[str]) -> None:
        """kinds: those that will be asked for. Where one is not 'none', the compressor is imported here."""
        self._compress = {}
        self._raw = 0
        """Chunks in a row that did not shrink."""
        for kind in kinds:
            if kind != "none":
                zstd = _zstd()
                self._compress[kind] = zstd.ZstdCompressor(level=KINDS[kind][0]).compress
                self._end = zstd.ZstdCompressor.FLUSH_FRAME

    def encode(self, data: Buffer, kind: str) -> tuple[int, Buffer]:
        """The encoding chosen and the bytes to be stored: `data` itself for RAW."""
        length = len(data)
        if length < 128 or kind == "none":
            return RAW, data
        stored = self._compress[kind](data, self._end)
        return (ZSTD, stored) if len(stored) < length * KINDS[kind][1] else (RAW, data)

    def encode_promising(self, data: Buffer, kind: str) -> tuple[int, Buffer]:
        """The same, without spending the time on what will not shrink. The chunk before tells, then a sample."""
        if self._raw % ANYWAY and len(data) > 2 * SAMPLE and self.shrinks(data, kind, SAMPLE) > PROMISING:
            self._raw += 1
            return RAW, data
        encoding, stored = self.encode(data, kind)
        self._raw = self._raw + 1 if encoding == RAW else 0
        return encoding, stored

    def shrinks(self, data: Buffer, kind: str, size: int) -> float:
        """To what part of its size the middle of a chunk shrinks; never more than 1. size: so many bytes of it."""
        start = max(0, len(data) - size) // 2
        part = memoryview(data)[start : start + size]
        return min(1.0, len(self._compress[kind](part, self._end)) / len(part))


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
