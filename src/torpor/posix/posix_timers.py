"""POSIX timers (timer_create(2)).

/proc/PID/timers lists them: id, signal and value, whom they notify and how, and their clock
(CONFIG_CHECKPOINT_RESTORE; timers_show in fs/proc/base.c). What is left and the interval are asked for with
timer_gettime(2) in the process. They are created again under the same ids once all threads exist, and armed
at stage CLOCKS for what was left.

Ids. The kernel hands them out in rising order per process. Where it knows PR_TIMER_CREATE_RESTORE_IDS (6.16)
the process says which one it wants; else timers are created and deleted again until the wanted id is reached.

Waiting signals. A timer that has expired and whose signal was not taken yet is armed with a nanosecond: it
expires at once and sends the very signal the kernel would have sent, which counts its overruns from then on.
A timer on a CPU clock does not expire while its thread stands still; its signal is queued by hand.

Differences that remain: expiries that a waiting signal had already missed are counted from the restart on,
and such a timer's period starts anew with it. A timer set to an absolute time fires after what was left of
it, like all others: the kernel does not tell which were absolute, so on the realtime clock it is late by the
time that the job was not running. A CPU clock that the kernel shows as 'the calling thread's' and that was
made by another thread than the first is shown with that thread's number afterwards.
"""

from __future__ import annotations

import os
import struct
import time
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from torpor.linux import prctl, proc, siginfo
from torpor.linux.arch.x86_64 import NR
from torpor.model.errors import Refusal, Refused, RestartFailed
from torpor.named_tuple import NamedTuple
from torpor.posix.itimers import since
from torpor.posix.service import ProcessBase, Stage, Steps
from torpor.tracee.call import Answer, Call, In, Out, call
from torpor.tracee.process import Process

SIGEV_SIGNAL, SIGEV_NONE, SIGEV_THREAD, SIGEV_THREAD_ID = 0, 1, 2, 4

LONGEST_GAP = 10_000
"""Ids that are skipped by creating and deleting, at most (about 0.1 s)."""

_SECOND = 1_000_000_000
_KINDS = {"signal": SIGEV_SIGNAL, "none": SIGEV_NONE, "thread": SIGEV_THREAD}


class Timer(msgspec.Struct, frozen=True):
    """One timer."""

    id: int
    clock: int
    """As the kernel shows it: negative for CPU clocks."""
    owner: int
    """The thread whose CPU time it counts, where `clock` does not say (as the job sees it), else 0."""
    notify: int
    """SIGEV_SIGNAL, SIGEV_NONE, SIGEV_THREAD or SIGEV_THREAD_ID."""
    target: int
    """The thread that is notified (SIGEV_THREAD_ID), as the job sees it, else 0."""
    signal: int
    value: int
    """sigev_value, unsigned."""
    left: int
    """Nanoseconds until it expires; 0: not armed."""
    interval: int
    """Nanoseconds; 0: once."""
    waiting: bool
    """Has its signal been sent and not been taken yet?"""


class Timers(msgspec.Struct, frozen=True):
    """Ascending by id."""

    timers: tuple[Timer, ...]


class Listed(NamedTuple):
    """One entry of /proc/PID/timers."""

    id: int
    signal: int
    value: int
    notify: int
    target: int
    """Host tid of the thread that is notified, or 0."""
    clock: int


def parse(text: str) -> list[Listed]:
    """The contents of /proc/PID/timers, ascending by id."""
    out = []
    entry: dict[str, str] = {}
    for line in text.splitlines():
        key, _, value = line.partition(":")
        entry[key] = value.strip()
        if key == "ClockID":
            signal, _, pointer = entry["signal"].partition("/")
            kind, _, whom = entry["notify"].partition("/")
            scope, _, number = whom.partition(".")
            threaded = scope == "tid"
            out.append(
                Listed(
                    int(entry["ID"]),
                    int(signal),
                    int(pointer, 16),
                    SIGEV_THREAD_ID if threaded else _KINDS[kind],
                    int(number) if threaded else 0,
                    int(entry["ClockID"]),
                )
            )
    return sorted(out)


def listed(pid: int) -> list[Listed]:
    """The timers of a process. Raises OSError (FileNotFoundError: a kernel without
    CONFIG_CHECKPOINT_RESTORE)."""
    return parse(proc.text(f"/proc/{pid}/timers"))


def drops_stale() -> bool:
    """Does this kernel throw a timer's waiting signal away when the timer is set again or deleted (Linux
    6.13)?"""
    major, minor = os.uname().release.split(".")[:2]
    return (int(major), int("".join(c for c in minor if c.isdigit()) or 0)) >= (6, 13)


class Clock(NamedTuple):
    """A negative clock id taken apart (include/linux/posix-timers_types.h): pid 0 is the caller."""

    pid: int
    thread: bool


def cpu_clock(clock: int) -> Clock | None:
    """None for a clock that is not a CPU clock."""
    return Clock(~(clock >> 3), bool(clock & 4)) if clock < 0 else None


def whose(timer: Listed, vpid: int, vtids: dict[int, int]) -> int:
    """The thread whose CPU time a timer counts where its clock does not say so, else 0.

    vtids: host tid to the number that the job sees, of all threads. Raises ValueError where it cannot be
    known, or where the clock is another process'.
    """
    clock = cpu_clock(timer.clock)
    if clock is None:
        return 0
    if clock.pid:
        if clock.pid != vpid and not (clock.thread and clock.pid in vtids.values()):
            raise ValueError("counts the CPU time of another process")
        return 0
    if not clock.thread:
        return 0
    if timer.notify == SIGEV_THREAD_ID:
        return vtids.get(timer.target, 0)
    if len(vtids) == 1:
        return next(iter(vtids.values()))
    raise ValueError("counts the CPU time of a thread that the kernel does not name")


class PosixTimerService(ProcessBase):
    name = "posix_timers"
    captures_all = True
    record: type[msgspec.Struct] = Timers

    def survey(self, pid: int) -> Iterable[Refusal]:
        try:
            timers = listed(pid)
        except FileNotFoundError:
            if os.path.exists("/proc/self/timers"):
                raise
            thing = "its POSIX timers cannot be seen"
            yield Refusal(pid, proc.comm(pid), thing, "use a kernel with CONFIG_CHECKPOINT_RESTORE")
            return
        if not any(timer.clock < 0 for timer in timers):
            return
        vtids = {tid: proc.inner_pid(proc.status(pid, tid)) for tid in proc.threads(pid)}
        yield from _odd(pid, timers, vtids.get(pid, 0), vtids)

    def ask(self, process: Process) -> Sequence[Call]:
        timers = listed(process.pid)
        if not timers:
            return []
        return [call(NR.clock_gettime, time.CLOCK_REALTIME, Out(16))] + [
            call(NR.timer_gettime, timer.id, Out(32)) for timer in timers
        ]

    def capture(self, process: Process, answers: Sequence[Answer]) -> Timers | None:
        if not answers:
            return None
        timers = listed(process.pid)
        vtids = {task.tid: task.vtid for task in process.tasks}
        odd = list(_odd(process.pid, timers, process.vpid, vtids))
        if odd:
            raise Refused(odd)
        queues = {timer.target: () for timer in timers} | {task.tid: task.waiting for task in process.tasks}
        queues[0] = process.waiting
        elapsed = since(answers[0].outs[0], process.peeked)
        stale = drops_stale()
        out = []
        for timer, answer in zip(timers, answers[1:]):
            a, b, c, d = struct.unpack("<qqqq", answer.outs[0])
            left, interval = c * _SECOND + d, a * _SECOND + b
            sent = any(siginfo.timer(info) == timer.id for info in queues[timer.target])
            left, waiting = settle(left, interval, sent, 0 if timer.clock < 0 else elapsed, stale)
            out.append(
                Timer(
                    timer.id, timer.clock, whose(timer, process.vpid, vtids), timer.notify,
                    vtids.get(timer.target, 0), timer.signal, timer.value, left, interval, waiting,
                )
            )  # fmt: skip
        return Timers(tuple(out))

    def restore(self, record: Any, process: Process) -> Steps:
        chosen = prctl.can_choose_timer_ids()
        make = creation(record.timers, process.vpid, chosen)
        if make is None:
            highest = record.timers[-1].id
            raise RestartFailed(
                f"process {process.vpid} has POSIX timers with ids up to {highest}, which this kernel "
                "cannot give out again; restart on Linux 6.16 or newer"
            )
        return {Stage.THREAD: make, Stage.CLOCKS: arming(record.timers, process.vpid)}


def _odd(pid: int, timers: Iterable[Listed], vpid: int, vtids: dict[int, int]) -> Iterable[Refusal]:
    """Refusals for timers whose clock cannot be asked for again."""
    for timer in timers:
        try:
            whose(timer, vpid, vtids)
        except ValueError as error:
            yield Refusal(pid, proc.comm(pid), f"POSIX timer {timer.id} {error}", "not supported yet")


def settle(left: int, interval: int, sent: bool, elapsed: int, stale: bool) -> tuple[int, bool]:
    """What is left of a timer, and whether its signal waits.

    left, interval: as read; sent: is one of its signals in the queue, looked at `elapsed` nanoseconds later;
    stale: does the kernel throw away what a timer sent before it was set again?
    """
    if not sent:
        # It may be about to expire at this moment: it then does so at once after the release.
        return left, False
    if interval or left <= elapsed:
        return (left if interval else 0), True
    # Set again, for once, while the signal of its earlier life waits.
    return left, not stale


def _sigevent(timer: Timer) -> In:
    return In(struct.pack("<Qiii", timer.value, timer.signal, timer.notify, timer.target).ljust(64, b"\0"))


def _clock(timer: Timer, vpid: int) -> int:
    """The clock to be asked for by the first thread, whose number is `vpid`."""
    if timer.owner and timer.owner != vpid:
        return (~timer.owner << 3) | (timer.clock & 7)
    return timer.clock


def creation(timers: Sequence[Timer], vpid: int, chosen: bool) -> list[Call] | None:
    """The calls that create timers under their ids in a process that never had one; None if that takes too
    many.

    chosen: the process may say which id it wants.
    """
    calls: list[Call] = []
    if chosen:
        calls.append(call(NR.prctl, prctl.TIMER_CREATE_RESTORE_IDS, prctl.TIMER_IDS_ON, 0, 0, 0))
    following = 0
    for timer in timers:
        if chosen:
            room = In(struct.pack("<i", timer.id))
            calls.append(call(NR.timer_create, _clock(timer, vpid), _sigevent(timer), room))
            continue
        if timer.id - following > LONGEST_GAP:
            return None
        for skipped in range(following, timer.id):
            nothing = In(struct.pack("<Qii", 0, 0, SIGEV_NONE).ljust(64, b"\0"))
            calls.append(call(NR.timer_create, time.CLOCK_MONOTONIC, nothing, Out(4)))
            calls.append(call(NR.timer_delete, skipped))
        calls.append(call(NR.timer_create, _clock(timer, vpid), _sigevent(timer), Out(4)))
        following = timer.id + 1
    if chosen:
        calls.append(call(NR.prctl, prctl.TIMER_CREATE_RESTORE_IDS, prctl.TIMER_IDS_OFF, 0, 0, 0))
    # Fails with EINVAL, and the restart with it, should an id not be the wanted one.
    return calls + [call(NR.timer_getoverrun, timer.id) for timer in timers]


def arming(timers: Iterable[Timer], vpid: int) -> list[Call]:
    """The calls that start them."""
    calls = []
    for timer in timers:
        left = timer.left
        if timer.waiting:
            if timer.clock < 0 or (left and not timer.interval):
                info = In(siginfo.of_timer(timer.signal, timer.id, timer.value))
                if timer.target:
                    calls.append(call(NR.rt_tgsigqueueinfo, vpid, timer.target, timer.signal, info))
                else:
                    calls.append(call(NR.rt_sigqueueinfo, vpid, timer.signal, info))
            else:
                left = 1
        if left:
            setting = struct.pack("<qqqq", *divmod(timer.interval, _SECOND), *divmod(left, _SECOND))
            calls.append(call(NR.timer_settime, timer.id, 0, In(setting), 0))
    return calls
