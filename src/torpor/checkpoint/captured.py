"""What was captured of a job, and what becomes of it when the job goes on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import msgspec

from torpor.checkpoint import machine, memory
from torpor.checkpoint.asking import Asked
from torpor.image.manifest import FileRecord, Manifest, ObjectRecord, ProcessRecord
from torpor.model.ledger import Ledger
from torpor.model.terms import Terms
from torpor.named_tuple import NamedTuple
from torpor.posix.scratch import Scratch

if TYPE_CHECKING:
    from torpor.checkpoint.shortage import Shortage


class Half(NamedTuple):
    """A process (host pid): its record but for its memory and what its services have to say; these have been `asked`,
    unless it is a zombie."""

    pid: int
    record: ProcessRecord
    asked: Asked | None


class Captured(NamedTuple):
    """A manifest (`draft`) but for parts that can wait until the job goes on. parts: by number of the object. notes:
    for the user."""

    draft: Callable[..., Manifest]
    processes: Sequence[Half]
    objects: Sequence[ObjectRecord]
    files: tuple[FileRecord, ...]
    parts: dict[int, Callable[[], msgspec.Struct]]
    scratch: Callable[[], Scratch]
    copies: Callable[[tuple[FileRecord, ...]], tuple[FileRecord, ...]]
    memory: memory.Held
    notes: tuple[str, ...]
    ledger: Ledger | None = None
    terms: Terms | None = None

    def told(self, ledger: Ledger | None, terms: Terms | None) -> Captured:
        """With what the job has asked for outside, and on what terms."""
        return self._replace(ledger=ledger, terms=terms)

    def complete(self, shortage: Shortage | None) -> Manifest:
        """The whole manifest. shortage: see memory.Held.finish. Raises Refused, CallFailed, CheckpointFailed
        (memory.Unlike), OSError."""
        halves = [half.record if half.asked is None else _asked(half.record, half.asked) for half in self.processes]
        saved = self.memory.finish(shortage)
        processes = [
            msgspec.structs.replace(record, areas=saved.areas[pid], pages=saved.pages[pid], guards=saved.guards[pid])
            if pid in saved.areas
            else record
            for (pid, _, _), record in zip(self.processes, halves)
        ]
        objects = list(self.objects)
        for number, make in self.parts.items():
            record = msgspec.Raw(msgspec.msgpack.encode(make()))
            objects[number] = msgspec.structs.replace(objects[number], state=record)
        files = self.copies(self.files)
        return self.draft(
            machine=machine.look(max((len(t.cpu.xstate) for p in processes for t in p.threads), default=0)),
            processes=tuple(processes),
            objects=tuple(objects),
            scratch=self.scratch(),
            files=files,
            ledger=self.ledger,
            terms=self.terms,
            forgotten=self._forgotten(),
        )

    def left_out(self) -> tuple[str, ...]:
        """What there is to be said about what was left out by choice, once the manifest is complete."""
        return (*(f"left out: {line}" for line in self._forgotten()), *self.memory.forget.remarks())

    def _forgotten(self) -> tuple[str, ...]:
        return self.memory.forget.told((half.pid, half.record.pid) for half in self.processes)


def _asked(record: ProcessRecord, asked: Asked) -> ProcessRecord:
    told = asked.told()
    return msgspec.structs.replace(record, services=told.services, threads=told.threads, layout=told.layout)
