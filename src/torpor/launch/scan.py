"""`torpor scan`: what looks like a secret in a checkpoint."""

from __future__ import annotations

from collections.abc import Callable

from torpor.checkpoint import scan as scanning
from torpor.checkpoint.scan import Finding
from torpor.launch.checkpoint import open_whole, reading


def scan(
    checkpoint: str | None,
    store: str | None = None,
    untrusted: bool = False,
    part: str = "",
    progress: Callable[[int, int], None] | None = None,
) -> tuple[str, list[tuple[str, Finding]]]:
    """The checkpoint's name, and what was found, each with the part that it is in ('' for a job on one host). part: of
    a job over hosts, only that one. Raises NotFound, Damaged, Untrusted, Sealed, UsageError."""
    parts = [part]
    if not part:
        found = open_whole(checkpoint, store, untrusted)
        if found is not None:
            parts = [record.part.name for record in found[1].parts]
            checkpoint = f"{found[0].job}@{found[0].number}"
    name, out = "", []
    for each in parts:
        with reading(checkpoint, store, untrusted, each) as (opened, load):
            name = opened.name
            out += [(each, finding) for finding in scanning.scan(opened.manifest, load, load.refs, progress)]
    return name, out
