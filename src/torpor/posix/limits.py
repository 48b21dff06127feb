"""Resource limits (getrlimit(2)): sixteen pairs of a soft and a hard limit per process.

Asked for by the process itself, and read from /proc/PID/limits at a restart (from outside prlimit(2) wants equal
uids); set by the restarting process with prlimit(2), and only where the recreated process' differ. Nobody may raise a
hard limit without CAP_SYS_RESOURCE: where that would be needed, the restart fails with a line that names the limit.

The number of processes is set last and in the task: the threads of the job have yet to be created when the
others are set. Used-up amounts (CPU seconds, queued bytes) are not part of a limit.

Source: getrlimit(2), fs/proc/base.c (lnames).
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any

import msgspec

from torpor.linux import proc
from torpor.linux.arch.x86_64 import NR
from torpor.model.errors import RestartFailed
from torpor.posix.service import ProcessBase, Stage, Steps
from torpor.tracee.call import Answer, Call, In, Out, call
from torpor.tracee.process import Process

INFINITY = -1
_NPROC = 6

_ROWS = (
    "Max cpu time", "Max file size", "Max data size", "Max stack size", "Max core file size",
    "Max resident set", "Max processes", "Max open files", "Max locked memory", "Max address space",
    "Max file locks", "Max pending signals", "Max msgqueue size", "Max nice priority",
    "Max realtime priority", "Max realtime timeout",
)  # fmt: skip
"""The rows of /proc/PID/limits, in the order of the limits' numbers."""

_OPTIONS = (
    "cpu", "fsize", "data", "stack", "core", "rss", "nproc", "nofile", "memlock", "as", "locks", "sigpending",
    "msgqueue", "nice", "rtprio", "rttime",
)  # fmt: skip
"""What prlimit(1) and limits.conf(5) call them."""


class Limits(msgspec.Struct, frozen=True):
    """(soft, hard) by number, RLIMIT_CPU first; -1: unlimited."""

    limits: tuple[tuple[int, int], ...]


def parse(text: str) -> Limits:
    """The contents of /proc/PID/limits."""
    rows = {line[:25].strip(): line[25:].split() for line in text.splitlines()[1:]}

    def number(word: str) -> int:
        return INFINITY if word == "unlimited" else int(word)

    return Limits(tuple((number(rows[name][0]), number(rows[name][1])) for name in _ROWS))


def _raw(value: int) -> int:
    return (1 << 64) - 1 if value == INFINITY else value


def above(value: int, other: int) -> bool:
    """Is a limit higher than another?"""
    return _raw(value) > _raw(other)


def shown(value: int) -> str:
    return "unlimited" if value == INFINITY else str(value)


def refuse_raise(vpid: int, number: int, saved: int, now: int) -> RestartFailed:
    """The line for a hard limit that may not be raised."""
    what = f"'{_ROWS[number][4:]}' ({_OPTIONS[number]})"
    most = shown(now)
    return RestartFailed(
        f"process {vpid} had {shown(saved)} as its hard limit for {what}, and here it may have {most} at "
        "most; raise that for torpor itself (limits.conf, or prlimit as root) and restart again"
    )


def _signed(value: int) -> int:
    return INFINITY if value == _raw(INFINITY) else value


_ASK = tuple(call(NR.prlimit64, 0, number, 0, Out(16)) for number in range(len(_ROWS)))


class LimitService(ProcessBase):
    name = "limits"
    afterwards = True
    record: type[msgspec.Struct] = Limits

    def ask(self, process: Process) -> Sequence[Call]:
        return _ASK

    def capture(self, process: Process, answers: Sequence[Answer]) -> Limits:
        pairs = [struct.unpack("<QQ", answer.outs[0]) for answer in answers]
        return Limits(tuple((_signed(soft), _signed(hard)) for soft, hard in pairs))

    def restore(self, record: Any, process: Process) -> Steps:
        soft, hard = record.limits[_NPROC]
        return {Stage.CLOCKS: [call(NR.prlimit64, 0, _NPROC, In(struct.pack("<QQ", _raw(soft), _raw(hard))), 0)]}

    def outside(self, record: Any, process: Process) -> None:
        import resource  # only here: start-up is restart time

        now = parse(proc.text(f"/proc/{process.leader.tid}/limits"))
        for number, (saved, present) in enumerate(zip(record.limits, now.limits)):
            wanted = saved
            if number == _NPROC:
                # Here only what would need a privilege that the task itself may lack; see `restore`.
                wanted = (present[0], saved[1]) if above(saved[1], present[1]) else present
            if wanted == present:
                continue
            try:
                resource.prlimit(process.pid, number, wanted)
            except (PermissionError, ValueError):
                if above(wanted[1], present[1]):
                    raise refuse_raise(process.vpid, number, wanted[1], present[1]) from None
                raise
