"""Removing checkpoints, copying them, and freeing what nobody needs, each with its line in the log of what was done."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torpor.model.errors import NotFound, TorporError
from torpor.supervise import audit

if TYPE_CHECKING:
    from torpor.store import Store


def remove(store: Store, job: str, number: int, why: str) -> None:
    """Remove a checkpoint; see Store.remove. why: for the log. Raises NotFound, which leaves no line, TorporError."""
    told: dict[str, Any] = {"job": job, "checkpoint": f"{job}@{number}", "why": why, "store": store.location}
    try:
        store.remove(job, number)
    except NotFound:
        raise  # somebody else was quicker
    except (OSError, TorporError) as error:
        audit.record("remove", error, **told)
        raise
    audit.record("remove", **told)


def collect(store: Store, why: str) -> tuple[int, int]:
    """Delete packs that no checkpoint refers to: how many, how many bytes; see Store.collect. There is a line if there
    were some. Raises TorporError."""
    told: dict[str, Any] = {"why": why, "store": store.location}
    try:
        packs, freed = store.collect()
    except (OSError, TorporError) as error:
        audit.record("prune", error, **told)
        raise
    if packs:
        audit.record("prune", packs=packs, bytes_freed=freed, **told)
    return packs, freed


def copy(source: Store, job: str, number: int, target: Store) -> int:
    """Copy a checkpoint; see store.copying.copy."""
    import time

    from torpor.store.copying import copy as run

    told: dict[str, Any] = {
        "job": job, "checkpoint": f"{job}@{number}", "why": "command", "store": source.location,
        "target": target.location,
    }  # fmt: skip
    began = time.monotonic()
    try:
        size = run(source, job, number, target)
    except (OSError, TorporError) as error:
        audit.record("copy", error, **told)
        raise
    identity = source.resolve(f"{job}@{number}").identity
    if identity:
        from torpor.supervise import lease

        lease.relate(identity, source.backend, target.backend, source.location, target.location)
    audit.record("copy", **told, seconds=round(time.monotonic() - began, 4), bytes_new=max(0, size))
    return size
