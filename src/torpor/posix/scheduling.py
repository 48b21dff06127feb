"""How a thread is scheduled: policy, priority, nice, reset-on-fork, deadline, affinity, I/O priority, timer
slack.

Asked for in the thread: sched_getattr(2), getpriority(2), sched_getaffinity(2), ioprio_get(2), PR_GET_TIMERSLACK.
All but the timer slack is set from outside by tid, and only what differs; being more urgent than the restarter needs
CAP_SYS_NICE (or RLIMIT_NICE, RLIMIT_RTPRIO), and if it is missing the restart fails with a line that says what was
wanted.

Processors. A thread that might run on all of them gets those the restarter may use. One that was bound comes
back bound to those of its processors that may be used here; if none may, it gets the restarter's, as the
kernel itself does when the last processor of a bound thread is taken away (select_fallback_rq in
kernel/sched/core.c). If it was bound only as torpor was (a batch system's set of processors), it is bound
again only if all of them may be used.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from torpor.linux import prctl, sched
from torpor.linux.arch.x86_64 import NR
from torpor.linux.sched import Attr
from torpor.model.errors import RestartFailed
from torpor.posix.service import Stage, Steps, ThreadBase
from torpor.tracee.call import Answer, Out, call
from torpor.tracee.task import Task

_FAIR = (sched.OTHER, sched.BATCH, sched.IDLE)
_SETTABLE = sched.FLAG_RESET_ON_FORK | sched.FLAG_RECLAIM | sched.FLAG_DL_OVERRUN
_POLICIES = {0: "normal", 1: "FIFO", 2: "round robin", 3: "batch", 5: "idle", 6: "deadline", 7: "ext"}


class Scheduling(msgspec.Struct, frozen=True):
    """Times in nanoseconds."""

    policy: int
    flags: int
    nice: int
    """Also of a real-time thread: what it has once it is one no longer."""
    priority: int
    runtime: int
    """Of a fair thread: its slice (Linux 6.12), 0: the machine's default."""
    deadline: int
    period: int
    util_min: int
    util_max: int
    processors: tuple[int, ...]
    bound: bool
    """Are `processors` fewer than the machine has?"""
    inherited: bool
    """Might torpor itself use the very same ones?"""
    ioprio: int
    slack: int
    """Timer slack; 0: not known (a real-time thread has none)."""


_MOST_NICE = 20
"""The system call getpriority returns 20 less the nice value (kernel/sys.c)."""

_ASK = (
    call(NR.prctl, prctl.GET_TIMERSLACK, 0, 0, 0, 0),
    call(NR.sched_getattr, 0, Out(sched.SIZE), sched.SIZE, 0),
    call(NR.getpriority, os.PRIO_PROCESS, 0),
    call(NR.sched_getaffinity, 0, sched.MOST_PROCESSORS // 8, Out(sched.MOST_PROCESSORS // 8)),
    call(NR.ioprio_get, sched.WHO_PROCESS, 0),
)


class SchedulingService(ThreadBase):
    name = "scheduling"
    afterwards = True
    record: type[msgspec.Struct] = Scheduling
    questions = _ASK

    def capture(self, task: Task, answers: Sequence[Answer]) -> Scheduling:
        slack, attributes, priority, processors, ioprio = answers
        attr = sched.unpack(attributes.outs[0])
        own = sched.getattr_of(0)
        if attr.policy in _FAIR and own.policy in _FAIR and attr.runtime == own.runtime:
            attr = attr._replace(runtime=0)
        bits = int.from_bytes(processors.outs[0][: processors.value], "little")
        cpus = {number for number in range(bits.bit_length()) if bits >> number & 1}
        return Scheduling(
            attr.policy, attr.flags & _SETTABLE, _MOST_NICE - priority.value, attr.priority,
            attr.runtime, attr.deadline, attr.period, attr.util_min, attr.util_max,
            tuple(sorted(cpus)), len(cpus) < sched.online(), cpus == os.sched_getaffinity(0),
            ioprio.value, slack.value,
        )  # fmt: skip

    def restore(self, record: Any, task: Task) -> Steps:
        if not record.slack:
            return {}
        return {Stage.THREAD: [call(NR.prctl, prctl.SET_TIMERSLACK, record.slack, 0, 0, 0)]}

    def outside(self, record: Any, task: Task) -> None:
        tid = task.tid

        def attempt(what: str, do: Callable[[], None]) -> None:
            try:
                do()
            except PermissionError:
                raise RestartFailed(
                    f"thread {task.vtid} had {what}, which needs CAP_SYS_NICE here; restart as root, or "
                    "from a shell with that priority"
                ) from None

        if os.getpriority(os.PRIO_PROCESS, tid) != record.nice:
            attempt(f"the nice value {record.nice}", lambda: os.setpriority(os.PRIO_PROCESS, tid, record.nice))
        wanted = processors(record, frozenset(os.sched_getaffinity(tid)))
        if wanted:
            try:
                os.sched_setaffinity(tid, wanted)
            except OSError as error:
                if error.errno != errno.EINVAL:
                    raise
        attr = setting(record, sched.getattr_of(tid))
        if attr is not None:
            policy = f"the scheduling policy {_POLICIES.get(attr.policy, attr.policy)} ({attr.priority})"
            attempt(policy, lambda: sched.setattr_of(tid, attr))
        if sched.get_ioprio(tid) != record.ioprio:
            # Class 0 with a priority is only how the kernel says 'never set'; it does not take it back.
            value = record.ioprio if record.ioprio >> 13 else 0
            attempt(f"the I/O priority {record.ioprio:#x}", lambda: sched.set_ioprio(tid, value))


def setting(record: Scheduling, now: Attr) -> Attr | None:
    """What has to be set so that a thread with the attributes `now` gets those of the record; None: nothing.
    Pure.

    The nice value has been set already: sched_setattr knows none for real-time threads.
    """
    fair = record.policy in _FAIR
    same_slice = record.runtime in (0, now.runtime)
    clamps = (record.util_min, record.util_max)
    same_clamps = clamps in ((now.util_min, now.util_max), (0, 0))  # (0, 0): that kernel had none
    parameters = (record.priority, record.runtime, record.deadline, record.period)
    if (
        (record.policy, record.flags) == (now.policy, now.flags & _SETTABLE)
        and same_clamps
        and (same_slice if fair else parameters == (now.priority, now.runtime, now.deadline, now.period))
    ):
        return None
    flags = record.flags | (0 if same_clamps else sched.FLAG_UTIL_CLAMP)
    low, high = (0, 0) if same_clamps else clamps
    runtime = record.runtime if record.policy == sched.DEADLINE or (fair and not same_slice) else 0
    nice = record.nice if fair else 0
    return Attr(record.policy, flags, nice, record.priority, runtime, record.deadline, record.period, low, high)


def processors(record: Scheduling, now: frozenset[int]) -> frozenset[int]:
    """The processors to bind a thread to that may run on `now`; empty: leave it alone. Pure."""
    wanted = frozenset(record.processors)
    if not record.bound or wanted == now or (record.inherited and not wanted <= now):
        return frozenset()
    return wanted
