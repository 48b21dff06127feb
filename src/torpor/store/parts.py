"""Checkpoints of several parts: a job over hosts is one checkpoint, and each host has written a part of it.

A part is a root like any other, `roots/<job>+<part>/<number>`, with packs of its own. No job can have a `+` in its
name, so parts are never listed, and nobody can ask for one by name. The checkpoint is the root `roots/<job>/<number>`,
written when all parts are there: its header names them, each with the hash of its root, so none can be exchanged for
that of another attempt. Without this root, parts are left-overs of a save that failed: the next collection removes
them. Removing goes the other way: first the root, then the parts.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

import msgspec
from blake3 import blake3

from torpor.model.data import Buffer
from torpor.model.errors import UsageError

SIGN = "+"
_PART = re.compile(r"[A-Za-z0-9._-]{1,100}")


class Part(msgspec.Struct, frozen=True):
    """A part of a checkpoint, as the header of its root names it."""

    name: str
    digest: bytes
    """BLAKE3 of the part's root, all of it."""
    bytes_total: int = 0
    bytes_new: int = 0


def series(job: str, part: str) -> str:
    """Where the roots of this part of a job are: the name that stands in their headers for the job's. Raises
    UsageError."""
    if not _PART.fullmatch(part):
        raise UsageError(f"{part!r} cannot be the name of a part")
    return f"{job}{SIGN}{part}"


def whole(series: str) -> str:
    """The job that a series of roots belongs to: itself, or the one it is a part of."""
    return series.partition(SIGN)[0]


def is_part(series: str) -> bool:
    return SIGN in series


def name_of(series: str) -> str:
    """The name of the part; '' where it is a whole job's."""
    return series.partition(SIGN)[2]


def digest(root: Iterable[Buffer]) -> bytes:
    """Of a root, given in pieces."""
    hashed = blake3()
    for piece in root:
        hashed.update(piece)
    return hashed.digest()


def orphans(roots: dict[str, list[int]]) -> list[tuple[str, int]]:
    """Parts without the root that makes them a checkpoint. roots: the numbers of each series there is. Pure."""
    return [
        (name, number)
        for name, found in sorted(roots.items())
        if is_part(name)
        for number in found
        if number not in roots.get(whole(name), ())
    ]
