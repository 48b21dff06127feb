"""What is written down so that another coordinator can go on: who is in the job, what is under way, how the last
attempt ended. Written with compare-and-set, so there is one history of it, and a coordinator that has a successor can
write nothing any more.

An attempt is written down before the first order of it is given, and so is how it ends before that is told to
anybody who asked.
"""

from __future__ import annotations

from enum import StrEnum

import msgspec

from torpor.coordinate.phases import Kind, Phase


class Stage(StrEnum):
    """How far an attempt is, as far as a successor has to know. BEGUN: it is given up.  CAPTURED: all hosts have their
    copy, and only have to store it: it goes on.  DECIDED: a checkpoint is committed, a restart released."""

    BEGUN = "begun"
    CAPTURED = "captured"
    DECIDED = "decided"


class Open(msgspec.Struct, frozen=True, array_like=True):
    """An attempt that is under way. hosts: those who have part in it.  parts: of a decided checkpoint, by host.
    what: of a restart: the checkpoint; of a checkpoint: how it is to be made.  plan: of a restart, old host and new
    host."""

    number: int
    kind: Kind
    ask: str
    stage: Stage
    hosts: tuple[str, ...]
    parts: tuple[bytes, ...] = ()
    what: str = ""
    plan: tuple[tuple[str, str], ...] = ()


class Over(msgspec.Struct, frozen=True, array_like=True):
    """An attempt that has ended. ending: COMMIT, DONE or UNDO.  reason: why not.  passing: see `words.Failed`."""

    number: int
    kind: Kind
    ask: str
    ending: Phase
    reason: str = ""
    passing: bool = False


class Record(msgspec.Struct, frozen=True, array_like=True):
    """term: of the coordinator that wrote it.  members: host and incarnation.  number: of the latest attempt.  running,
    undone: of the restart that the job has come from, and of the latest that was given up, 0 if none.  ended: the job
    was saved and ended.  gone: the latest hosts that have left: a late word of theirs does not bring them back."""

    term: int = 0
    members: tuple[tuple[str, int], ...] = ()
    number: int = 0
    open: Open | None = None
    last: Over | None = None
    running: int = 0
    ended: bool = False
    gone: tuple[tuple[str, int], ...] = ()
    undone: int = 0


def encode(record: Record) -> bytes:
    """As it is written."""
    return msgspec.msgpack.encode(record)


def decode(data: bytes) -> Record:
    """What `encode` made. Raises msgspec.MsgspecError for anything else."""
    return msgspec.msgpack.decode(data, type=Record)
