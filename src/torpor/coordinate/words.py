"""What is said: by hosts, by those who ask, by the coordinator to the hosts, and what the two state machines tell the
code around them to do. Frozen structs, told apart by a tag, as msgpack on the wire.

Every word of a host carries its *incarnation*, a number that its supervisor draws when it starts: one that was started
again is somebody else, who has stopped nothing and promised nothing. Every word of a coordinator carries its *term*:
hosts do not listen to an earlier term than they have heard of. Whatever concerns an attempt carries its number, which
is never used twice in a job, so that late words of an earlier one do nothing.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import msgspec

from torpor.coordinate.phases import Kind, Phase
from torpor.coordinate.record import Record


class Word(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """Anything that is said."""


# From a host to the coordinator.


class Joined(Word, frozen=True):
    """A host wants to be in the job; nothing of the job runs there before it is admitted, unless its supervisor was
    started again. Said again until it is answered."""

    host: str
    incarnation: int


class Left(Word, frozen=True):
    """Nothing of the job is on that host any more. Said again until it is answered."""

    host: str
    incarnation: int


class Did(Word, frozen=True):
    """A phase is done on that host. part: FREEZE, RECREATE: what others are to know (`conversations.py`); STORE: what
    the manifest of the job has to say of that host."""

    host: str
    incarnation: int
    attempt: int
    phase: Phase
    part: bytes = b""


class Failed(Word, frozen=True):
    """A phase cannot be done there, and the host will have no more part in this attempt. passing: what is in the way is
    most likely over in a moment."""

    host: str
    incarnation: int
    attempt: int
    phase: Phase
    reason: str
    passing: bool = False


class Alive(Word, frozen=True):
    """At work, or in doubt about what became of an attempt: it is told, if that is over."""

    host: str
    incarnation: int
    attempt: int


Report: TypeAlias = Joined | Left | Did | Failed | Alive


# From a user to the coordinator. ask: a name that whoever asks has made up, and asks again with after a take-over.


class AskCheckpoint(Word, frozen=True):
    """Save the job. stop: and end it afterwards.  what: how; not looked into here."""

    ask: str
    stop: bool = False
    what: str = ""


class AskRestart(Word, frozen=True):
    """Bring a saved job back. hosts: (host of the checkpoint, host on which it comes back), several may come back on
    one."""

    ask: str
    checkpoint: str
    hosts: tuple[tuple[str, str], ...]


# From the code around the coordinator.


class Lost(Word, frozen=True):
    """The link says that a host is not to be reached. It stays in the job: its processes may well be running."""

    host: str


class Found(Word, frozen=True):
    """The link says that a host can be reached again."""

    host: str


class Tick(Word, frozen=True):
    """Time has gone by: the answer to Wake; one too many does no harm."""


class Saved(Word, frozen=True):
    """The record was written, and has this revision now."""

    revision: int


class Outrun(Word, frozen=True):
    """The record was not written: somebody else had written it. So there is another coordinator."""


class Committed(Word, frozen=True):
    """The checkpoint of that attempt exists. notes: what there is to know of it, in lines."""

    attempt: int
    notes: str = ""


class NotCommitted(Word, frozen=True):
    """It does not exist, and this coordinator's attempt to make it exist is over for certain."""

    attempt: int
    reason: str


Event: TypeAlias = (
    Report | AskCheckpoint | AskRestart | Lost | Found | Tick | Saved | Outrun | Committed | NotCommitted
)  # fmt: skip
"""What the coordinator is told."""


# From the coordinator to hosts.


class Order(Word, frozen=True):
    """Do a phase; or, if it is done, say so again. part: for SETTLE, CONNECT and RECREATE: what concerns this host;
    those of hosts that have something to be told come one by one. what: the checkpoint that is restarted, or how
    one is to be made."""

    term: int
    attempt: int
    kind: Kind
    phase: Phase
    part: bytes = b""
    what: str = ""


class Admitted(Word, frozen=True):
    """That host is in the job from now on; it has no part in attempts up to the one named. undone: the latest restart
    that was given up, ended: the checkpoint after which the job was ended, 0 if none: a supervisor that was started
    again may find something of either."""

    term: int
    host: str
    incarnation: int
    attempt: int
    undone: int = 0
    ended: int = 0


class Dismissed(Word, frozen=True):
    """That host is not in the job any more. reason: why a host that wanted to join may not."""

    term: int
    host: str
    incarnation: int
    reason: str = ""


Spoken: TypeAlias = Order | Admitted | Dismissed


# What the coordinator wants to be done.


class Announce(Word, frozen=True):
    """Say this to all hosts, as one message. expected: those who should answer."""

    word: Order
    expected: tuple[str, ...]


class Tell(Word, frozen=True):
    """Say this to one host."""

    host: str
    word: Spoken


class Save(Word, frozen=True):
    """Write the record if it still has that revision (0: if there is none), and say `Saved` or `Outrun`. Where it is
    not known whether that was done, it is tried again until it is. `Outrun` only if the record is not this one."""

    record: Record
    revision: int


class Commit(Word, frozen=True):
    """Make the checkpoint exist: put the job's root, which names these parts, where there is none of this attempt yet;
    one that is there counts as done. Say `Committed` or `NotCommitted`."""

    attempt: int
    ask: str
    parts: tuple[tuple[str, bytes], ...]


class Answer(Word, frozen=True):
    """To whoever asked. text: what went wrong, or what there is to know beside it. seconds: how long each phase took,
    from the order to the last host that had done it.  passing: not now, but another attempt may well succeed."""

    ask: str
    ok: bool
    text: str
    attempt: int = 0
    seconds: tuple[tuple[str, float], ...] = ()
    passing: bool = False


class Wake(Word, frozen=True):
    """Say `Tick` after that many seconds; replaces the one before."""

    seconds: float


class Retire(Word, frozen=True):
    """This coordinator has a successor and says nothing any more."""


Instruction: TypeAlias = Announce | Tell | Save | Commit | Answer | Wake | Retire


# Between a host's state machine and the code around it.


class Finished(Word, frozen=True):
    """A piece of work is done. part: as in `Did`."""

    attempt: int
    phase: Phase
    part: bytes = b""


class Broke(Word, frozen=True):
    """A piece of work went wrong. Nothing is assumed of how far it came: UNDO follows.  passing: see `Failed`."""

    attempt: int
    phase: Phase
    reason: str
    passing: bool = False


class Emptied(Word, frozen=True):
    """Nothing of the job runs here any more."""


HostEvent: TypeAlias = Spoken | Finished | Broke | Emptied | Tick


class Work(Word, frozen=True):
    """Do that and say `Finished` or `Broke`. UNDO, whatever of the attempt was done or is being done: a job that is
    stopped runs on; what was made for this restart or one before it goes. COMMIT, after a STOP: end the job."""

    attempt: int
    kind: Kind
    phase: Phase
    part: bytes = b""
    what: str = ""


class Say(Word, frozen=True):
    """Say this to the coordinator."""

    word: Report


HostInstruction: TypeAlias = Work | Say | Wake


def encode(word: Word) -> bytes:
    """As it goes over the wire."""
    return msgspec.msgpack.encode(word)


_reports = msgspec.msgpack.Decoder(Joined | Left | Did | Failed | Alive | AskCheckpoint | AskRestart)
_spoken = msgspec.msgpack.Decoder(Order | Admitted | Dismissed | Answer)


def report(data: bytes) -> Any:
    """What was said to a coordinator. Raises msgspec.MsgspecError for anything else."""
    return _reports.decode(data)


def spoken(data: bytes) -> Any:
    """What was said by a coordinator, or answered to whoever asked. Raises msgspec.MsgspecError for anything else."""
    return _spoken.decode(data)
