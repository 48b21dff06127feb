"""Copy-on-write copies of stopped processes: their memory can be read from these while the processes go on.

A process makes its copy itself, as fork(2) would. What must not be seen of it:

- It is nobody's child. An intermediate (CLONE_VM, CLONE_VFORK) makes it and ends, and is waited for in the same breath,
  so that the copy falls to whoever takes in orphans. Neither sends a signal to the process when it ends.
- It has no descriptors (an end of a pipe that it kept open would be missed), a session of its own (Ctrl-C does not
  reach it), another working folder, a name by which it is known (model/snapshot.py), and none of the memory that it was
  told to drop (a segment would count as attached).
- It never executes an instruction of the program: it is born traced, and stands still wherever it is not sent to one of
  our calls. It dies with us (PTRACE_O_EXITKILL, which it has from its birth); in the one moment in which nobody would
  trace it, it ends of its own accord.
- Where memory is short it is killed first (oom_score_adj).

Where it is asked for, the intermediate makes an adviser as well: a task that has the very memory of the process, and
gives advice on it in its name (madvise(2)) which nobody else may give. It is made like a copy, and stands still but for
that; our code is gone by then, so that it makes its calls where the kernel's own code (vdso) has one.

What the copy lacks or has otherwise: memory marked MADV_DONTFORK or MADV_WIPEONFORK; of shared memory it has the very
same, which changes; locked memory is not locked. Source: fork(2), madvise(2), kernel/fork.c (dup_mmap).

Whoever waits for any child of ours meanwhile may take an end that is waited for here: that does no harm.
"""

from __future__ import annotations

import errno
import os
import signal
import struct
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import TypeAlias

from torpor.linux import clone, ptrace, uio
from torpor.linux.arch.x86_64 import NR
from torpor.linux.arch.x86_64_code import SIZE
from torpor.model.snapshot import COMM
from torpor.named_tuple import NamedTuple
from torpor.tracee.batch import Batch, laid_out
from torpor.tracee.call import ANY, Call, In, call
from torpor.tracee.process import LivingProcess
from torpor.tracee.task import ALL_BLOCKED, NOT_IN_CALL, Gone

Range = tuple[int, int]
"""(address, bytes)"""

_Steps: TypeAlias = Generator[int, int, None]
"""Something that is done piece by piece: it yields whom to wait for (tid), and is sent what the wait has told."""

_SYSCALL = b"\x0f\x05"
_FIRST = clone.VM | clone.VFORK | clone.FILES | clone.FS
_SECOND = clone.FILES
_AT_FDCWD = -100
_CLOSE_RANGE_UNSHARE, _PR_SET_NAME, _MADV_DONTNEED = 2, 15, 4
_MOST_DROPPED = 400
_LOOKED_AT = 3
"""So many copies in the making are looked at whenever another one begins: it takes a microsecond, and the others will
hardly have come further."""
_WHY = {
    errno.EAGAIN: "it may have no more processes (RLIMIT_NPROC, or a limit of its control group)",
    errno.ENOMEM: "there is no memory for a copy of it",
}


class Copy(NamedTuple):
    """pid: the host's. scratch: memory that the process did not have before it was steered. slots: where our code is;
    it was not there either. rows: its part that makes the calls of a table, which is at `table`.  adviser: host pid of
    the task that has the process' memory, 0 if there is none; gate: where it makes its calls."""

    pid: int
    scratch: Range
    slots: tuple[int, ...]
    rows: int
    table: int
    adviser: int = 0
    gate: int = 0

    def code_ends(self) -> Iterator[int]:
        """Addresses of the first and last bytes of our code."""
        for slot in self.slots:
            yield from (slot, slot + SIZE - 1)


class Snapshot:
    """The copies of a job's processes, by the host's pids of these. A context manager: at its end they are gone."""

    def __init__(self) -> None:
        self.copies: dict[int, Copy] = {}
        self._makings: list[_Making] = []
        self._trouble: Exception | None = None
        self._code: dict[int, list[tuple[int, bytes]]] = {}
        """By pid: what was taken out."""

    def __enter__(self) -> Snapshot:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def begin(self, process: LivingProcess, dropped: Sequence[Range] = (), adviser: bool = False) -> None:
        """Let a process begin to make a copy of itself, which goes on while we turn to others: the kernel copies page
        tables meanwhile. Nothing can be asked in it before `finish`. dropped: memory that the copy is to be without.
        adviser: is there to be one, if there can be?"""
        making = _Making(process, dropped, _gate(process) if adviser else 0)
        self._makings.append(making)
        self._go_on(making, None)
        self._look(_LOOKED_AT)

    def finish(self) -> dict[int, str]:
        """Wait for all copies. Which could not be made (pid), and why.

        Raises Gone or OSError if a process has ended meanwhile; then there are none.
        """
        while left := [making for making in self._makings if not making.over]:
            if not self._look(len(left)):
                self._hear(left[0], ptrace.wait)
        makings, self._makings = self._makings, []
        self.copies.update((each.process.pid, each.copy) for each in makings if each.copy is not None)
        trouble, self._trouble = self._trouble, None
        if trouble is not None:
            self.close()
            raise trouble
        return {each.process.pid: each.why for each in makings if each.copy is None}

    def _look(self, most: int) -> bool:
        """Take in what those that have been waited for longest, so many of them, have come to meanwhile. Anything?"""
        moved = False
        for making in [making for making in self._makings if not making.over][:most]:
            while not making.over and self._hear(making, ptrace.poll):
                moved = True
        return moved

    def _hear(self, making: _Making, wait: Callable[[int], int | None]) -> bool:
        """Has one come any further?"""
        try:
            status = wait(making.awaited)
        except OSError as error:
            self._fail(making, error)
            return True
        if status is not None:
            self._go_on(making, status)
        return status is not None

    def _go_on(self, making: _Making, status: int | None) -> None:
        try:
            making.go_on(status)
        except Exception as error:  # whatever it is, the others are brought to their ends first
            self._fail(making, error)

    def _fail(self, making: _Making, error: Exception) -> None:
        self._trouble = error
        making.give_up()

    def clean(self) -> None:
        """Take our code out of the copies. To be called before they are read, and may wait until the job goes on."""
        for pid, copy in self.copies.items():
            self._code[pid] = [(slot, uio.force_read(copy.pid, slot, SIZE)) for slot in copy.slots]
            for slot in copy.slots:
                uio.force_write(copy.pid, slot, bytes(SIZE))

    def drop(self, pid: int, ranges: Sequence[Range]) -> None:
        """The copy of that process gives up private memory, which must not be read again; nor may the pages that our
        code was in, since it is put back for this. Nobody else waits for our children meanwhile: he would take away the
        stop that we wait for. Raises OSError if the copy is gone."""
        copy = self.copies[pid]
        for slot, code in self._code.pop(pid, ()):
            uio.force_write(copy.pid, slot, code)
        for at in range(0, len(ranges), _MOST_DROPPED):
            batch = Batch(
                copy.table,
                [call(NR.madvise, *one, _MADV_DONTNEED, accept=ANY) for one in ranges[at : at + _MOST_DROPPED]],
            )
            uio.write(copy.pid, copy.table, batch.image)
            regs = ptrace.get_regs(copy.pid)
            regs.orig_rax, regs.rip = NOT_IN_CALL, copy.rows
            regs.r12, regs.r13 = copy.table, batch.count
            ptrace.set_regs(copy.pid, regs)
            ptrace.request(ptrace.CONT, copy.pid)
            if not _stands(copy.pid):
                raise ProcessLookupError(errno.ESRCH, "its copy was killed")

    def advise(self, pid: int, address: int, size: int, advice: int) -> None:
        """Have the adviser of a process give advice on its memory (madvise(2)). To be called by the thread that made
        it, and nobody else waits for our children meanwhile. Raises OSError, ProcessLookupError if it was killed."""
        copy = self.copies[pid]
        regs = ptrace.get_regs(copy.adviser)
        regs.rax, regs.rdi, regs.rsi, regs.rdx = NR.madvise, address, size, advice
        regs.orig_rax, regs.rip = NOT_IN_CALL, copy.gate
        ptrace.set_regs(copy.adviser, regs)
        for _ in ("its beginning", "its end"):
            ptrace.request(ptrace.SYSCALL, copy.adviser)
            status = ptrace.wait(copy.adviser)
            if not os.WIFSTOPPED(status) or os.WSTOPSIG(status) & 0x7F != signal.SIGTRAP:
                raise ProcessLookupError(errno.ESRCH, "its adviser was killed")
        error = -ptrace.get_regs(copy.adviser).rax & (1 << 64) - 1
        if error:
            raise OSError(error, os.strerror(error))

    def release(self) -> None:
        """The copies are not needed any more. They end meanwhile: the kernel takes their memory apart, which takes some
        10 ms for each GiB, on another processor if there is one; `close` waits for it."""
        for copy in self.copies.values():
            _kill(copy.pid)

    def close(self) -> None:
        """End the copies, and the advisers."""
        self.release()
        for copy in self.copies.values():
            _end(copy.pid)
            if copy.adviser:
                _end(copy.adviser)
        self.copies.clear()


class _Making:
    """One copy in the making. awaited: whose next stop, or end, is waited for (tid). over: there is nothing more to be
    done; `copy` is there, or `why` not. gate: see Copy; 0 if no adviser is wanted."""

    def __init__(self, process: LivingProcess, drop: Sequence[Range], gate: int) -> None:
        self.process = process
        self.over = False
        self.awaited = 0
        self.copy: Copy | None = None
        self.why = ""
        self._task = process.leader
        self._drop = drop
        self._gate = gate
        self._middle = self._child = self._adviser = 0
        self._steps = self._make()

    def go_on(self, status: int | None) -> None:
        """The next step, when that which was waited for has come. status: what the wait has told; None to begin.
        Raises Gone, OSError."""
        try:
            self.awaited = next(self._steps) if status is None else self._steps.send(status)
        except StopIteration:
            self.over = True

    def _make(self) -> _Steps:
        """All of it: what is yielded is waited for. The process goes on making the copy between the steps, and others
        make theirs."""
        self._set_out()
        if not (yield from self._meet()):
            return
        if (yield from self._send()):
            yield from self._end_of_middle()
        yield from self._seated_again()
        self._seated(0)
        if self._adviser and not (yield from _stopped(self._adviser)):
            self._adviser = 0
        try:
            yield from self._stand()
        finally:
            if self.copy is None and self._adviser:
                _end(self._adviser)

    def _set_out(self) -> None:
        """Let the process go."""
        process, task = self.process, self._task
        self._seat, self._split = process.split()
        self._words = self._seat.scratch + 64
        (self._batch,) = laid_out(self._words + 64, self._seat.size, _calls(self._drop))
        process.put(self._words, bytes(64) + self._batch.image)
        ptrace.request(ptrace.SETOPTIONS, task.tid, 0, task.options | ptrace.O_TRACEVFORK | ptrace.O_TRACECLONE)
        task.set_out(self._seat, self._split.entry, r12=self._words, r13=_FIRST, r14=_SECOND)
        ptrace.request(ptrace.CONT, task.tid)
        task.in_signal_stop = False

    def _meet(self) -> Generator[int, int, bool]:
        """The intermediate is there: what it makes is to die with us. False if it could not be made."""
        task = self._task
        while True:
            status = yield task.tid
            if not os.WIFSTOPPED(status):
                raise Gone(task.tid, status)
            if status >> 16 == ptrace.EVENT_VFORK:
                break
            if not status >> 16 and task.at_end(status, self._seat):
                self._seated(1)
                return False
            ptrace.request(ptrace.CONT, task.tid)
            task.in_signal_stop = False
        self._middle = ptrace.event_message(task.tid)
        ptrace.request(ptrace.CONT, task.tid)
        if os.WIFSTOPPED((yield self._middle)):
            options = task.options | ptrace.O_EXITKILL | ptrace.O_TRACECLONE
            ptrace.request(ptrace.SETOPTIONS, self._middle, 0, options)
            ptrace.set_mask(self._middle, ALL_BLOCKED)
            ptrace.request(ptrace.CONT, self._middle)
        else:
            self._middle = 0
        return True

    def _send(self) -> Generator[int, int, bool]:
        """The copy is there: it is sent to its calls. False if the intermediate is not there any more."""
        while self._middle:
            status = yield self._middle
            if not os.WIFSTOPPED(status):
                self._middle = 0
            elif status >> 16 == ptrace.EVENT_CLONE:
                break
            else:
                ptrace.request(ptrace.CONT, self._middle)
        else:
            return False
        self._child = ptrace.event_message(self._middle)
        if self._gate:
            yield from self._make_adviser()
        if self._middle:
            ptrace.request(ptrace.CONT, self._middle)
        yield from self._set_to_work(self._child, self._batch.count)
        if self._adviser:
            yield from self._set_to_work(self._adviser, len(_ALWAYS))
        return self._middle != 0

    def _make_adviser(self) -> _Steps:
        """The intermediate, which is in the call by which it made the copy, makes the same once more, with other flags;
        then it is as if nothing had been."""
        if not (yield from self._on()):
            return
        regs = ptrace.get_regs(self._middle)
        answer = regs.rax
        regs.rax, regs.rdi, regs.orig_rax, regs.rip = NR.clone, clone.VM, NOT_IN_CALL, regs.rip - len(_SYSCALL)
        ptrace.set_regs(self._middle, regs)
        stop = yield from self._on()
        if stop:
            stop = yield from self._on()
        if stop >> 16 == ptrace.EVENT_CLONE:
            self._adviser = ptrace.event_message(self._middle)
            stop = yield from self._on()
        if stop:
            regs = ptrace.get_regs(self._middle)
            regs.rax = answer
            ptrace.set_regs(self._middle, regs)

    def _on(self) -> Generator[int, int, int]:
        """Let the intermediate go to the beginning or the end of its call; what the wait tells, 0 if it was killed."""
        ptrace.request(ptrace.SYSCALL, self._middle)
        status = yield self._middle
        if not os.WIFSTOPPED(status):
            self._middle = 0
            return 0
        return status

    def _set_to_work(self, pid: int, count: int) -> _Steps:
        """Send what was born to the first calls of the table."""
        if os.WIFSTOPPED((yield pid)):
            regs = ptrace.get_regs(pid)
            regs.orig_rax, regs.rip = NOT_IN_CALL, self._split.rows
            regs.r12, regs.r13 = self._words + 64, count
            ptrace.set_regs(pid, regs)
            ptrace.request(ptrace.CONT, pid)

    def _end_of_middle(self) -> _Steps:
        while os.WIFSTOPPED((yield self._middle)):
            ptrace.request(ptrace.CONT, self._middle)
        self._middle = 0

    def _seated_again(self) -> _Steps:
        """The process stands in its seat. Raises Gone."""
        task = self._task
        while True:
            status = yield task.tid
            if not os.WIFSTOPPED(status):
                raise Gone(task.tid, status)
            if not status >> 16 and task.at_end(status, self._seat):
                return
            ptrace.request(ptrace.CONT, task.tid)
            task.in_signal_stop = False

    def _stand(self) -> _Steps:
        """Take the copy in."""
        if not self._child:
            return
        if not (yield from _stopped(self._child)):
            self.why = "its copy was killed"
            return
        try:
            self._set_apart()
        except OSError as error:
            self.why = f"a copy of it cannot be set apart ({error.strerror})"
            _end(self._child)
            return
        scratch = self._seat.scratch, self._seat.size
        self.copy = Copy(
            self._child, scratch, self.process.slots, self._split.rows, self._words + 64, self._adviser, self._gate
        )

    def give_up(self) -> None:
        """The process has ended, or something is wrong that nobody thought of."""
        self.over = True
        self._steps.close()
        for pid in filter(None, (self._middle, self._child, self._adviser)):
            _end(pid)

    def _seated(self, word: int) -> None:
        """The process stands in its seat again. word: the one that would tell of an error."""
        ptrace.request(ptrace.SETOPTIONS, self._task.tid, 0, self._task.options)
        words = struct.unpack("<2q", self.process.get(self._words, 16))
        if words[word] < 0:
            error = -words[word]
            self.why = _WHY.get(error, f"no copy of it can be made ({os.strerror(error)})")
        elif not self._child:
            self.why = "its copy was killed"

    def _set_apart(self) -> None:
        """Its calls are done: did they work? Raises OSError."""
        image = uio.read(self._child, self._words + 64, len(self._batch.image))
        answers = self._batch.answers(image)
        for made, answer in zip(self._batch.calls, answers):
            if answer.error and not made.accept:
                raise OSError(answer.error, os.strerror(answer.error))
        if answers[_WRITTEN].value == len(_FIRST_TO_GO):
            return
        fd = os.open(f"/proc/{self._child}/oom_score_adj", os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(fd, _FIRST_TO_GO)
        finally:
            os.close(fd)


_FIRST_TO_GO = b"1000"
_ALWAYS = (
    call(NR.close_range, 0, 0xFFFFFFFF, _CLOSE_RANGE_UNSHARE),
    call(NR.setsid),
    call(NR.prctl, _PR_SET_NAME, In(COMM.encode() + b"\0"), 0, 0, 0),
    call(NR.chdir, In(b"/\0"), accept=ANY),
)
# It has no descriptors by now, so this one is 0. Where that will not do, it is done from outside. Not for an adviser:
# what has its memory in common with the process would take it along (fs/proc/base.c, __set_oom_adj).
_ADJUST = (
    call(NR.openat, _AT_FDCWD, In(b"/proc/self/oom_score_adj\0"), os.O_WRONLY | os.O_CLOEXEC, accept=ANY),
    call(NR.write, 0, In(_FIRST_TO_GO), len(_FIRST_TO_GO), accept=ANY),
    call(NR.close, 0, accept=ANY),
)
_WRITTEN = len(_ALWAYS) + 1
"""The place of write(2) among all of these."""


def _calls(drop: Sequence[Range]) -> list[Call]:
    """What a copy does before anybody else goes on."""
    return [
        *_ALWAYS,
        *_ADJUST,
        *[call(NR.munmap, address, size, accept=ANY) for address, size in drop[:_MOST_DROPPED]],
    ]


def _gate(process: LivingProcess) -> int:
    """Where the kernel's own code in a process makes a system call; 0 if it has none."""
    for area in process.areas:
        if area.path == "[vdso]":
            at = process.read(area.start, area.size).find(_SYSCALL)
            return area.start + at if at >= 0 else 0
    return 0


def _stopped(pid: int) -> Generator[int, int, bool]:
    """A copy has made its calls; False if it was killed."""
    while True:
        status = yield pid
        if not os.WIFSTOPPED(status):
            return False
        if os.WSTOPSIG(status) == signal.SIGTRAP and not status >> 16:
            return True
        ptrace.request(ptrace.CONT, pid)


def _stands(pid: int) -> bool:
    """Wait until a copy has made its calls; False if it was killed."""
    steps = _stopped(pid)
    next(steps)
    try:
        while True:
            steps.send(ptrace.wait(pid))
    except StopIteration as end:
        return bool(end.value)


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        pass


def _end(pid: int) -> None:
    """Kill and reap. Whoever is the parent, or waits in another thread of ours, may be quicker."""
    try:
        os.kill(pid, signal.SIGKILL)
        while os.WIFSTOPPED(os.waitpid(pid, ptrace.WALL)[1]):
            pass
    except (ProcessLookupError, ChildProcessError):
        pass
