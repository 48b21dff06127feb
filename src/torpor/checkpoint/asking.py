"""What the services of processes and threads are told while a job is stopped, and what they make of it later.

What is asked in a task goes there as one batch. What came back stays as it is until the job goes on again: most
services (those that say so: `afterwards` in posix/service.py) make their records then.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from typing import Any

import msgspec

from torpor.checkpoint import machine
from torpor.image.manifest import ClockRecord, Services, ThreadRecord
from torpor.linux import proc
from torpor.linux.arch.x86_64 import NR
from torpor.named_tuple import NamedTuple
from torpor.posix import cpu
from torpor.posix.memory import layout
from torpor.posix.process_services import PROCESS_SERVICES, THREAD_SERVICES
from torpor.tracee import guests
from torpor.tracee.call import Call, Out, call
from torpor.tracee.process import LivingProcess
from torpor.tracee.task import Made, Task

_OWN = (
    *layout.questions(),
    *(call(NR.clock_gettime, clock, Out(16)) for clock in (0, 1, machine.CLOCK_BOOTTIME)),
)
"""What no service asks for: the break, and the clocks as the process sees them, in a time namespace of its own
perhaps."""

_WAITING = call(NR.rt_sigpending, Out(8), 8)
_NONE_WAIT = bytes(16)
"""The last call of every task: which signals wait for it, or for its process. Nearly always there are none: then nobody
has to look into the queues. (All signals are blocked meanwhile but the one that our code ends with, which the kernel
would deliver.) Its room, rounded up to 16 bytes, is the last there is in the table."""


class Told(NamedTuple):
    """What the services have to say of a process."""

    services: Services
    threads: tuple[ThreadRecord, ...]
    layout: layout.LayoutRecord


class _Layout(NamedTuple):
    """What services ask, and where the answers of each are: (service, first, count)."""

    questions: list[Call]
    early: list[tuple[Any, int, int]]
    late: list[tuple[Any, int, int]]


def _arranged(services: Sequence[Any], asked: Iterable[Sequence[Call]], first: int) -> _Layout:
    """The layout of what services ask behind `first` calls of others."""
    layout = _Layout([], [], [])
    for service, calls in zip(services, asked):
        place = service, first + len(layout.questions), len(calls)
        (layout.late if _waits(service) else layout.early).append(place)
        layout.questions.extend(calls)
    return layout


_last: tuple[list[Sequence[Call]], _Layout] | None = None
"""What the process before was asked, and its layout."""


def _of_process(process: LivingProcess) -> _Layout:
    """The layout of what services ask of a process: mostly the very same as of the one before."""
    global _last
    asked = [service.ask(process) for service in PROCESS_SERVICES]
    if _last is None or _last[0] != asked:
        _last = asked, _arranged(PROCESS_SERVICES, asked, 0)
    return _last[1]


@lru_cache(16)
def _of_thread(first: int, plain: bool) -> _Layout:
    """The same for a thread: all are asked the very same, the first one behind what its process is asked. plain: see
    Task.plain."""
    services = [one for one in THREAD_SERVICES if not (plain and getattr(one, "odd", False))]
    return _arranged(services, [service.questions for service in services], first)


@lru_cache(2)
def _of_other(plain: bool) -> tuple[_Layout, list[Call]]:
    """The same for a thread that is not the first one, and all that it is asked."""
    layout = _of_thread(0, plain)
    return layout, [*layout.questions, _WAITING]


class _Answered:
    """What came of the questions of all services of one scope, for a process or a thread (`whose`). early: the records
    of services that do not wait."""

    def __init__(self, whose: Any, services: Sequence[Any], layout: _Layout) -> None:
        self._whose: Any = whose
        self._services: Sequence[Any] = services
        self._layout = layout
        self.early: Services = {}

    @property
    def questions(self) -> list[Call]:
        """All there is to be asked."""
        return self._layout.questions

    def take(self, made: Made) -> None:
        """The calls were made: what cannot wait becomes a record now."""
        self._made = made
        if self._layout.early:
            self.early = dict(self._records(self._layout.early))

    def records(self) -> Services:
        """All of it, in the order of the services. Raises Refused, CallFailed."""
        found = self.early | dict(self._records(self._layout.late))
        return {service.name: found[service.name] for service in self._services if service.name in found}

    def _records(self, places: Iterable[tuple[Any, int, int]]) -> Iterator[tuple[str, msgspec.Raw]]:
        for service, first, count in places:
            record = service.capture(self._whose, self._made.answers(first, count) if count else [])
            if record is not None:
                yield service.name, msgspec.Raw(msgspec.msgpack.encode(record))


def _waits(service: Any) -> bool:
    """May it make its record when the job goes on?"""
    return bool(getattr(service, "afterwards", False))


def ask(process: LivingProcess) -> Asked:
    """Ask one process, and wait for it."""
    asked = Asked(process)
    asked.send()
    return asked.hear()


class Asked:
    """A stopped process that is asked: one batch for each of its tasks.

    Each step begins something that the process does while we turn to others, and waits for what the step before it has
    begun: made, `send`, `hear`. Raises Refused, CallFailed, Gone, OSError.
    """

    def __init__(self, process: LivingProcess) -> None:
        self._process = process
        process.set_out()

    def send(self) -> None:
        """Ask the first thread, and with it the process."""
        process = self._process
        self._of_process = _Answered(process, PROCESS_SERVICES, _of_process(process))
        ahead = [*self._of_process.questions, *_OWN]
        self._own = len(self._of_process.questions)
        first = _Answered(process.leader, THREAD_SERVICES, _of_thread(len(ahead), process.leader.plain))
        self._of_threads = [first]
        self._begun = process.leader.begin([*ahead, *first.questions, _WAITING])

    def hear(self) -> Asked:
        """What the first thread has to say; the others are asked, too. exe: the program that it runs."""
        process = self._process
        made = [self._begun.made()]
        made += guests.make(process, self._others())
        self._made = made[0]
        process.peek([task for task, one in zip(process.tasks, made) if not one.ends_with(_NONE_WAIT)])
        self._of_process.take(self._made)
        for answered, one in zip(self._of_threads, made):
            answered.take(one)
        self._cpu = [cpu.capture(process, task) for task in process.tasks]
        self._auxv = proc.shown(f"/proc/{process.pid}/auxv")
        self.exe = process.program
        self._stat = proc.stat(process.pid, process.leader.tid) if process.leader.tid != process.pid else process.stat
        return self

    def _others(self) -> Iterator[tuple[Task, Sequence[Call]]]:
        """The threads but the first, and what they are asked; to be gone through once, while those before answer."""
        for task in self._process.tasks[1:]:
            layout, questions = _of_other(task.plain)
            self._of_threads.append(_Answered(task, THREAD_SERVICES, layout))
            yield task, questions

    @property
    def early(self) -> Services:
        """The records of those services of the process that do not wait."""
        return self._of_process.early

    def clocks(self) -> ClockRecord:
        """The clocks as the process saw them when it was asked."""
        answers = self._made.answers(self._own + 1, 3)
        return ClockRecord(*(s * 10**9 + ns for s, ns in (struct.unpack("<qq", one.outs[0]) for one in answers)))

    def told(self) -> Told:
        """What there is to say; the job may go on by now. Raises Refused, CallFailed."""
        brk = self._made.answers(self._own, 1)[0].value
        return Told(
            self._of_process.records(),
            tuple(
                ThreadRecord(task.vtid, state, answered.records())
                for task, answered, state in zip(self._process.tasks, self._of_threads, self._cpu)
            ),
            layout.capture(self._stat, self._auxv, brk, self.exe),
        )
