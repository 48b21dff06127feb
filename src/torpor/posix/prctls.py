"""Switches of a process that prctl(2) and its relatives turn.

child subreaper (PR_GET_CHILD_SUBREAPER); no transparent huge pages (PR_GET_THP_DISABLE, since 6.18 with
flags); memory merging (PR_GET_MEMORY_MERGE); deny write+execute (PR_GET_MDWE); permission to use dynamic CPU
state, that is AMX tiles (ARCH_GET_XCOMP_PERM), without which their registers could not be set; and which
memory goes into a core dump (/proc/PID/coredump_filter, from outside).

Each is asked for in the process and set again only where it differs from what a fresh process has; THP is
always set, since the stub inherits the restarter's. Deny write+execute comes last: it cannot be taken back,
and stops torpor, too. Errors of a question mean that the kernel does not know the switch: then it is off.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from torpor.linux import prctl, proc
from torpor.linux.arch.x86_64 import NR
from torpor.posix.service import ProcessBase, Stage, Steps
from torpor.tracee.call import ANY, Answer, Call, Out, call
from torpor.tracee.process import Process

_XTILEDATA = 18
"""The only dynamic CPU state so far (arch/x86/include/asm/fpu/types.h)."""


class Prctls(msgspec.Struct, frozen=True):
    """Values as the kernel's questions answer them; 0 is off."""

    subreaper: int = 0
    thp_disable: int = 0
    memory_merge: int = 0
    mdwe: int = 0
    cpu_states: int = 0
    """Bit mask of the CPU state components it may use."""
    coredump_filter: int = 0x33


def is_subreaper(services: Mapping[str, msgspec.Raw]) -> bool:
    """Of what was captured of a process: do orphans below it become its children?"""
    return bool(msgspec.msgpack.decode(services[PrctlService.name], type=Prctls).subreaper)


_ASK = (
    call(NR.prctl, prctl.GET_CHILD_SUBREAPER, Out(4), 0, 0, 0, accept=ANY),
    call(NR.arch_prctl, prctl.ARCH_GET_XCOMP_PERM, Out(8), accept=ANY),
    call(NR.prctl, prctl.GET_THP_DISABLE, 0, 0, 0, 0, accept=ANY),
    call(NR.prctl, prctl.GET_MEMORY_MERGE, 0, 0, 0, 0, accept=ANY),
    call(NR.prctl, prctl.GET_MDWE, 0, 0, 0, 0, accept=ANY),
)


class PrctlService(ProcessBase):
    name = "prctls"
    record: type[msgspec.Struct] = Prctls

    def ask(self, process: Process) -> Sequence[Call]:
        return _ASK

    def capture(self, process: Process, answers: Sequence[Answer]) -> Prctls:
        subreaper, states, *plain = answers
        thp, merge, mdwe = (max(0, answer.value) for answer in plain)
        return Prctls(
            subreaper=0 if subreaper.error else int.from_bytes(subreaper.outs[0], "little"),
            thp_disable=thp,
            memory_merge=merge,
            mdwe=mdwe,
            cpu_states=0 if states.error else int.from_bytes(states.outs[0], "little"),
            coredump_filter=_filter(process.leader.tid),
        )

    def restore(self, record: Any, process: Process) -> Steps:
        calls = [call(NR.prctl, prctl.SET_THP_DISABLE, record.thp_disable & 1, record.thp_disable & ~1, 0, 0)]
        if record.subreaper:
            calls.append(call(NR.prctl, prctl.SET_CHILD_SUBREAPER, record.subreaper, 0, 0, 0))
        if record.memory_merge:
            calls.append(call(NR.prctl, prctl.SET_MEMORY_MERGE, record.memory_merge, 0, 0, 0))
        if record.cpu_states >> _XTILEDATA & 1:
            calls.append(call(NR.arch_prctl, prctl.ARCH_REQ_XCOMP_PERM, _XTILEDATA))
        last = [call(NR.prctl, prctl.SET_MDWE, record.mdwe, 0, 0, 0)] if record.mdwe else []
        return {Stage.PROCESS: calls, Stage.LAST: last}

    def outside(self, record: Any, process: Process) -> None:
        if _filter(process.leader.tid) == record.coredump_filter:
            return
        fd = os.open(f"/proc/{process.leader.tid}/coredump_filter", os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(fd, f"{record.coredump_filter:#x}".encode())
        finally:
            os.close(fd)


def _filter(pid: int) -> int:
    return int(proc.shown(f"/proc/{pid}/coredump_filter") or b"33", 16)
