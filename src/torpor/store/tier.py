"""A fast place in front of a slow one: memory or a local disk, and what a checkpoint is to end up on.

A checkpoint is committed when it is on the fast one. Behind, it is *drained*: its packs are copied to the slow one as
they are, then its root, in the order in which a save writes them, so that what is listed there is whole. Packs that
have been drained leave the fast place, but for those of each job's newest checkpoint: the next save builds on these,
and a restart is likely to want them. Whoever reads takes what is nearest.

The fast place may be lost at any time (memory, after a power cut): what was drained is all there, and the checkpoints
that had not been are gone. What keeps saves and collections out of each other's way (leases, warrants, claims) is in
the fast place: whoever writes to the slow one has to come through the same tier.

A save goes on where the slow place cannot be reached: it then knows only what is in the fast one. Nothing can be
deleted meanwhile, because what the slow place needs is not known.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import TypeAlias, TypeVar

from torpor.model.data import Buffer
from torpor.store.backend import Backend, Stat, Upload

CONFIG = "store"
SHARED = ("packs", "roots", "index")
"""What is looked for in both places."""
PIECE = 8 << 20

T = TypeVar("T")
# Inside the class, `list` is a method.
Checkpoints: TypeAlias = list[tuple[str, int]]


class Tier:
    """See backend.Backend."""

    def __init__(self, fast: Backend, slow: Backend) -> None:
        self.fast, self.slow = fast, slow
        self.place = f"tier:{fast.place},{slow.place}"
        self.lanes = fast.lanes
        self.pack_size = min(fast.pack_size, slow.pack_size)
        self._saving = False
        self._cut: OSError | None = None
        """Why the slow place is done without."""

    def prepare(self) -> None:
        self.fast.prepare()
        self._saving = self._there(self.fast, CONFIG)  # else the slow place is needed: it says what names chunks have
        try:
            self.slow.prepare()
        except OSError as error:
            if not self._saving:
                raise
            self._cut = error

    def lag(self) -> float:
        return max(self.fast.lag(), self.slow.lag())

    def put(self, name: str, pieces: Sequence[Buffer], durable: bool = True) -> bool:
        if name == CONFIG:
            # Whatever is lost of the fast place, names of chunks have to stay the same. The slow place decides.
            self.slow.put(name, pieces, durable)
            pieces = [self.slow.get(name)]
        return self.fast.put(name, pieces, durable)

    def create(self, name: str, lane: int = 0) -> Upload:
        return self.fast.create(name, lane)

    def sync(self, folder: str) -> None:
        self.fast.sync(folder)

    def get(self, name: str, offset: int = 0, length: int = -1) -> bytes:
        return self._nearest(name, lambda place: place.get(name, offset, length))

    def list(self, folder: str) -> list[str]:
        found = self.fast.list(folder)
        if folder and folder.partition("/")[0] not in (*SHARED, "claims"):
            return found
        if self._cut is None:
            try:
                return sorted({*found, *self.slow.list(folder)})
            except OSError as error:
                if not self._saving:
                    raise
                self._cut = error
        return found

    def stat(self, name: str) -> Stat:
        return self._nearest(name, lambda place: place.stat(name))

    def touch(self, name: str) -> None:
        self.fast.touch(name)

    def delete(self, name: str) -> None:
        both = name.startswith(("packs/", "roots/", "claims/"))  # the index of the slow place follows with a drain
        if both and self._cut is not None:
            raise OSError(
                self._cut.errno, f"{self.slow.place} cannot be reached: {self._cut.strerror}", self.slow.place
            )
        self.fast.delete(name)  # first: this is where a drain looks whether it is still there
        if both:
            self.slow.delete(name)

    def path(self, name: str) -> str | None:
        for place in (self.fast, self.slow):
            found = place.path(name)
            if found and os.path.exists(found):
                return found
        return self.fast.path(name) if not _shared(name) else None

    def tidy(self, before: float) -> None:
        self.fast.tidy(before)
        self.slow.tidy(before)

    def close(self) -> None:
        self.fast.close()
        self.slow.close()

    # -- the state

    def waiting(self) -> Checkpoints:
        """The checkpoints (job, number) that are only in the fast place. Raises OSError."""
        out = []
        for job in self.fast.list("roots"):
            there = set(self.slow.list(f"roots/{job}"))
            out += [(job, int(n)) for n in self.fast.list(f"roots/{job}") if n.isdigit() and n not in there]
        return sorted(out)

    def _nearest(self, name: str, call: Callable[[Backend], T]) -> T:
        try:
            return call(self.fast)
        except FileNotFoundError:
            if not _shared(name) and name != CONFIG:
                raise
        return call(self.slow)

    def _there(self, place: Backend, name: str) -> bool:
        try:
            place.stat(name)
        except FileNotFoundError:
            return False
        return True


def _shared(name: str) -> bool:
    return name.partition("/")[0] in SHARED


def find(backend: Backend) -> Tier | None:
    """The tier that a back end is, if it is one."""
    return backend if isinstance(backend, Tier) else None
