"""How bulk data leaves a service and comes back, without the service knowing where it is kept."""

from __future__ import annotations

from typing import Protocol, TypeAlias

Buffer: TypeAlias = bytes | bytearray | memoryview

CHUNK_SIZE = 256 * 1024
"""The largest run of bytes that is kept as one chunk: 64 pages of 4 KiB, so that a bitmap of a chunk's pages
fits one 64-bit word."""

Ref: TypeAlias = int
"""A chunk, as the records of one checkpoint name it: its place in that checkpoint's table of chunks."""


class Sink(Protocol):
    """Takes bytes and keeps them as chunks. Safe to use from several threads."""

    def put(self, data: Buffer) -> Ref:
        """Keep `data` (1 to CHUNK_SIZE bytes). The buffer may be reused as soon as this returns.

        Raises CheckpointFailed where the store cannot take it (full, not writable).
        """
        ...


class Source(Protocol):
    """Gives chunks back. Safe to use from several threads."""

    def get(self, ref: Ref) -> Buffer:
        """The bytes of one chunk, verified. Raises Damaged where they are missing or not what was saved."""
        ...
