"""Execution domain (personality(2)): flags such as ADDR_NO_RANDOMIZE that change how the kernel treats a
process.

Read from /proc/PID/personality, set by the call in the process, after its memory is in place
(READ_IMPLIES_EXEC would change what mmap does). The kernel keeps it per thread; threads inherit it and are
created afterwards.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from torpor.linux import proc
from torpor.linux.arch.x86_64 import NR
from torpor.posix.service import ProcessBase, Stage, Steps
from torpor.tracee.call import Answer, call
from torpor.tracee.process import Process


class Personality(msgspec.Struct, frozen=True):
    """persona: as personality(2) takes it."""

    persona: int


class PersonalityService(ProcessBase):
    name = "personality"
    record: type[msgspec.Struct] = Personality

    def capture(self, process: Process, answers: Sequence[Answer]) -> Personality:
        return Personality(int(proc.read(f"/proc/{process.leader.tid}/personality"), 16))

    def restore(self, record: Any, process: Process) -> Steps:
        return {Stage.PROCESS: [call(NR.personality, record.persona)]}
