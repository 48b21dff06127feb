"""What is asked of a coordinator, and why it may be refused. Pure."""

from __future__ import annotations

from torpor.coordinate.attempt import Attempt, Ending, names
from torpor.coordinate.members import Members
from torpor.coordinate.phases import Kind
from torpor.coordinate.record import Open, Record, Stage
from torpor.coordinate.words import AskCheckpoint, AskRestart

ENDED = "the job has been saved and ended"


def busy(record: Record, attempt: Attempt | None) -> str:
    """Why nothing can be begun now, '' if something can."""
    if record.ended:
        return ENDED
    return f"a {attempt.kind} is under way" if attempt is not None else ""


def early(record: Record, ending: Ending | None) -> bool:
    """Is what came before not quite over? That does not last: what is asked for meanwhile waits."""
    return not record.ended and ending is not None and bool(ending.awaited or not ending.told)


def checkpoint(event: AskCheckpoint, record: Record, members: Members) -> Open | str:
    """The attempt to begin, or why not."""
    if members.lost:
        return f"{names(sorted(members.lost))} cannot be reached; the job can be restarted from its last checkpoint"
    if not members.present:
        return "no host is in the job"
    kind = Kind.STOP if event.stop else Kind.CHECKPOINT
    return Open(record.number + 1, kind, event.ask, Stage.BEGUN, tuple(members.present), what=event.what)


def restart(event: AskRestart, record: Record, members: Members) -> Open | str:
    """The attempt to begin, or why not."""
    hosts = tuple(dict.fromkeys(new for _, new in event.hosts))
    absent = [host for host in hosts if host not in members.present or host in members.lost]
    if record.running:
        return "the job has been restarted already"
    if absent or not hosts:
        return f"{names(absent) or 'no host'} is not there to restart on"
    if len({old for old, _ in event.hosts}) < len(event.hosts):
        return "a host of the checkpoint is to come back twice"
    return Open(record.number + 1, Kind.RESTART, event.ask, Stage.BEGUN, hosts, what=event.checkpoint, plan=event.hosts)
