"""Signal dispositions: what a process does at each signal.

The kernel keeps 64 `struct k_sigaction` per process (shared by its threads): handler, flags, restorer and the
mask to be blocked while the handler runs. /proc/PID/status shows only which are caught or ignored, so each is
asked for with rt_sigaction(2) in the process, in the kernel's own layout: the C library's sigaction() would
hide flags and restorer. They come back through the same call, raw. SIGKILL and SIGSTOP cannot be changed and
are left out.

Source: sigaction(2); struct kernel_sigaction, include/linux/signal_types.h (x86-64: handler, flags, restorer,
mask, eight bytes each).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from torpor.linux.arch.x86_64 import NR
from torpor.linux.siginfo import SIGKILL, SIGSTOP
from torpor.posix.service import ProcessBase, Stage, Steps
from torpor.tracee.call import Answer, Call, In, Out, call
from torpor.tracee.process import Process

_SIZE = 32
_SET = 8
"""Bytes of a signal set."""
_DEFAULT = bytes(_SIZE)
_NUMBERS = tuple(n for n in range(1, 65) if n not in (SIGKILL, SIGSTOP))


class Dispositions(msgspec.Struct, frozen=True):
    """actions: signal number to its raw action (32 bytes); signals that are not in it have the default, all
    zeros."""

    actions: dict[int, bytes]


_ASK = tuple(call(NR.rt_sigaction, n, 0, Out(_SIZE), _SET) for n in _NUMBERS)


class DispositionService(ProcessBase):
    name = "dispositions"
    afterwards = True
    record: type[msgspec.Struct] = Dispositions

    def ask(self, process: Process) -> Sequence[Call]:
        return _ASK

    def capture(self, process: Process, answers: Sequence[Answer]) -> Dispositions:
        found = {n: answer.outs[0] for n, answer in zip(_NUMBERS, answers)}
        return Dispositions({n: action for n, action in found.items() if action != _DEFAULT})

    def restore(self, record: Any, process: Process) -> Steps:
        """Every signal is set, since the stub has dispositions of its own; but real-time signals only where
        either side differs from the default: nobody sets those for a stub."""
        own = int(process.status["SigIgn"], 16) | int(process.status["SigCgt"], 16)
        return {
            Stage.PROCESS: [
                call(NR.rt_sigaction, n, In(record.actions.get(n, _DEFAULT)), 0, _SET)
                for n in _NUMBERS
                if n < 32 or n in record.actions or own >> (n - 1) & 1
            ]
        }
