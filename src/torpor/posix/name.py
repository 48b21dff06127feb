"""The name of a thread (comm): up to 15 bytes, one per thread.

Asked for with PR_GET_NAME in the thread, set with PR_SET_NAME.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from torpor.linux import prctl
from torpor.linux.arch.x86_64 import NR
from torpor.posix.service import Stage, Steps, ThreadBase
from torpor.tracee.call import Answer, In, Out, call
from torpor.tracee.task import Task


class Name(msgspec.Struct, frozen=True):
    """comm: as the kernel has it, any bytes but NUL."""

    comm: bytes


_ASK = (call(NR.prctl, prctl.GET_NAME, Out(16), 0, 0, 0),)


class NameService(ThreadBase):
    name = "name"
    afterwards = True
    record: type[msgspec.Struct] = Name
    questions = _ASK

    def capture(self, task: Task, answers: Sequence[Answer]) -> Name:
        return Name(answers[0].outs[0].partition(b"\0")[0])

    def restore(self, record: Any, task: Task) -> Steps:
        return {Stage.THREAD: [call(NR.prctl, prctl.SET_NAME, In(record.comm.ljust(16, b"\0")), 0, 0, 0)]}
