"""Registrations for membarrier(2): a process that wants expedited barriers has to say so first, once.

Asked for with MEMBARRIER_CMD_GET_REGISTRATIONS (Linux 6.3) in the process. Older kernels do not tell: there
each barrier is tried, which fails with EPERM exactly if its registration is missing, and otherwise is a
memory barrier and no more; that the process takes part in global barriers cannot be seen there. Registered
again while the process has one thread: later it would cost a grace period of the kernel's.

Source: membarrier(2), kernel/sched/membarrier.c.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import msgspec

from torpor.linux import membarrier
from torpor.linux.arch.x86_64 import NR
from torpor.posix.service import ProcessBase, Stage, Steps
from torpor.tracee.call import ANY, Answer, Call, call
from torpor.tracee.process import Process

_BARRIERS = tuple(membarrier.REGISTRATION_OF)


class Membarrier(msgspec.Struct, frozen=True):
    """registrations: MEMBARRIER_CMD_REGISTER_* as a bit mask."""

    registrations: int


@lru_cache
def _asked(tells: bool) -> tuple[Call, ...]:
    """tells: the kernel knows of GET_REGISTRATIONS."""
    commands = (membarrier.GET_REGISTRATIONS,) if tells else _BARRIERS
    return tuple(call(NR.membarrier, command, 0, 0, accept=ANY) for command in commands)


class MembarrierService(ProcessBase):
    name = "membarrier"
    afterwards = True
    record: type[msgspec.Struct] = Membarrier

    def ask(self, process: Process) -> Sequence[Call]:
        return _asked(membarrier.tells())

    def capture(self, process: Process, answers: Sequence[Answer]) -> Membarrier | None:
        if len(answers) == 1:
            found = max(0, answers[0].value)
        else:
            found = 0
            for barrier, answer in zip(_BARRIERS, answers):
                if not answer.error:
                    found |= membarrier.REGISTRATION_OF[barrier]
        return Membarrier(found) if found else None

    def restore(self, record: Any, process: Process) -> Steps:
        return {
            Stage.PROCESS: [
                call(NR.membarrier, 1 << bit, 0, 0)
                for bit in range(record.registrations.bit_length())
                if record.registrations >> bit & 1
            ]
        }
