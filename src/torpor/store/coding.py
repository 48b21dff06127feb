"""What is stored of a chunk: compressed if that is wanted and pays, then sealed."""

from __future__ import annotations

import time

from torpor.model.data import Buffer
from torpor.store import sealing
from torpor.store.chunk import KINDS, RAW, Packer
from torpor.store.pace import Gauge, Pace
from torpor.store.sealing import Cipher

PROBE = 4 << 20
"""Bytes after which a kind that is not in use is tried on a part of a chunk."""
PART = 64 << 10
"""Bytes of that part: enough to tell how the whole would do, and 1 % of what compressing all takes."""


class Coder:
    """Encodes chunks. Safe to use from several threads."""

    def __init__(self, compression: str, gauge: Gauge, cipher: Cipher | None) -> None:
        """compression: one of chunk.KINDS, or 'auto' (pace.py).  gauge: of the packs that the chunks go to."""
        self._kinds = list(KINDS) if compression == "auto" else [compression]
        self._pace = Pace(gauge) if compression == "auto" else None
        self._cipher = cipher
        self._probe_due = 0
        self._probed = ""
        # The first one imports the compressor, and gets its memory: now, and not while the job stands still.
        self._packers = [Packer(self._kinds)]
        for kind in self._kinds:
            self._packers[0].encode(bytes(PART), kind)

    def encode(self, name: bytes, data: Buffer) -> tuple[int, Buffer]:
        """The encoding chosen and the bytes to be stored, `data` itself if nothing is done to it."""
        try:
            packer = self._packers.pop()
        except IndexError:
            packer = Packer(self._kinds)
        if self._pace is None:
            encoding, stored = packer.encode(data, self._kinds[0])
        else:
            encoding, stored = self._adapted(packer, data, self._pace)
        self._packers.append(packer)
        if self._cipher is not None:
            stored = self._cipher.seal(stored, sealing.CHUNK + name)
        return encoding, stored

    def close(self) -> None:
        """Let go of the compressors' memory, some hundred KiB: there is nothing left to encode."""
        self._packers.clear()

    def _adapted(self, packer: Packer, data: Buffer, pace: Pace) -> tuple[int, Buffer]:
        now, length = time.monotonic(), len(data)
        self._probe_due -= length
        if self._probe_due < 0:
            self._probe_due = PROBE
            self._probe(packer, data, pace)
        kind = pace.next(now, length)
        if kind == "none":
            return RAW, data
        began = time.monotonic()
        encoding, stored = packer.encode_promising(data, kind)
        pace.note(kind, time.monotonic() - began, length, len(stored))
        return encoding, stored

    def _probe(self, packer: Packer, data: Buffer, pace: Pace) -> None:
        """See what the kinds that are not in use would do with such chunks: one of them, at first all."""
        length = len(data)
        others = [kind for kind in KINDS if kind not in ("none", pace.kind)]
        if self._probed:
            others = [next((kind for kind in others if kind != self._probed), others[0])]
        for kind in others:
            began = time.monotonic()
            shrunk = packer.shrinks(data, kind, PART)
            took = (time.monotonic() - began) / min(length, PART)
            # It stands for all that was put since that kind was last tried.
            pace.note(kind, took * 2 * PROBE, 2 * PROBE, shrunk * 2 * PROBE)
            self._probed = kind
