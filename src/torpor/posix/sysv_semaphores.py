"""System V semaphores.

The kernel keeps for a set: its identity (posix/sysv.py); for each semaphore its value and who changed it last; and
for each process what is to be undone when it ends (SEM_UNDO). Values and pids are what semctl answers.

The adjustments are not shown anywhere. They are found out by operations that cannot succeed, and so change nothing
(semop(2): all operations of a call are done, or none). Raising a semaphore with SEM_UNDO fails with ERANGE where
the adjustment would fall below -32768; lowering it again without SEM_UNDO makes room for the next step; a last
operation that no value allows ends everything with EAGAIN. So how far the adjustment can be lowered tells what it
is. Only processes that have ever used SEM_UNDO, or made a thread, are asked (kcmp(KCMP_SYSVSEM) tells). What remains
of it: the end of such a process later counts as an operation (sem_otime) on every set it was asked about.

At the restart: values by SETVAL, then each process makes its adjustments by raising (lowering) with SEM_UNDO and
lowering (raising) without, and whoever changed a semaphore last does so last. Who waits in semop makes the call
again.

Source: semop(2), semctl(2), ipc/sem.c.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec

from torpor.linux import kcmp, sysvipc
from torpor.linux.arch.x86_64 import NR
from torpor.linux.sysvipc import NOWAIT, SEM_MAX, SEM_UNDO, operation
from torpor.model.data import Source
from torpor.posix.service import Job, JobBase
from torpor.posix.sysv import Identity, Members, actor, identity, listed, made, next_number
from torpor.tracee.call import ANY, Call, In, call
from torpor.tracee.process import Process

_LOWEST = -SEM_MAX - 1
_HALF = 1 << 14


class Undo(msgspec.Struct, frozen=True, array_like=True):
    """What the end of a process (pid as the job sees it) adds to a semaphore."""

    pid: int
    semaphore: int
    adjustment: int


class SemaphoreSet(msgspec.Struct, frozen=True):
    """pids: who changed each semaphore last, as the job sees it; 0: nobody, or somebody who is gone."""

    identity: Identity
    values: tuple[int, ...]
    pids: tuple[int, ...]
    undo: tuple[Undo, ...] = ()


class SemaphoreSets(msgspec.Struct, frozen=True):
    sets: tuple[SemaphoreSet, ...]


class SemaphoreService(JobBase):
    name = "sysv_semaphores"
    record: type[msgspec.Struct] = SemaphoreSets

    def capture(self, job: Job, processes: Sequence[Process]) -> SemaphoreSets | None:
        members = Members(processes)
        waiting = members.waiting((NR.semop, NR.semtimedop))
        undoing: list[Process] | None = None
        found = []
        for number, raw in listed(members, NR.semctl, sysvipc.SEM_STAT_ANY, sysvipc.SET_SIZE, waiting):
            seen = sysvipc.set_(raw)
            if number not in waiting and members.are_younger(max(seen.otime, seen.ctime)):
                continue
            mine = identity(number, seen.perm)
            places = range(seen.semaphores)
            asked = [call(NR.semctl, number, place, sysvipc.SEM_GETVAL, 0, accept=ANY) for place in places]
            asked += [call(NR.semctl, number, place, sysvipc.SEM_GETPID, 0, accept=ANY) for place in places]
            answers = members.first.run(asked)
            pids = tuple(answer.value for answer in answers[seen.semaphores :])
            if answers[0].error:
                # Not readable by the job, so it does not use it either; its own namespace it must be able to read.
                if members.private:
                    words = f"the semaphores {number} (key {mine.key:#x}) cannot be read"
                    raise members.refuse(f"{words} ({os.strerror(answers[0].error)})", "run torpor as root")
                continue
            used = [(pid, max(seen.otime, seen.ctime)) for pid in pids if pid] or [(0, seen.otime)]
            if not members.own("the set of semaphores", mine, seen.perm, seen.ctime, used, waiting):
                continue
            values = tuple(answer.value for answer in answers[: seen.semaphores])
            if undoing is None:  # not before there is a set: mostly there is none
                undoing = [process for process in processes if _has_undo(process)]
            undo = [Undo(p.vpid, place, by) for p in undoing for place, by in adjustments(p, number, values)]
            found.append(SemaphoreSet(mine, values, pids, tuple(undo)))
        return SemaphoreSets(tuple(found)) if found else None

    def create(self, record: Any, processes: Mapping[int, Process], source: Source) -> None:
        for one in record.sets:
            self._create(one, processes)

    def _create(self, one: SemaphoreSet, processes: Mapping[int, Process]) -> None:
        mine = one.identity
        first = actor(processes, 0)
        next_number(first, "sem", mine.number)
        flags = sysvipc.CREAT | sysvipc.EXCL | mine.mode
        made(
            first, "the set of semaphores", mine,
            call(NR.semget, mine.key, len(one.values), flags), call(NR.semctl, 0, 0, sysvipc.RMID, 0),
        )  # fmt: skip
        for place, (value, pid) in enumerate(zip(one.values, one.pids)):
            if value or pid:
                actor(processes, pid).run([call(NR.semctl, mine.number, place, sysvipc.SEM_SETVAL, value)])
        for undo in one.undo:
            value = one.values[undo.semaphore]
            actor(processes, undo.pid).run(
                [_operate(mine.number, adjusting(undo.semaphore, value, undo.adjustment), ())]
            )
        for place in sorted({undo.semaphore for undo in one.undo}):
            last, value = one.pids[place], one.values[place]
            step = 1 if value < SEM_MAX else -1
            touch = operation(place, step) + operation(place, -step)
            actor(processes, last).run([_operate(mine.number, touch, ())])
        raw = sysvipc.permissions(sysvipc.SET_SIZE, mine.uid, mine.gid, mine.mode)
        first.run([call(NR.semctl, mine.number, 0, sysvipc.SET, In(raw))])


def adjustments(process: Process, number: int, values: Sequence[int]) -> list[tuple[int, int]]:
    """What the end of a stopped process would add to the semaphores of a set: (semaphore, adjustment) if not 0."""
    low = dict.fromkeys(range(len(values)), _LOWEST)
    high = dict.fromkeys(range(len(values)), SEM_MAX)
    # Most are 0, which two questions tell; the others are narrowed down.
    zero = _at_least(process, number, values, [(place, bound) for place in low for bound in (0, 1)])
    for place in low:
        if zero[place, 0] and not zero[place, 1]:
            low[place] = high[place] = 0
    while any(low[place] < high[place] for place in low):
        bounds = [(place, (low[place] + high[place] + 1) // 2) for place in low if low[place] < high[place]]
        told = _at_least(process, number, values, bounds)
        for place, bound in bounds:
            if told[place, bound]:
                low[place] = bound
            else:
                high[place] = bound - 1
    return [(place, low[place]) for place in low if low[place]]


def _at_least(
    process: Process, number: int, values: Sequence[int], bounds: Sequence[tuple[int, int]]
) -> dict[tuple[int, int], bool]:
    """Is the adjustment of a semaphore at least so much? For each (semaphore, bound)."""
    calls = [
        _operate(number, probe(place, values[place], bound), (errno.EAGAIN, errno.ERANGE, errno.EACCES))
        for place, bound in bounds
    ]
    answers = process.run(calls)
    # EACCES: the process may not change the set, and so has nothing to undo in it.
    return {
        bound: answer.error == errno.EAGAIN or (answer.error == errno.EACCES and bound[1] <= 0)
        for bound, answer in zip(bounds, answers)
    }


def probe(place: int, value: int, bound: int) -> bytes:
    """Operations that fail with EAGAIN where the adjustment is at least `bound`, else with ERANGE."""
    down = bound - _LOWEST  # lowering it by so much is possible only then
    return steps(place, value, -down) + operation(place, _LOWEST, NOWAIT)


def adjusting(place: int, value: int, adjustment: int) -> bytes:
    """Operations that change the caller's adjustment by so much and leave the value."""
    return steps(place, value, adjustment)


def steps(place: int, value: int, change: int) -> bytes:
    """Pairs of operations: one with SEM_UNDO, which changes the adjustment by its opposite, and one without."""
    out = b""
    raise_first = value <= _HALF
    while change:
        part = max(-_HALF + 1, min(_HALF - 1, change))
        change -= part
        undone = operation(place, -part, SEM_UNDO | NOWAIT)
        plain = operation(place, part, NOWAIT)
        out += undone + plain if (part < 0) == raise_first else plain + undone
    return out


def _operate(number: int, operations: bytes, accept: Iterable[int]) -> Call:
    return call(NR.semop, number, In(operations), len(operations) // 6, accept=frozenset(accept))


def _has_undo(process: Process) -> bool:
    """May the process have adjustments?"""
    try:
        return kcmp.has_undo(process.pid)
    except OSError:
        return True


SERVICE = SemaphoreService()
