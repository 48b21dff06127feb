"""Two addresses that the kernel keeps for the end of a thread.

clear_child_tid: a word it sets to 0 and wakes waiters of (pthread_join sleeps there). Asked for with
PR_GET_TID_ADDRESS (CONFIG_CHECKPOINT_RESTORE) in the thread, set with set_tid_address(2).

The robust list: head of a list of mutexes to be marked when their owner dies. get_robust_list(2) and
set_robust_list(2).

Both are set while the thread has its own memory again, and always: the stub's own addresses mean nothing
there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from torpor.linux import prctl, proc
from torpor.linux.arch.x86_64 import NR
from torpor.model.errors import Refusal, Refused
from torpor.posix.service import Stage, Steps, ThreadBase
from torpor.tracee.call import ANY, Answer, Out, call
from torpor.tracee.task import Task

_HEAD_SIZE = 24
"""sizeof(struct robust_list_head); set_robust_list takes no other."""


class ThreadEnd(msgspec.Struct, frozen=True):
    """Addresses in the thread's memory; 0: none."""

    clear_tid: int
    robust: int


_ASK = (
    call(NR.prctl, prctl.GET_TID_ADDRESS, Out(8), 0, 0, 0, accept=ANY),
    call(NR.get_robust_list, 0, Out(8), Out(8)),
)


class TidAddressService(ThreadBase):
    name = "tid_address"
    afterwards = True
    record: type[msgspec.Struct] = ThreadEnd
    questions = _ASK

    def capture(self, task: Task, answers: Sequence[Answer]) -> ThreadEnd:
        clear, robust = answers
        if clear.error:
            thing = "the kernel does not tell where it reports the end of a thread (PR_GET_TID_ADDRESS)"
            raise Refused([Refusal(task.tgid, proc.comm(task.tgid), thing, "use one with CONFIG_CHECKPOINT_RESTORE")])
        return ThreadEnd(int.from_bytes(clear.outs[0], "little"), int.from_bytes(robust.outs[0], "little"))

    def restore(self, record: Any, task: Task) -> Steps:
        return {
            Stage.THREAD: [
                call(NR.set_tid_address, record.clear_tid),
                call(NR.set_robust_list, record.robust, _HEAD_SIZE),
            ]
        }
