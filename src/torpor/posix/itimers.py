"""Interval timers: ITIMER_REAL (also alarm(2)), ITIMER_VIRTUAL and ITIMER_PROF, one of each per process.

Read with getitimer(2) and armed again with setitimer(2) for what was left, in the process. They start when
the process is released: stage CLOCKS.

ITIMER_REAL runs on while the job stands still, so it may expire between the question and the moment the
pending signals are read. Whoever would have expired by then is given a microsecond: it expires again before
the release, and a second SIGALRM merges with one that already waits (an ordinary signal waits once). The same
is done for a periodic timer whose SIGALRM waits: the kernel stops such a timer until the signal is taken, and
getitimer then says that nothing is left (it_real_fn in kernel/time/itimer.c).

The two CPU-time timers count the process' CPU time, which starts at 0 again; what was left stays left.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Sequence
from typing import Any

import msgspec

from torpor.linux.arch.x86_64 import NR
from torpor.posix.service import ProcessBase, Stage, Steps
from torpor.tracee.call import Answer, Call, In, Out, call
from torpor.tracee.process import Process

_REAL = 0
_KINDS = (0, 1, 2)
_ITIMERVAL = "<qqqq"
_TIMESPEC = "<qq"


class Itimer(msgspec.Struct, frozen=True):
    """value: microseconds until it expires; interval: microseconds from then on, 0 for once."""

    value: int
    interval: int


class Itimers(msgspec.Struct, frozen=True):
    """By kind: 0 real, 1 virtual, 2 prof."""

    timers: dict[int, Itimer]


_ASK = (
    call(NR.clock_gettime, time.CLOCK_REALTIME, Out(16)),
    *(call(NR.getitimer, kind, Out(32)) for kind in _KINDS),
)


class ItimerService(ProcessBase):
    name = "itimers"
    afterwards = True
    record: type[msgspec.Struct] = Itimers

    def ask(self, process: Process) -> Sequence[Call]:
        # The realtime clock is the one that no time namespace moves.
        return _ASK

    def capture(self, process: Process, answers: Sequence[Answer]) -> Itimers | None:
        elapsed = since(answers[0].outs[0], process.peeked) // 1000
        found = {}
        for kind, answer in zip(_KINDS, answers[1:]):
            a, b, c, d = struct.unpack(_ITIMERVAL, answer.outs[0])
            timer = Itimer(c * 1_000_000 + d, a * 1_000_000 + b)
            if kind == _REAL:
                timer = settle(timer, elapsed)
            if timer.value or timer.interval:
                found[kind] = timer
        return Itimers(found) if found else None

    def restore(self, record: Any, process: Process) -> Steps:
        return {
            Stage.CLOCKS: [
                call(
                    NR.setitimer,
                    kind,
                    In(struct.pack(_ITIMERVAL, *divmod(timer.interval, 1_000_000), *divmod(timer.value, 1_000_000))),
                    0,
                )
                for kind, timer in sorted(record.timers.items())
            ]
        }


def settle(timer: Itimer, elapsed: int) -> Itimer:
    """What is to be restored of an ITIMER_REAL that was read `elapsed` microseconds before the pending
    signals were."""
    expired = 0 < timer.value <= elapsed or (timer.value == 0 and timer.interval > 0)
    return Itimer(1, timer.interval) if expired else timer


def since(then: bytes, now: int) -> int:
    """Nanoseconds from a struct timespec of the realtime clock to another moment of it."""
    seconds, rest = struct.unpack(_TIMESPEC, then)
    gone: int = now - seconds * 1_000_000_000 - rest
    return max(0, gone)
