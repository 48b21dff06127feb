"""Signals that wait for the process as a whole.

The kernel keeps a queue of siginfo per process (signals sent to the process, taken by any thread) and one per
thread (`thread_signals`). Both are read, without taking anything, with PTRACE_PEEKSIGINFO, and come back with
rt_sigqueueinfo(2): a thread may queue to itself whatever siginfo it likes, even one that the kernel would
make (do_rt_sigqueueinfo in kernel/signal.c), so sender, code and value are the old ones, in the old order.

Not here: signals of POSIX timers, which the timer itself sends again (`posix_timers`: it alone can tell
whether it had expired), and SIGSTOP, which cannot be blocked and so never waits while calls run in the task.

Taken after the batch of questions has run: a timer that expires in between is found twice or once, never not
at all; `itimers` and `posix_timers` sort that out, for which this service has to be captured before them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from torpor.linux import siginfo
from torpor.linux.arch.x86_64 import NR
from torpor.posix import posix_timers
from torpor.posix.service import ProcessBase, Stage, Steps
from torpor.tracee.call import Answer, In, call
from torpor.tracee.process import Process


class Pending(msgspec.Struct, frozen=True):
    """signals: raw siginfo (128 bytes each), in the order of the queue."""

    signals: tuple[bytes, ...]


def kept(pid: int, infos: Iterable[bytes]) -> tuple[bytes, ...]:
    """Those of the pending signals of a process that are queued again by hand."""
    found = [i for i in infos if siginfo.number(i) not in (siginfo.SIGKILL, siginfo.SIGSTOP)]
    if all(siginfo.code(i) != siginfo.SI_TIMER for i in found):
        return tuple(found)
    if posix_timers.drops_stale():
        # What a deleted timer left behind is thrown away by the kernel at delivery.
        return tuple(i for i in found if siginfo.code(i) != siginfo.SI_TIMER)
    own = {timer.id for timer in posix_timers.listed(pid)}
    return tuple(i for i in found if siginfo.timer(i) not in own)


class PendingService(ProcessBase):
    name = "pending"
    record: type[msgspec.Struct] = Pending
    afterwards = posix_timers.drops_stale()

    def capture(self, process: Process, answers: Sequence[Answer]) -> Pending | None:
        # The set is older: what is in it but not in the queue has no queue entry (out of memory).
        waiting = int(process.status["ShdPnd"], 16)
        infos = list(process.waiting)
        queued = {siginfo.number(info) for info in infos}
        infos += [siginfo.bare(n) for n in range(1, 65) if waiting >> (n - 1) & 1 and n not in queued]
        signals = kept(process.pid, infos)
        return Pending(signals) if signals else None

    def restore(self, record: Any, process: Process) -> Steps:
        # To the process of which this is a thread. Its own number would do only
        # for the first thread, which may have ended.
        runner = process.leader.vtid
        calls = [call(NR.rt_sigqueueinfo, runner, siginfo.number(info), In(info)) for info in record.signals]
        return {Stage.CLOCKS: calls}


def bits(infos: Iterable[bytes]) -> int:
    """The signals as a bit mask: bit N-1 for signal N."""
    mask = 0
    for info in infos:
        mask |= 1 << (siginfo.number(info) - 1)
    return mask
