"""Restart in place: without namespaces, among all the other processes of the machine.

For machines and containers that give no usable namespace. Every process gets its old number, so none of them may be in
use: that is looked at before anything is done (checkpoint/inplace_plan.py). Where numbers may not be chosen they are
walked to (linux/pidwalk.py), which wants an order: all processes that could be forked next stand at a gate (`Gates`, in
the forked processes), and the restarting process (`InPlace.hear`) lets that one through whose number comes next.

The part of PID 1 is played by a *holder*: a process of torpor's with some free number that forks the tree, is its
reaper and the parent of the job's first process, and reports what becomes of it. It outlives the supervisor, as PID 1
does; unlike there, its end is not the job's end. Stand-ins for the old parent, session leader and group leaders are
made where their numbers are free. Until the release everything dies with the restarting process: taken-over processes
by PTRACE_O_EXITKILL, all others because they wait on a pipe of it; and should it die in the midst of the release, the
holder ends the rest.

What differs from a restart in namespaces: getppid() and getsid() may tell other numbers where the old ones are in use;
clocks simply went on; without CAP_CHECKPOINT_RESTORE every process first executes its program again, for the sake of
/proc/PID/exe, and shared anonymous memory, which cannot be inherited over that, shows as a memfd in maps.
"""

from __future__ import annotations

import mmap
import os
import select
import signal
import struct
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, TypeVar

from torpor.checkpoint.plan import Plan
from torpor.checkpoint.plant import (
    ENDED,
    MADE,
    MISSED,
    NOTE_NO_HOST,
    NOTE_NO_NAMES,
    NOTE_NO_PTS,
    READY,
    WAITING,
    Ground,
    World,
)
from torpor.image.manifest import ProcessRecord
from torpor.linux import capability, clone, namespaces, pidwalk, proc, ptrace
from torpor.model.errors import RestartFailed
from torpor.tracee.stub import StubProcess

if TYPE_CHECKING:
    from torpor.checkpoint.footing import Turns

T = TypeVar("T")

PATIENCE = 5.0
"""Seconds that ended processes get to be reaped by their parents."""

_TURN = signal.SIGUSR1
_WORD = struct.Struct("<i")
_MARGIN = 16
"""Steps that are left to the process that forks: as many as others may take until it is its turn."""


class Gates:
    """`footing.Turns`: made before the tree, shared by all of it. numbers: what is to be left for those who need it."""

    def __init__(self, numbers: Collection[int]) -> None:
        self._numbers = frozenset(numbers)
        self._word = mmap.mmap(-1, _WORD.size)

    def take(self, world: World, forker: int, things: Mapping[int, T], make: Callable[[T], bool]) -> None:
        left = dict(things)
        for number in left:
            world.tell(number, forker, READY)
        while left:
            world.tell(forker, 0, WAITING)
            number = self._await(world, left)
            if make(left[number]):
                del left[number]

    def approach(self, wanted: int) -> None:
        # Whoever forks makes the last steps: between them and the fork there must be no change of processes.
        end = pidwalk.highest()
        if wanted > 0 and pidwalk.distance(pidwalk.last(), wanted, end) <= 4 * _MARGIN:
            try:
                pidwalk.Walker((), time.monotonic() + 1).walk(wanted)
            except TimeoutError:
                return  # missed, then

    def fits(self, wanted: int, got: int) -> bool:
        return got == wanted if wanted > 0 else got not in self._numbers

    def _await(self, world: World, left: Collection[int]) -> int:
        """Wait for the turn of one of ours. Only the signal counts: one that stayed pending would reach the program."""
        hung = select.poll()
        hung.register(world.release, 0)
        while True:
            if signal.sigtimedwait({_TURN}, 0.2) is None:
                if hung.poll(0):
                    os._exit(1)  # the restarting process is gone
                continue
            (number,) = _WORD.unpack(self._word[: _WORD.size])
            if number in left:
                return int(number)

    def call(self, number: int, pid: int) -> None:
        """It is the turn of that number, which process `pid` forks."""
        self._word[: _WORD.size] = _WORD.pack(number)
        os.kill(pid, _TURN)


class InPlace:
    """`footing.Footing` without namespaces. births: set once planned. walker: None where numbers may be chosen."""

    first = 0

    def __init__(self, births: Plan, threads: Iterable[int], walker: pidwalk.Walker | None) -> None:
        self.births, self.walker = births, walker
        self.executes = not (capability.have(capability.SYS_ADMIN) or capability.have(capability.CHECKPOINT_RESTORE))
        self.inherits = not self.executes
        self.chooses = walker is None
        self._numbers = births.numbers() | set(threads)
        self._gates = Gates(self._numbers) if walker is not None else None
        self.turns: Turns | None = self._gates
        self._busy = {1}
        """Processes (by number) of which is not known yet what they can fork next."""
        self._ready: dict[int, int] = {}
        """What could be forked now, and by whom."""
        self._forker = 0
        """Of what was let through last."""
        self._pids: dict[int, int] = {}

    # The first process.

    def fork(self, flags: int = 0) -> int:
        while True:
            if self.walker is None:
                pid = self._fork_elsewhere(flags)
            else:
                self.walker.avoid(self._numbers)
                pid = clone.fork(0, flags)
            if pid == 0 and os.getpid() in self._numbers:
                os._exit(0)
            if pid not in self._numbers:
                self._pids[1] = pid
                return pid
            os.waitpid(pid, 0)

    def _fork_elsewhere(self, flags: int) -> int:
        """Fork with a number that nobody needs."""
        for number in range(pidwalk.highest() - 1, 1, -1):
            if number not in self._numbers:
                try:
                    return clone.fork(number, flags)
                except FileExistsError:
                    continue
        raise OSError(11, "no free process number")

    def arrive(self) -> None:
        """Nothing: it is told when we are gone."""

    def settle(self, world: World, ground: Ground) -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, {_TURN})
        namespaces.become_subreaper()
        if ground.devpts >= 0:
            world.tell(1, 0, NOTE_NO_PTS)
        if ground.names:
            world.tell(1, 0, NOTE_NO_NAMES)
        if ground.host:
            world.tell(1, 0, NOTE_NO_HOST)

    # The order of births.

    def hear(self, subject: int, value: int, step: int) -> None:
        if self._gates is None:
            return
        if step == READY:
            self._ready[subject] = value
            return
        if step in (0, WAITING, ENDED):
            self._busy.discard(subject)
        elif step == MADE:
            self._pids[subject] = value
        elif step == MISSED:
            self._busy.discard(subject)
            self._ready[subject] = self._forker
        if self._ready and not self._busy:
            self._call_next(self._gates)

    def _call_next(self, gates: Gates) -> None:
        """Let that one through whose number comes next."""
        walker = self.walker
        assert walker is not None
        while True:
            number = _nearest(self._ready, pidwalk.last(), walker.end)
            if number < 0:
                walker.avoid(self._numbers)
                break
            if _reach(walker, number, _MARGIN):
                break
        forker = self._ready.pop(number)
        self._forker = forker
        self._busy.update((number, forker))
        gates.call(number, self._pids.get(forker, forker))

    def make_threads(self, wanted: Sequence[tuple[StubProcess, Sequence[int]]]) -> None:
        if self.walker is None:
            for process, numbers in wanted:
                process.make_threads(numbers)
            return
        left = {number: process for process, numbers in wanted for number in numbers}
        missed = 0
        while left:
            first = _nearest(left, pidwalk.last(), self.walker.end)
            process, run = left[first], 1
            while left.get(first + run) is process:
                run += 1
            # Where others are quicker, begin earlier and make more; what is too much is ended again.
            margin = min(_MARGIN, 4 * missed)
            if not _reach(self.walker, first, margin):
                continue
            for got in process.make_some_threads(run + 2 * margin):
                if left.get(got) is process:
                    del left[got]
                else:
                    process.end_thread(got)
            missed = missed + 1 if first in left else 0
        for process, numbers in wanted:
            process.adopt(numbers)

    # The end.

    def hosts(self, init: int, plan: Plan) -> dict[int, int]:
        return {**{number: number for number in plan.births}, 1: init}

    def shed(self) -> None:
        """Nothing is inherited here that is not wanted."""

    def fill(self, pid: int, tell: Callable[[int, int], None]) -> None:
        """Nothing: where a process has to execute its program first, that would be gone."""

    def there(self, pid: int) -> list[tuple[int, int]]:
        return []

    def rest(self, record: ProcessRecord) -> ProcessRecord:
        return record

    def abandoned(self) -> None:
        end_below(os.getpid())

    def uproot(self, init: int) -> None:
        end_below(init)
        left = {init, *(number for number in self.births.births if number > 1)}
        deadline = time.monotonic() + 5
        while left and time.monotonic() < deadline:
            for pid in list(left):
                try:
                    if pid == init or proc.stat(pid).ppid == os.getpid():
                        os.kill(pid, signal.SIGKILL)
                    # A first time as its tracer, then as the one to whom orphans fall.
                    ended, _ = os.waitpid(pid, ptrace.WALL | os.WNOHANG)
                    if ended == init:
                        left.discard(init)  # reaped: from now on the number may be anybody's
                except (ChildProcessError, FileNotFoundError, ProcessLookupError):
                    if not proc.alive(pid) or (pid != init and not proc.is_below(pid, os.getpid())):
                        left.discard(pid)
            time.sleep(0.001)


def end_below(pid: int) -> None:
    """Kill everything below a process."""
    for _ in range(100):
        found = [pid]
        for parent in found:
            try:
                found += [child for child in proc.children(parent) if child not in found]
            except OSError:
                continue
        living = [each for each in found[1:] if proc.alive(each)]
        if not living:
            return
        for each in living:
            try:
                os.kill(each, signal.SIGKILL)
            except OSError:
                continue
        time.sleep(0.001)


def _nearest(numbers: Iterable[int], at: int, end: int) -> int:
    """Which of these numbers is handed out first after `at`; one below 0 stands for any."""
    return min(numbers, key=lambda number: 0 if number < 0 else pidwalk.distance(at, number, end))


def _reach(walker: pidwalk.Walker, number: int, margin: int = 0) -> bool:
    """Walk to a number, or so many steps before it; False if it was missed and others should be looked at again.

    Raises RestartFailed.
    """
    if pidwalk.distance(pidwalk.last(), number, walker.end) >= pidwalk.NEVER:
        raise RestartFailed(f"the number {number} is not handed out any more")
    try:
        if walker.walk(number, margin):
            return True
    except TimeoutError:
        raise RestartFailed("finding the old process numbers takes too long: raise --pid-budget") from None
    if number in walker.used or os.path.exists(f"/proc/{number}"):
        if time.monotonic() > walker.deadline or not _soon_free(number):
            raise RestartFailed(f"the number {number} was taken meanwhile, by {proc.comm(number)}; try again")
        walker.used.discard(number)
    return False


def _soon_free(number: int) -> bool:
    """Wait a moment for a number that somebody has taken for something short."""
    deadline = time.monotonic() + PATIENCE
    while os.path.exists(f"/proc/{number}"):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.005)
    return True
