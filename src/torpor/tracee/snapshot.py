"""Copy-on-write copies of stopped processes: their memory can be read from these while the processes go on.

A process makes its copy itself, as fork(2) would. What must not be seen of it:

- It is nobody's child. An intermediate (CLONE_VM, CLONE_VFORK) makes it and ends, and is waited for in the same breath,
  so that the copy falls to whoever takes in orphans. Neither sends a signal to the process when it ends.
- It has no descriptors (an end of a pipe that it kept open would be missed), a session of its own (Ctrl-C does not
  reach it), another working folder, a name by which it is known (model/snapshot.py): all of that from its birth, since
  it is the intermediate that gives these up. And none of the memory that it was told to drop (a segment would count as
  attached), before anything goes on.
- It never executes an instruction of the program, and gets no signals but those that cannot be blocked.
- Where memory is short it is killed first (oom_score_adj).

So all of it is one way of the process through our code (`begin`, `finish`), without a stop in between. A copy waits to
be traced meanwhile, and ends of its own accord if nobody comes (PATIENCE). It is found and traced when the job goes on
(`adopt`), and from then on it stands still wherever it is not sent to one of our calls, and dies with us
(PTRACE_O_EXITKILL).

Where it is asked for, the intermediate makes an adviser as well: a task that has the very memory of the process, and
gives advice on it in its name (madvise(2)) which nobody else may give. It is made like a copy, and traced before the
process goes on, since our code is gone by then: it makes its calls where the kernel's own code (vdso) has one.

What the copy lacks or has otherwise: memory marked MADV_DONTFORK or MADV_WIPEONFORK; of shared memory it has the very
same, which changes; locked memory is not locked. Source: fork(2), madvise(2), kernel/fork.c (dup_mmap).

Whoever waits for any child of ours meanwhile may take an end that is waited for here: that does no harm.
"""

from __future__ import annotations

import errno
import os
import signal
import time
from collections.abc import Iterator, Sequence

from torpor.linux import clone, newborn, ptrace, uio
from torpor.linux.arch.x86_64 import NR
from torpor.linux.arch.x86_64_code import SIZE, SPLIT, Split
from torpor.model.snapshot import COMM
from torpor.named_tuple import NamedTuple
from torpor.tracee.batch import Batch, laid_out
from torpor.tracee.call import ANY, Call, In, call
from torpor.tracee.process import LivingProcess
from torpor.tracee.task import ALL_BLOCKED, HEAD, NOT_IN_CALL, Gone, mask_in

Range = tuple[int, int]
"""(address, bytes)"""

_SYSCALL = b"\x0f\x05"
_ADVISER = clone.VM | clone.FILES
_TOLD = 2
"""Seconds in which it has to say that it may be traced, where that is asked for."""
_CLOSE_RANGE_UNSHARE, _PR_SET_NAME, _MADV_DONTNEED = 2, 15, 4
_MOST_CALLS = 400
_FIRST_TO_GO = b"1000"
_GONE = "its copy was killed"
_WHY = {
    errno.EAGAIN: "it may have no more processes (RLIMIT_NPROC, or a limit of its control group)",
    errno.ENOMEM: "there is no memory for a copy of it",
}


class Copy(NamedTuple):
    """pid: the host's. scratch: memory that the process did not have before it was steered. slots: where our code is;
    it was not there either. code: its parts, with which the copy makes the calls of a table, which is at `table`.
    adviser: host pid of the task that has the process' memory, 0 if there is none; gate: where it makes its calls."""

    pid: int
    scratch: Range
    slots: tuple[int, ...]
    code: Split
    table: int
    adviser: int = 0
    gate: int = 0

    def code_ends(self) -> Iterator[int]:
        """Addresses of the first and last bytes of our code."""
        for slot in self.slots:
            yield from (slot, slot + SIZE - 1)

    def end(self) -> None:
        """It, and its adviser, are gone afterwards."""
        _end(self.pid)
        if self.adviser:
            _end(self.adviser)


class Snapshot:
    """The copies of a job's processes. A context manager: at its end they are gone.

    made: the processes (host pids) that have one.  copies: by these, once they are adopted.
    """

    def __init__(self) -> None:
        self.made: set[int] = set()
        self.copies: dict[int, Copy] = {}
        self._makings: list[_Making] = []
        self._orphans: list[_Making] = []
        """Those whose copies are made, and not adopted yet."""
        self._before = -1
        """The last number that was given to anybody before the first copy was made, if that has to be known."""
        self._code: dict[int, list[tuple[int, bytes]]] = {}
        """By pid: what was taken out."""
        self._trouble: Exception | None = None

    def __enter__(self) -> Snapshot:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def begin(self, process: LivingProcess, dropped: Sequence[Range] = (), adviser: bool = False) -> None:
        """Let a process begin to make a copy of itself, which goes on while we turn to others: the kernel copies page
        tables meanwhile. Nothing can be asked in it before `finish`. dropped: memory that the copy is to be without.
        adviser: is there to be one, if there can be?"""
        making = _Making(process, dropped, _gate(process) if adviser else 0)
        if self._before < 0 and newborn.namespaced(process.status):
            self._before = newborn.last()
        try:
            making.set_out()
        except OSError as error:
            self._trouble = error  # the others are to come to their ends first
        else:
            self._makings.append(making)

    def finish(self) -> dict[int, str]:
        """Wait for all copies. Which could not be made (pid), and why.

        Raises Gone or OSError if a process has ended meanwhile; then there are none.
        """
        makings, self._makings = self._makings, []
        for making in makings:
            try:
                making.end()
            except (Gone, OSError) as error:
                self._trouble = error
        why = {each.process.pid: each.why for each in makings if each.why}
        self._orphans = [each for each in makings if each.born.number]
        try:
            if self._trouble is not None:
                raise self._trouble
            why |= dict.fromkeys(self._take_in([each for each in makings if each.watched and not each.why]), _GONE)
            self._drop([each for each in makings if each.drop])
        except (Gone, OSError):
            for each in makings:
                if each.process.pid not in self.copies:
                    each.give_up()
            self.close()
            raise
        finally:
            self._trouble = None
        self.made = {each.process.pid for each in makings} - why.keys()
        return why

    def adopt(self) -> list[int]:
        """The copies are ours from now on: to be called as soon as the job goes on, by the thread that made them, and
        nobody else waits for our children meanwhile. The processes (host pids) whose copies have been killed."""
        orphans, self._orphans = self._orphans, []
        found = self._find(orphans)
        seized = [pid for pid in found.values() if _seize(pid)]
        standing = {pid for pid in seized if _stopped(pid)}
        for making in orphans:
            pid = found.get(making.born, 0)
            making.copy = pid if pid in standing else 0
        return self._take_in(orphans)

    def _take_in(self, makings: Sequence[_Making]) -> list[int]:
        """The processes (host pids) whose copies are not there, or not to be had."""
        lacking = []
        for making in makings:
            if making.copy and _first_to_go(making.copy):
                self.copies[making.process.pid] = making.taken_in()
            else:
                making.give_up()
                lacking.append(making.process.pid)
        return lacking

    def _drop(self, makings: Sequence[_Making]) -> None:
        """Copies give up what they are to be without. Raises OSError."""
        for making in makings:
            if making.process.pid in self.copies:
                self._make(making.process.pid, [call(NR.munmap, *one, accept=ANY) for one in making.drop])

    def _find(self, makings: Sequence[_Making]) -> dict[newborn.Born, int]:
        return newborn.find(self._before, COMM, [each.born for each in makings])

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
        for slot, code in self._code.pop(pid, ()):
            uio.force_write(self.copies[pid].pid, slot, code)
        self._make(pid, [call(NR.madvise, *one, _MADV_DONTNEED, accept=ANY) for one in ranges])

    def _make(self, pid: int, calls: Sequence[Call]) -> None:
        """Have a copy make calls, whatever comes of them. Raises OSError if it is gone."""
        copy = self.copies[pid]
        for at in range(0, len(calls), _MOST_CALLS):
            batch = Batch(copy.table, calls[at : at + _MOST_CALLS])
            uio.write(copy.pid, copy.table, batch.image)
            regs = ptrace.get_regs(copy.pid)
            regs.orig_rax, regs.rip, regs.rbp = NOT_IN_CALL, copy.code.loop, copy.code.trap
            regs.r12, regs.r13 = copy.table, batch.count
            ptrace.set_regs(copy.pid, regs)
            ptrace.request(ptrace.CONT, copy.pid)
            if not _stands(copy.pid):
                raise ProcessLookupError(errno.ESRCH, _GONE)

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
        orphans, self._orphans = self._orphans, []
        for pid in self._find(orphans).values():
            _end(pid)
        self.release()
        for copy in self.copies.values():
            copy.end()
        self.copies.clear()
        self.made.clear()


class _Making:
    """A process that makes a copy of itself. drop, gate: see `Snapshot.begin`, Copy.  watched: with such ones something
    is to be done before the job goes on, so they are traced from their birth.  born: a copy that is not, while it is an
    orphan.  copy, adviser: host pids, once we have them; 0 for none.  why: the reason for which there is no copy."""

    def __init__(self, process: LivingProcess, drop: Sequence[Range], gate: int) -> None:
        self.process, self.drop, self.gate = process, drop, gate
        self.watched = bool(drop or gate)
        self.born = newborn.Born(0, None)
        self.copy = self.adviser = 0
        self.why = ""

    def set_out(self) -> None:
        """Let the process go. Raises OSError."""
        process = self.process
        self._namespace = newborn.namespace(process.pid, process.status)
        self._seat, self._code = process.split()
        self._slots = process.slots
        words = self._seat.scratch + HEAD
        self._table = words + SPLIT.size
        (batch,) = laid_out(self._table, self._seat.size, _APART)
        flags = _ADVISER if self.gate else 0
        process.put(words, SPLIT.pack(0, 0, 0, batch.count, flags, ALL_BLOCKED, mask_in(self._seat)) + batch.image)
        if self.watched:
            self._watch(ptrace.O_TRACEVFORK)
        process.send_home(words, self._code)

    def end(self) -> None:
        """The process has come home; our code is still there (LivingProcess.unpark). Raises Gone, OSError."""
        try:
            there = self.watched and not self._see_them_born()
            regs = self.process.come_home(there)
            if self.watched:
                self._watch(0)
        except BaseException:
            self.give_up()
            raise
        copy, middle = _signed(regs.r12), _signed(regs.r13)
        if middle < 0 or copy < 0:
            error = -min(middle, copy)
            self.why = _WHY.get(error, f"no copy of it can be made ({os.strerror(error)})")
        elif not copy or (self.watched and not self.copy):
            self.why = _GONE
        elif not self.watched:
            self.born = newborn.Born(copy, self._namespace)
        if self.why:
            self.give_up()

    def _watch(self, options: int) -> None:
        ptrace.request(ptrace.SETOPTIONS, self.process.leader.tid, 0, self.process.leader.options | options)

    def _see_them_born(self) -> bool:
        """Wait for the copy, and for the adviser, which stand still where they are born, and die with us. False if the
        process has come home without anything being born."""
        task = self.process.leader
        while (status := ptrace.wait(task.tid)) >> 16 != ptrace.EVENT_VFORK:
            if not os.WIFSTOPPED(status):
                raise Gone(task.tid, status)
            if not status >> 16 and task.at_end(status, self._seat):
                return False
            ptrace.request(ptrace.CONT, task.tid)
            task.in_signal_stop = False
        middle = ptrace.event_message(task.tid)
        ptrace.request(ptrace.CONT, task.tid)
        born = []
        if _stopped(middle):
            options = task.options | ptrace.O_EXITKILL | ptrace.O_TRACECLONE
            ptrace.request(ptrace.SETOPTIONS, middle, 0, options)
            ptrace.request(ptrace.CONT, middle)
            while os.WIFSTOPPED(status := ptrace.wait(middle)):
                if status >> 16 == ptrace.EVENT_CLONE:
                    born.append(ptrace.event_message(middle))
                ptrace.request(ptrace.CONT, middle)
        self.copy, self.adviser, *_ = (*[pid if _stopped(pid) else 0 for pid in born], 0, 0)
        return True

    def taken_in(self) -> Copy:
        """Its copy."""
        scratch = self._seat.scratch, self._seat.size
        return Copy(self.copy, scratch, self._slots, self._code, self._table, self.adviser, self.gate)

    def give_up(self) -> None:
        """Neither is needed any more."""
        for pid in filter(None, (self.copy, self.adviser)):
            _end(pid)
        self.copy = self.adviser = 0


def _signed(word: int) -> int:
    return word - (1 << 64) if word >> 63 else word


_APART = [
    call(NR.setsid),
    call(NR.prctl, _PR_SET_NAME, In(COMM.encode() + b"\0"), 0, 0, 0),
    call(NR.chdir, In(b"/\0")),
    call(NR.close_range, 0, 0xFFFFFFFF, _CLOSE_RANGE_UNSHARE),
]
"""What the intermediate does before it makes the copy. Only the last of it can fail."""


def _gate(process: LivingProcess) -> int:
    """Where the kernel's own code in a process makes a system call; 0 if it has none."""
    for area in process.areas:
        if area.path == "[vdso]":
            at = process.read(area.start, area.size).find(_SYSCALL)
            return area.start + at if at >= 0 else 0
    return 0


def _seize(pid: int) -> bool:
    """Trace what waits for it, and ask it to stop; False if it is gone, or may not be traced: then it is ended."""
    until = time.monotonic() + _TOLD
    while True:
        try:
            ptrace.request(ptrace.SEIZE, pid, 0, ptrace.O_EXITKILL)
            ptrace.request(ptrace.INTERRUPT, pid)
            return True
        except ProcessLookupError:
            return False
        except OSError:
            # The Yama module has to be told by itself that we may, and it may not have come to that yet.
            if time.monotonic() > until:
                _kill(pid)
                return False
            os.sched_yield()


def _stopped(pid: int) -> bool:
    """Wait until it stands; False if it was killed."""
    try:
        return os.WIFSTOPPED(ptrace.wait(pid))
    except ChildProcessError:
        return False


def _stands(pid: int) -> bool:
    """Wait until a copy has made its calls; False if it was killed."""
    while True:
        status = ptrace.wait(pid)
        if not os.WIFSTOPPED(status):
            return False
        if os.WSTOPSIG(status) == signal.SIGTRAP and not status >> 16:
            return True
        ptrace.request(ptrace.CONT, pid)


def _first_to_go(pid: int) -> bool:
    """False if it cannot be made so."""
    try:
        fd = os.open(f"/proc/{pid}/oom_score_adj", os.O_WRONLY | os.O_CLOEXEC)
        try:
            return os.write(fd, _FIRST_TO_GO) > 0
        finally:
            os.close(fd)
    except OSError:
        return False


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
