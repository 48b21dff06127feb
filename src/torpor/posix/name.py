"""The name of a thread (comm): up to 15 bytes, one per thread.

Read from /proc/PID/task/TID/comm; set with PR_SET_NAME in the thread.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from torpor.linux import prctl, proc
from torpor.linux.arch.x86_64 import NR
from torpor.posix.service import Stage, Steps, ThreadBase
from torpor.tracee.call import Answer, In, call
from torpor.tracee.task import Task


class Name(msgspec.Struct, frozen=True):
    """comm: as the kernel has it, any bytes but NUL."""

    comm: bytes


class NameService(ThreadBase):
    name = "name"
    record: type[msgspec.Struct] = Name

    def capture(self, task: Task, answers: Sequence[Answer]) -> Name:
        return Name(proc.read(f"/proc/{task.tgid}/task/{task.tid}/comm").removesuffix(b"\n"))

    def restore(self, record: Any, task: Task) -> Steps:
        return {Stage.THREAD: [call(NR.prctl, prctl.SET_NAME, In(record.comm.ljust(16, b"\0")), 0, 0, 0)]}
