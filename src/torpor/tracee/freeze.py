"""Stop a whole tree of processes, and let it go again.

A tree grows while it is being stopped: every process found is stopped, then the tree is looked through again, until
nothing new appears. Nothing is changed in any process; if we die, the kernel detaches and everything goes on.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Collection, Iterable, Mapping

from torpor.linux import kcmp, proc, ptrace
from torpor.linux.arch.x86_64_code import MAGIC, SIZE
from torpor.model.errors import CheckpointFailed, Refusal, Refused
from torpor.tracee import padding
from torpor.tracee.padding import PAGE
from torpor.tracee.process import LivingProcess, in_sequences, rseq_abort
from torpor.tracee.stops import Facts, Learning, Stops
from torpor.tracee.task import NOT_IN_CALL, Gone, Task

STOP_SIGNALS = (19, 20, 21, 22)
"""SIGSTOP, SIGTSTP, SIGTTIN, SIGTTOU."""

# System calls that return EINTR to a program that got no signal after a ptrace stop (signal(7), "Interruption of system
# calls and library functions by stop signals"); connect is not among them: doing it again fails with EALREADY.
# The numbers are x86-64's: read, write, readv, writev, accept, sendto, recvfrom, sendmsg, recvmsg, semop, semtimedop,
# rt_sigtimedwait, io_getevents, epoll_wait, epoll_pwait, accept4, recvmmsg, sendmmsg, msgsnd, msgrcv, io_pgetevents,
# epoll_pwait2, inotify reads are `read`.
EINTR_CALLS = frozenset(
    (0, 1, 19, 20, 43, 44, 45, 46, 47, 65, 69, 70, 128, 208, 220, 232, 281, 288, 299, 307, 333, 441)
)
EINTR = 4
_YIELDS = 50
"""So often whoever waits for a stop only gives way to others, which takes a tenth of a millisecond; a nap takes longer
than it is told to."""
_LOOKS = 10
"""How often a tree is looked through, at the least, before it counts as one that grows too fast."""
_MANY = 8
"""Threads of a tree that take longer to be looked through than it takes to see that nobody was born meanwhile."""


class Frozen:
    """A stopped tree. found: all of it, parents before their children. since: when the first was asked to stop
    (time.perf_counter).

    Use as a context manager: on the way out every process that is still held goes on.
    """

    def __init__(self) -> None:
        self.since = 0.0
        self.found: list[int] = []
        self.processes: dict[int, LivingProcess] = {}
        self.zombies: list[int] = []
        self.learnings: list[Learning] = []

    def __enter__(self) -> Frozen:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def release(self) -> None:
        """Let everything go on. Idempotent."""
        # Who closes the last end of a pipe expects its end at once, and not when we have closed our copies.
        for process in self.processes.values():
            process.close()
        # What was stopped before is stopped again before anybody who might look at it runs.
        stopped = [pid for pid, process in self.processes.items() if any(t.stop_signal for t in process.tasks)]
        for pid in stopped:
            self._detach(pid)
        for pid in stopped:
            proc.await_state(pid, "T")
        for pid in list(self.processes)[::-1]:
            self._detach(pid)

    def _detach(self, pid: int) -> None:
        try:
            self.processes.pop(pid).detach()
        except (ProcessLookupError, FileNotFoundError, Gone):
            pass  # killed meanwhile; the others are to go on all the same

    def kill(self) -> None:
        """End every process where it stands; none of them executes another instruction of its own."""
        for pid in list(self.processes):
            try:
                os.kill(pid, 9)
            except ProcessLookupError:
                pass
        for process in self.processes.values():
            process.abandon()
            for task in process.tasks[::-1]:
                try:
                    ptrace.wait(task.tid)
                except ChildProcessError:
                    pass
        self.processes.clear()


def freeze(
    find: Callable[[], Iterable[int]], timeout: float = 10.0, last: Collection[int] = (), grace: float = 0.0
) -> Frozen:
    """Stop every process that `find` lists (host pids), until it lists no new ones.

    last: these are stopped only when all others have been for `grace` seconds.

    Must be called in the OS thread that will do everything with the result. Raises Refused (being traced, not ours)
    or CheckpointFailed (does not stop within `timeout` seconds); everything stopped so far goes on then.
    """
    frozen = Frozen()
    deadline = time.monotonic() + timeout
    try:
        if last:
            _stop_all(frozen, lambda: [pid for pid in find() if pid not in last], deadline)
            time.sleep(grace)
        frozen.zombies = _stop_all(frozen, find, deadline)
        _look_at_stops(frozen, deadline)
        facts = {tid: one for learning in frozen.learnings for tid, one in learning.facts().items()}
        for pid, process in list(frozen.processes.items()):
            try:
                _settle(process, facts, deadline)
            except (ProcessLookupError, FileNotFoundError) as error:
                raise CheckpointFailed(f"process {pid} ended while the job was being stopped; try again") from error
    except BaseException:
        frozen.release()
        raise
    return frozen


def _stop_all(frozen: Frozen, find: Callable[[], Iterable[int]], deadline: float) -> list[int]:
    """Stop what `find` lists until it lists nothing new. The zombies among it."""
    looks = 0
    ended: set[int] = set()
    while True:
        looks += 1
        zombies: list[int] = []
        asked: dict[int, LivingProcess] = {}
        news, wanted = False, 0
        before = proc.population() if looks == 1 else None
        frozen.found = list(find())
        try:
            for pid in frozen.found:
                try:
                    process = frozen.processes.get(pid) or LivingProcess(pid)
                    known = {task.tid for task in process.tasks}
                    tids = [tid for tid in proc.threads(pid) if tid not in known]
                except (ProcessLookupError, FileNotFoundError):
                    news = True  # it is ending: by the next look it is a zombie, which is saved too, or gone
                    continue
                wanted += len(tids)
                # They run on for now: all are asked to stop when nothing else is to be done before.
                for tid in tids:
                    if _seize(pid, tid):
                        news = True
                        frozen.processes[pid] = process
                        asked[tid] = process
                        process.expect(tid)
                        continue
                    if tid not in ended:
                        news = True  # it may have made others before it ended
                        ended.add(tid)
                    if pid not in frozen.processes and _has_ended(pid):
                        zombies.append(pid)
        finally:
            _take_in(frozen, asked, deadline)
        for pid in [pid for pid, process in frozen.processes.items() if not process.tasks]:
            frozen.processes.pop(pid).abandon()  # all of it has ended before it could be stopped
        if not news or (before is not None and wanted >= _MANY and _all(frozen, wanted, before)):
            return zombies
        # A machine that stood still itself (a virtual one that was moved) says nothing about the job.
        if looks >= _LOOKS and time.monotonic() > deadline:
            raise CheckpointFailed("the job makes new processes faster than they can be stopped; try again")


def _all(frozen: Frozen, wanted: int, before: proc.Population) -> bool:
    """Was the first look at a tree enough? All that it showed have stopped (`wanted` threads), and on the whole machine
    nobody was born or has gone since `before`."""
    stopped = sum(len(process.tasks) for process in frozen.processes.values())
    return stopped == wanted and frozen.processes.keys() >= set(frozen.found) and proc.population() == before


def _take_in(frozen: Frozen, asked: dict[int, LivingProcess], deadline: float) -> None:
    """Stop threads that were seized (by tid), and take them in; also where one of them does not stop, since who is not
    taken in is not let go. Empties `asked`.

    All are asked before the first is waited for, so that they come to their stops at the same time. Then nothing is
    done but what must be: until then, our own death would let a program see the EINTR of our stop.
    """
    if not asked:
        return
    trouble: CheckpointFailed | None = None
    frozen.learnings.append(Learning([(tid, process.pid, process.status_file(tid)) for tid, process in asked.items()]))
    stops = Stops(asked)
    ranks, processes = {tid: rank for rank, tid in enumerate(asked)}, set(asked.values())
    frozen.since = frozen.since or time.perf_counter()
    stops.ask()
    for look in range(_YIELDS):
        if look:
            os.sched_yield()
        for tid, status, regs in stops.look():
            stop = _stop_signal(status)
            if stop is None:
                _stop(frozen, asked, tid, deadline, status)
            else:
                _take(asked.pop(tid), tid, stop, regs)
        if not stops.left:
            break
    while asked:
        try:
            _stop(frozen, asked, next(iter(asked)), deadline)
        except CheckpointFailed as error:
            trouble = error
    for process in processes:
        process.tasks.sort(key=lambda task: ranks.get(task.tid, -1))  # not as they came to their stops: see `leader`
    if trouble is not None:
        raise trouble


def _look_at_stops(frozen: Frozen, deadline: float) -> None:
    """Who was found in a group stop may have been told to go on (SIGCONT) by others before these were stopped: now that
    nobody runs any more, each of them is asked once more whether it is in one. No instruction is executed meanwhile."""
    for process in frozen.processes.values():
        for task in process.tasks:
            if task.stop_signal:
                try:
                    ptrace.request(ptrace.LISTEN, task.tid)
                    ptrace.request(ptrace.INTERRUPT, task.tid)
                    task.stop_signal = _await_stop(process.pid, task.tid, deadline) or 0
                except ProcessLookupError:
                    pass  # killed where it stood, as `_settle` will see


def _has_ended(pid: int) -> bool:
    """Is it a zombie? A leader that has exited while other threads live looks like one, and is none."""
    try:
        return proc.stat(pid).state in "ZX" and len(proc.threads(pid)) == 1
    except OSError:
        return False  # it was waited for


def _stop(
    frozen: Frozen, asked: dict[int, LivingProcess], tid: int, deadline: float, status: int | None = None
) -> None:
    """Take in a thread that was asked to stop, once it has, and unless it has ended. status: what a wait has told of it
    already."""
    process = asked.pop(tid)

    def held_up() -> None:
        _let_vfork_child_go(frozen, asked, process.pid, tid, deadline)

    stop = _await_stop(process.pid, tid, deadline, held_up, status)
    if stop is None:
        return
    try:
        _take(process, tid, stop, ptrace.get_regs(tid))
    except ProcessLookupError:
        pass  # killed where it stood


def _take(process: LivingProcess, tid: int, stop: int, regs: ptrace.Regs) -> None:
    """A thread has come to its stop: see `_await_stop`."""
    task = process.add(tid, regs)
    task.stop_signal = stop
    try:
        _undo_eintr(process.pid, task)
    except (ProcessLookupError, FileNotFoundError):
        pass  # killed where it stood


def _let_vfork_child_go(
    frozen: Frozen, asked: dict[int, LivingProcess], pid: int, tid: int, deadline: float
) -> None:  # fmt: skip
    """A thread that waits in vfork(2) stops only once its child has executed a program, or ended: a child that we have
    asked to stop goes on until then. The next look finds it again."""
    try:
        if proc.state(pid, tid) != "D":
            return
    except OSError:
        return
    for child in proc.children_of_thread(pid, tid):
        process = frozen.processes.get(child)
        if process is not None and kcmp.shares_memory(pid, child):
            for one in [one for one, its in asked.items() if its is process and one in asked]:
                _stop(frozen, asked, one, deadline)
            frozen._detach(child)


def _seize(pid: int, tid: int) -> bool:
    """Attach; False if the thread is gone."""
    try:
        ptrace.request(ptrace.SEIZE, tid)
        return True
    except ProcessLookupError:
        return False
    except PermissionError:
        try:
            fields = proc.status(pid, tid)
        except OSError:
            return False
        if fields["State"][0] in "ZX":
            return False
        name = fields["Name"]
        tracer = int(fields.get("TracerPid", "0"))
        if tracer:
            raise Refused(
                [
                    Refusal(
                        pid, name, f"is being traced by process {tracer} ({proc.comm(tracer)})", "end the tracer first"
                    )
                ]
            ) from None
        raise Refused([Refusal(pid, name, "may not be traced by this user", why_not_traced(fields))]) from None


def why_not_traced(fields: Mapping[str, str]) -> str:
    """The way out where the kernel forbids attaching to a process. fields: its /proc/PID/status."""
    if os.geteuid() != 0 and int(fields["Uid"].split()[0]) != os.geteuid():
        return "it belongs to another user: do this as root"
    try:
        scope = int(proc.text("/proc/sys/kernel/yama/ptrace_scope"))
    except OSError:
        scope = 0
    if scope:
        return f"kernel.yama.ptrace_scope is {scope}: start it with `torpor run`"
    return "it is set-user-ID or not dumpable: do this as root"


def _stop_signal(status: int) -> int | None:
    """Of a thread that stands in the stop that it was asked for: the signal of the group stop that it is in, 0 for
    none. None where it stands in another one, or has ended."""
    if status >> 16 != ptrace.EVENT_STOP or not os.WIFSTOPPED(status):
        return None
    number = os.WSTOPSIG(status)
    return number if number in STOP_SIGNALS else 0


def _await_stop(
    pid: int,
    tid: int,
    deadline: float,
    held_up: Callable[[], None] = lambda: None,
    known: int | None = None,
) -> int | None:
    """Wait until a seized thread stands in a stop where nothing is about to be delivered.

    held_up: called now and then while it does not come to a stop.  known: what a wait has told of it already. Returns
    the signal of the group stop it is in, 0 for none, None if it ended.
    """
    looks, pause = 0, 0.0
    while True:
        try:
            status, known = known if known is not None else ptrace.poll(tid), None
        except ChildProcessError:
            return None
        if status is None:
            looks += 1
            if looks <= _YIELDS:
                os.sched_yield()
                continue
            if time.monotonic() > deadline:
                raise CheckpointFailed(_stuck(pid, tid))
            pause = min(pause + 0.00005, 0.002)
            held_up()
            time.sleep(pause)
            continue
        if not os.WIFSTOPPED(status):
            return None
        stop = _stop_signal(status)
        if stop is not None:
            return stop
        # A signal was on its way: it is delivered now, as it would have been without us; the stop that we asked for
        # is still pending and follows before the program's next instruction.
        number = os.WSTOPSIG(status)
        ptrace.request(ptrace.CONT, tid, 0, number if not status >> 16 else 0)


def _stuck(pid: int, tid: int) -> str:
    """One line for a task that does not stop."""
    try:
        state = proc.stat(pid, tid).state
        where = proc.text(f"/proc/{pid}/task/{tid}/wchan") or "?"
    except OSError:
        state, where = "?", "?"
    thread = f", thread {tid}" if tid != pid else ""
    return (
        f"process {pid} ({proc.comm(pid)}{thread}) does not stop: state {state} in {where}; "
        "it waits for a device or for a vfork child; try again later"
    )


def _settle(process: LivingProcess, facts: Mapping[int, Facts], deadline: float) -> None:
    """Take in what there is to know of a process once nothing runs any more, and mend what stopping did to the
    registers of its threads, before anything else looks at them."""
    process.learn(facts)
    tails = {start for start, _ in padding.tails(process.areas)}
    sequences = in_sequences(process)
    ours: list[int] | None = None
    for task in process.tasks:
        if ours is None and task.regs.rip & -PAGE in tails:
            ours = [slot for slot in process.places() if process.get(slot, len(MAGIC)) == MAGIC]
        for slot in ours or ():
            tries = 0
            while slot <= task.regs.rip < slot + SIZE:
                # A tracer of ours was killed and this thread is still on its way home: let it arrive.
                tries += 1
                if tries > 200 or time.monotonic() > deadline:
                    raise CheckpointFailed(f"process {process.pid} is still recovering from a killed torpor; try again")
                ptrace.request(ptrace.CONT, task.tid)
                time.sleep(0.0005)
                ptrace.request(ptrace.INTERRUPT, task.tid)
                if _await_stop(process.pid, task.tid, deadline) is None:
                    raise ProcessLookupError
                task.look()
                sequences.add(task.tid)  # perhaps it stands in one by now
        abort = rseq_abort(process, task) if task.tid in sequences else 0
        if abort:
            task.regs.rip = abort
            ptrace.set_regs(task.tid, task.regs)


def _undo_eintr(pid: int, task: Task) -> None:
    """Make a call that returns EINTR only because we stopped it start again. Done at once: until then, our own death
    would let the program see the EINTR."""
    if task.result == -EINTR and task.in_call in EINTR_CALLS and not _deliverable(pid, task.tid):
        task.regs.rax = task.regs.orig_rax
        task.regs.orig_rax = NOT_IN_CALL
        task.regs.rip -= 2
        ptrace.set_regs(task.tid, task.regs)


def _deliverable(pid: int, tid: int) -> bool:
    """Is a signal pending for which the thread is about to run a handler? (One that is ignored is only queued
    because the thread is traced, and interrupts nothing.)"""
    fields = proc.status(pid, tid)
    waiting = int(fields["SigPnd"], 16) | int(fields["ShdPnd"], 16)
    return bool(waiting & int(fields["SigCgt"], 16) & ~int(fields["SigBlk"], 16))
