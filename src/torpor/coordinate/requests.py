"""What is asked of a coordinator, and why it may be refused. Pure."""

from __future__ import annotations

from collections.abc import Collection

from torpor.coordinate.attempt import Attempt, Ending, names
from torpor.coordinate.members import Members
from torpor.coordinate.phases import Kind
from torpor.coordinate.record import Open, Record, Stage
from torpor.coordinate.words import AskCheckpoint, AskRestart

ENDED = "the job has been saved and ended"


def busy(record: Record, attempt: Attempt | None, event: AskCheckpoint | AskRestart) -> str:
    """Why what is asked for cannot be begun, '' if it can, or may wait (`early`)."""
    if record.ended:
        return ENDED
    # Processes run on some hosts before the coordinator knows that they do on all: a checkpoint waits for that.
    if attempt is None or (attempt.kind is Kind.RESTART and isinstance(event, AskCheckpoint)):
        return ""
    return _under_way(attempt)


def early(
    record: Record, members: Members, hosts: Collection[str], ending: Ending | None, attempt: Attempt | None
) -> str:  # fmt: skip
    """Why nothing can be begun yet, '' if something can: what came before is not quite over, or the job is only just
    beginning. That does not last, and what is asked for meanwhile waits. hosts: where the job begins."""
    if record.ended:
        return ""
    if attempt is not None:
        return _under_way(attempt)
    if ending is not None and (ending.awaited or not ending.told):
        waits = f": waiting for {names(list(ending.awaited))}" if ending.awaited else ""
        return f"a {ending.over.kind} is not quite over{waits}"
    if record.last is not None:
        return ""
    absent = [host for host in hosts if host not in members.present and host not in members.gone]
    return f"{names(absent)} did not come into the job" if absent else ""


def _under_way(attempt: Attempt) -> str:
    return f"a {attempt.kind} is under way"


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
