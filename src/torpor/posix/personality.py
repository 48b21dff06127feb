"""Execution domain (personality(2)): flags such as ADDR_NO_RANDOMIZE that change how the kernel treats a
process.

Asked for, and set, by the call in the process; set after its memory is in place
(READ_IMPLIES_EXEC would change what mmap does). The kernel keeps it per thread; threads inherit it and are
created afterwards.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from torpor.linux.arch.x86_64 import NR
from torpor.posix.service import ProcessBase, Stage, Steps
from torpor.tracee.call import Answer, Call, call
from torpor.tracee.process import Process


class Personality(msgspec.Struct, frozen=True):
    """persona: as personality(2) takes it."""

    persona: int


_ASK = (call(NR.personality, 0xFFFFFFFF),)
"""Says what it is, and changes nothing."""


class PersonalityService(ProcessBase):
    name = "personality"
    afterwards = True
    record: type[msgspec.Struct] = Personality

    def ask(self, process: Process) -> Sequence[Call]:
        return _ASK

    def capture(self, process: Process, answers: Sequence[Answer]) -> Personality:
        return Personality(answers[0].value)

    def restore(self, record: Any, process: Process) -> Steps:
        return {Stage.PROCESS: [call(NR.personality, record.persona)]}
