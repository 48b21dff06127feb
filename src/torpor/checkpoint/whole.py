"""Makes a checkpoint of a job over hosts exist, once every host has stored its part of it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from torpor import __version__
from torpor.image import codec
from torpor.image.whole import PartRecord, Whole
from torpor.model.errors import CheckpointFailed
from torpor.store import numbers

if TYPE_CHECKING:
    from torpor.store.root import RootInfo
    from torpor.store.sealing import Sealer
    from torpor.store.store import Store


def latest(store: Store, job: str) -> int:
    """The highest number that a checkpoint of this job has or had; 0 for none. Raises OSError."""
    return numbers.latest(store.backend, job)


def commit(
    store: Store,
    sealer: Sealer,
    job: str,
    number: int,
    records: Sequence[PartRecord],
    label: dict[str, str],
    identity: str = "",
) -> RootInfo:
    """Write the job's root, which names these parts. If one with just these parts is there already (the coordinator
    before this one has written it), that one counts. label: more for the listing. identity: of the job. Raises
    CheckpointFailed, Damaged."""
    records = sorted(records, key=lambda record: record.part.name)
    parts = tuple(record.part for record in records)
    if number in numbers.existing(store.backend, job):
        found = store.resolve(f"{job}@{number}")
        if found.parts == parts:
            return found
        raise CheckpointFailed(f"{job}@{number} is another checkpoint already")
    whole = Whole(job=job, created=time.time(), torpor=__version__, parts=tuple(records), first=_first(records))
    saving = store.begin_whole(job, number, sealer)
    told: dict[str, str | int | float] = {
        "created": whole.created,
        "host": ",".join(record.host for record in records),
        "processes": sum(record.processes for record in records),
        "threads": sum(record.threads for record in records),
        "command": next((record.command for record in records if record.part.name == whole.first), ""),
        "bytes_read": sum(record.bytes_read for record in records),
        "seconds": max((record.seconds for record in records), default=0.0),
        **label,
    }
    try:
        return saving.commit(codec.encode(whole), told, parts, identity)
    except BaseException:
        saving.abort()
        raise


def notes(records: Sequence[PartRecord]) -> list[str]:
    """What whoever asked for the checkpoint is to know, each with the hosts of which it is true."""
    hosts: dict[str, list[str]] = {}
    for record in records:
        for note in record.notes:
            hosts.setdefault(note, []).append(record.part.name)
    return [f"{', '.join(names[:3])}{' and others' if len(names) > 3 else ''}: {note}" for note, names in hosts.items()]


def _first(records: Sequence[PartRecord]) -> str:
    return next((record.part.name for record in records if record.first), "")
