"""Restart in place: without namespaces, among all the other processes of the machine.

For machines and containers that give no usable namespace. Every process gets its old number, so none of them may be in
use: that is looked at before anything is done. Where numbers may not be chosen they are walked to (linux/pidwalk.py),
which wants an order: all processes that could be forked next stand at a gate (`Gates`, in the forked processes), and
the restarting process (`InPlace.hear`) lets that one through whose number comes next.

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

import msgspec

from torpor.checkpoint import machine
from torpor.checkpoint.plan import Birth, Helper, Plan, plan
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
from torpor.image.manifest import ClockRecord, Manifest, ProcessRecord
from torpor.linux import capability, clone, namespaces, pidwalk, proc, ptrace
from torpor.linux.arch.x86_64 import NR
from torpor.linux.ptrace import Regs
from torpor.model.errors import Refusal, Refused, RestartFailed
from torpor.posix import posix_timers, timerfd
from torpor.tracee.stub import StubProcess

if TYPE_CHECKING:
    from torpor.checkpoint.footing import Turns

T = TypeVar("T")

_TURN = signal.SIGUSR1
_WORD = struct.Struct("<i")
_MONOTONIC = frozenset((1, 4, 6, 7, 9))
"""CLOCK_MONOTONIC, _RAW, _COARSE, CLOCK_BOOTTIME, _ALARM."""
_MARGIN = 16
"""Steps that are left to the process that forks: as many as others may take until it is its turn."""
_PATIENCE = 5.0
"""Seconds that ended processes get to be reaped by their parents."""


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
                    if not _alive(pid) or (pid != init and not _below_us(pid)):
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
        living = [each for each in found[1:] if _alive(each)]
        if not living:
            return
        for each in living:
            try:
                os.kill(each, signal.SIGKILL)
            except OSError:
                continue
        time.sleep(0.001)


def _alive(pid: int) -> bool:
    try:
        return proc.stat(proc.face(pid)).state not in "ZX"
    except OSError:
        return False


def _below_us(pid: int) -> bool:
    """Is it a descendant of ours?"""
    try:
        while pid > 1:
            if pid == os.getpid():
                return True
            pid = proc.stat(pid).ppid
    except OSError:
        pass
    return False


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
    deadline = time.monotonic() + _PATIENCE
    while os.path.exists(f"/proc/{number}"):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.005)
    return True


# Before anything is done.


def prepare(
    manifest: Manifest, keep_session: bool, budget: float, say: Callable[[str], None],
    progress: Callable[[str, int, int], None] | None = None,
) -> InPlace:  # fmt: skip
    """Look whether a job can be restarted in place, and plan it. budget: seconds that walking to its numbers may take.
    say: called with notes. Raises Refused."""
    wanted = _wanted(manifest)
    used = _in_use(wanted, _wished(manifest))
    refusals = [_taken(number, used[number], wanted[number]) for number in sorted(wanted) if number in used]
    jump = clock_jump(manifest, machine.clocks(), proc.boot_id())
    state = sorted(set(monotonic_state(manifest))) if jump else []
    if state:
        way = "restart it where namespaces can be had (`torpor doctor`)"
        refusals.append(Refusal(0, "", f"{jump}, and the job has {' and '.join(state)}", way))
    if refusals:
        raise Refused(refusals, "cannot restart in place")
    if jump:
        say(f"the monotonic clock jumps: {jump}")
    choosing, _ = clone.can_choose()
    at, end = pidwalk.last(), pidwalk.highest()

    def to_be_had(number: int) -> bool:
        return number not in used and number not in wanted and (
            number < end if choosing else pidwalk.distance(at, number, end) < pidwalk.NEVER
        )  # fmt: skip

    births = plan(manifest, keep_session, to_be_had, any_number=not choosing)
    threads = [t.tid for record in manifest.processes for t in record.threads if t.tid != record.pid]
    high = [number for number in (*births.numbers(), *threads) if number >= end]
    if high:
        raise _refused(f"its process number {max(high)} is not to be had", f"sysctl kernel.pid_max={1 << 22}")
    if choosing:
        return InPlace(births, threads, None)
    way = "as root, with CAP_CHECKPOINT_RESTORE, or where namespaces can be had (`torpor doctor`)"
    count = steps(births, threads, at, end)
    plain = plan(manifest, keep_session, lambda _: False, any_number=True)
    without = steps(plain, threads, at, end)
    if count > without + end // 2:
        # Stand-ins are not worth a round of their own.
        births, count = plain, without
    if count >= pidwalk.NEVER:
        raise _refused("its process numbers are not handed out any more, or not in that order", way)
    seconds = count * pidwalk.price()
    if seconds > budget:
        what = f"its process numbers are {count} steps away, which takes about {seconds:.1f} s"
        raise _refused(what, f"say --pid-budget={seconds * 1.5 + 1:.0f}, or {way}")
    if seconds > 1:
        say(f"walking to the old process numbers took about {seconds:.1f} s ({count} steps)")
        if progress is not None:
            progress(f"walking to the old process numbers, about {seconds:.1f} s", 0, 0)
    return InPlace(births, threads, pidwalk.Walker(used, time.monotonic() + 2 * max(budget, seconds) + 5))


def _refused(what: str, way: str) -> Refused:
    return Refused([Refusal(0, "", what, way)], "cannot restart in place")


def _wanted(manifest: Manifest) -> dict[int, str]:
    """All numbers of the job's processes and threads, with the process' name."""
    found = {}
    for record in manifest.processes:
        found[record.pid] = record.comm
        found.update((thread.tid, record.comm) for thread in record.threads)
    return found


def _wished(manifest: Manifest) -> set[int]:
    """The numbers of what was outside, for stand-ins."""
    return {number for record in manifest.processes for number in (record.parent, record.pgid, record.sid)}


def _in_use(wanted: Collection[int], wished: Collection[int]) -> dict[int, int]:
    """`pidwalk.in_use`. Processes that have ended and are being reaped just now are waited for."""
    began = time.monotonic()
    while True:
        used = pidwalk.in_use()
        taken = [used[number] for number in wanted if number in used]
        dead = [pid for pid in taken if not _alive(pid)]
        waited = time.monotonic() - began
        late = any(number in used and not _alive(used[number]) for number in wished)
        if not ((dead and len(dead) == len(taken) and waited < _PATIENCE) or (late and waited < _PATIENCE / 5)):
            return used
        time.sleep(0.01)


def _taken(number: int, by: int, needs: str) -> Refusal:
    """Somebody has a number."""
    if by == os.getpid():
        return Refusal(by, "torpor", f"has the number {number} itself, which {needs} needs", "start it again")
    kind = "" if number == by or os.path.exists(f"/proc/{number}") else " as its group or session"
    return Refusal(by, proc.comm(by), f"has the number {number}{kind}, which {needs} needs", "end it first")


def steps(births: Plan, threads: Iterable[int], at: int, end: int) -> int:
    """How many numbers are handed out from `at` on until every process and thread has its own: an estimate, since it
    forks whatever has its parent. Pure."""
    total = 0
    ready: list[Birth | Helper] = [births.init]
    while ready:
        following = min(ready, key=lambda each: 0 if each.pid <= 1 else pidwalk.distance(at, each.pid, end))
        ready.remove(following)
        if following.pid > 1:
            total += pidwalk.distance(at, following.pid, end)
            at = following.pid
        if isinstance(following, Helper):
            ready += following.births
        else:
            ready += [*following.early, *following.late, *following.helpers]
    for number in sorted(threads, key=lambda n: pidwalk.distance(at, n, end)):
        total += pidwalk.distance(at, number, end)
        at = number
    return total


# Clocks: there is no time namespace.


def clock_jump(manifest: Manifest, now: ClockRecord, boot: str) -> str:
    """In words why the job's monotonic clock does not simply go on here, '' if it does."""
    if manifest.machine.boot != boot:
        return "the machine was booted since, or is another one"
    if manifest.clocks.monotonic > now.monotonic:
        return "the job's monotonic clock is ahead of the machine's"
    return ""


def monotonic_state(manifest: Manifest) -> list[str]:
    """What of a job hangs on the monotonic or the boot clock, in words."""
    found = []
    for thing in manifest.objects:
        if thing.service == timerfd.SERVICE.name:
            timer = msgspec.msgpack.decode(thing.state, type=timerfd.Timer)
            if timer.clock in _MONOTONIC and (timer.left or timer.ticks):
                found.append("armed timers")
    for record in manifest.processes:
        kept = record.services.get(posix_timers.PosixTimerService.name)
        if kept is not None:
            timers = msgspec.msgpack.decode(kept, type=posix_timers.Timers).timers
            if any(timer.clock in _MONOTONIC and timer.left for timer in timers):
                found.append("armed timers")
        for thread in record.threads:
            if waits_until(Regs.from_buffer_copy(thread.cpu.regs)):
                found.append("a wait until a moment of that clock")
    return found


def waits_until(regs: Regs) -> bool:
    """Is a thread in a system call that waits until an absolute moment of the monotonic or the boot clock?

    Relative waits go on with what was left of them, whatever the clock says.
    """
    if regs.orig_rax >> 63:
        return False
    if regs.orig_rax == NR.clock_nanosleep:
        return regs.rdi in _MONOTONIC and bool(regs.rsi & 1)
    if regs.orig_rax == NR.futex:
        command = regs.rsi & 0x7F & ~0x80
        return command in (9, 11) and not regs.rsi & 0x100 and regs.r10 != 0  # WAIT_BITSET, WAIT_REQUEUE_PI
    return regs.orig_rax == 449 and regs.r10 != 0 and regs.r8 in _MONOTONIC  # futex_waitv
