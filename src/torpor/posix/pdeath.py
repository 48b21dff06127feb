"""The parent-death signal (PR_SET_PDEATHSIG): sent to a thread when the thread that created its process ends.

Asked for and set with prctl(2), per thread. Set after everything else, since changing credentials clears it
(commit_creds in kernel/cred.c), and in the first thread always: the stub may have one of its own. A new thread has none
(copy_process in kernel/fork.c).

The kernel does not tell which thread of the parent is waited for; afterwards it is the parent's first.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from torpor.linux import prctl
from torpor.linux.arch.x86_64 import NR
from torpor.posix.service import Stage, Steps, ThreadBase
from torpor.tracee.call import Answer, Out, call
from torpor.tracee.task import Task


class ParentDeath(msgspec.Struct, frozen=True):
    """signal: 0 for none."""

    signal: int


_ASK = (call(NR.prctl, prctl.GET_PDEATHSIG, Out(4), 0, 0, 0),)


class ParentDeathService(ThreadBase):
    name = "pdeath"
    afterwards = True
    record: type[msgspec.Struct] = ParentDeath
    questions = _ASK

    def capture(self, task: Task, answers: Sequence[Answer]) -> ParentDeath:
        return ParentDeath(int.from_bytes(answers[0].outs[0], "little"))

    def restore(self, record: Any, task: Task) -> Steps:
        if not record.signal and task.tid != task.owner.pid:
            return {}
        return {Stage.LAST: [call(NR.prctl, prctl.SET_PDEATHSIG, record.signal, 0, 0, 0)]}
