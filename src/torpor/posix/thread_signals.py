"""What a thread has of its own for signals: the alternate stack, and the signals that wait for it alone.

The alternate stack is asked for with sigaltstack(2) in the thread. SS_ONSTACK in its flags says that the
stack is in use at this moment; that is a fact and not a setting, and is left out; SS_AUTODISARM is kept.
(Such a stack, while a handler runs on it, is disabled in the kernel and comes back by the handler's
sigreturn.)

Waiting signals: see `pending`. They are queued again with rt_tgsigqueueinfo(2) by the thread itself, which
alone may use any code for itself (do_rt_tgsigqueueinfo in kernel/signal.c).

The blocked mask is set with the registers, at the release.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any

import msgspec

from torpor.linux import proc, siginfo
from torpor.linux.arch.x86_64 import NR
from torpor.posix import posix_timers
from torpor.posix.pending import kept
from torpor.posix.service import Stage, Steps, ThreadBase
from torpor.tracee.call import Answer, In, Out, call
from torpor.tracee.task import Task

_SS_DISABLE = 2
_SS_AUTODISARM = 1 << 31
_STACK = "<QI4xQ"  # stack_t: sp, flags, size


class ThreadSignals(msgspec.Struct, frozen=True):
    """stack: address, flags and size of the alternate stack; size 0: none. signals: raw siginfo, in queue
    order."""

    stack: tuple[int, int, int]
    signals: tuple[bytes, ...] = ()


_ASK = (call(NR.sigaltstack, 0, Out(24)),)


class ThreadSignalService(ThreadBase):
    name = "signals"
    afterwards = posix_timers.drops_stale()
    record: type[msgspec.Struct] = ThreadSignals
    questions = _ASK

    def capture(self, task: Task, answers: Sequence[Answer]) -> ThreadSignals | None:
        address, flags, size = struct.unpack(_STACK, answers[0].outs[0])
        stack = (0, 0, 0) if flags & _SS_DISABLE else (address, flags & _SS_AUTODISARM, size)
        signals = kept(task.tgid, task.waiting)
        return ThreadSignals(stack, signals)

    def restore(self, record: Any, task: Task) -> Steps:
        address, flags, size = record.stack
        stack = struct.pack(_STACK, address, flags if size else _SS_DISABLE, size)
        steps = {Stage.THREAD: [call(NR.sigaltstack, In(stack), 0)]}
        if record.signals:
            group = proc.inner_pid(proc.status(task.tgid, task.tid), "NStgid")
            steps[Stage.CLOCKS] = [
                call(NR.rt_tgsigqueueinfo, group, task.vtid, siginfo.number(info), In(info)) for info in record.signals
            ]
        return steps
