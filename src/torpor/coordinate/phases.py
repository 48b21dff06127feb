"""The order of things: which phases a checkpoint and a restart have, and how long each may take. Plain tables.

A phase is ordered by the coordinator and done by every host; the next one is ordered when all have said that it is
done. What follows the last phase is decided once, written down, and then cannot be undone any more.
"""

from __future__ import annotations

from enum import StrEnum

import msgspec


class Kind(StrEnum):
    """What is attempted. STOP: a checkpoint after which the job is ended."""

    CHECKPOINT = "checkpoint"
    STOP = "checkpoint-stop"
    RESTART = "restart"


class Phase(StrEnum):
    """What the hosts are told to do.

    SURVEY: look for what could not be saved; nothing is touched.  FREEZE: stop the job, and tell which ends of
    conversations are here.  SETTLE: wait until what others had sent has arrived.  CAPTURE: copy what the job is.
    RESUME: let it run on.  STORE: bring the copy into the store, and tell where it is.  COMMIT: the checkpoint exists
    (after a STOP: end the job).

    RECREATE: make the processes, none of which runs; tell which conversations have to be connected.  CONNECT: do so.
    FILL: memory and queues.  RELEASE: let it run.  DONE: it runs everywhere.

    UNDO: leave things as they were before the attempt: a job that is stopped runs on, what was made for a restart is
    removed.
    """

    SURVEY = "survey"
    FREEZE = "freeze"
    SETTLE = "settle"
    CAPTURE = "capture"
    RESUME = "resume"
    STORE = "store"
    COMMIT = "commit"
    RECREATE = "recreate"
    CONNECT = "connect"
    FILL = "fill"
    RELEASE = "release"
    DONE = "done"
    UNDO = "undo"


PLANS: dict[Kind, tuple[Phase, ...]] = {
    Kind.CHECKPOINT: (
        Phase.SURVEY, Phase.FREEZE, Phase.SETTLE, Phase.CAPTURE, Phase.RESUME, Phase.STORE,
    ),
    Kind.STOP: (Phase.SURVEY, Phase.FREEZE, Phase.SETTLE, Phase.CAPTURE, Phase.STORE),
    Kind.RESTART: (Phase.RECREATE, Phase.CONNECT, Phase.FILL, Phase.RELEASE),
}  # fmt: skip
"""A job that is to be ended stays stopped while it is stored: what it would do meanwhile would be lost."""

ENDINGS = (Phase.COMMIT, Phase.DONE, Phase.UNDO)
"""Ordered once it is decided how an attempt ends."""

EXCHANGED = {Phase.SETTLE: Phase.FREEZE, Phase.CONNECT: Phase.RECREATE}
"""Phases in which hosts are handed what others said when they had done an earlier one."""

SOON = 0.05
"""No timer is shorter (seconds): rounding may make what is left of a time so small that the clock does not show it."""


class Limits(msgspec.Struct, frozen=True):
    """All in seconds.

    repeat: an order is said again after that long, to hosts that have not answered; slowly: the same while the job
    runs and hosts are busy for long (STORE of a job that runs, FILL).  silence: a host of which nothing was heard for
    that long is given up.  host: a host that nobody speaks to for that long lets its job go; longer than `silence`, so
    that the coordinator is the first to give up.  ending: how long is waited for hosts to say that they have ended an
    attempt.  commit: for how long a stopped job is kept stopped while the checkpoint is committed.  phases: how long
    each phase may take in all; the survey waits for hooks, and for those who are not to be interrupted.
    """

    repeat: float = 2.0
    slowly: float = 10.0
    silence: float = 30.0
    host: float = 40.0
    ending: float = 30.0
    commit: float = 60.0
    survey: float = 300.0
    freeze: float = 60.0
    settle: float = 60.0
    capture: float = 300.0
    resume: float = 60.0
    store: float = 4 * 3600.0
    recreate: float = 300.0
    connect: float = 120.0
    fill: float = 4 * 3600.0
    release: float = 60.0

    def of(self, phase: Phase) -> float:
        """How long a phase may take."""
        return float(getattr(self, phase.value))

    def pace(self, kind: Kind, phase: Phase) -> float:
        """After how long an order is said again."""
        slow = phase is Phase.FILL or (phase is Phase.STORE and kind is not Kind.STOP)
        return self.slowly if slow else self.repeat
