"""A stopped process: its threads, its memory, its descriptors.

`Process` is what services are given, for a job that is being saved as for one that is being recreated. What differs is
how calls are run: see `LivingProcess` here and `StubProcess` in tracee/stub.py.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

from torpor.linux import proc, ptrace, uio
from torpor.linux.arch.x86_64 import NR
from torpor.linux.arch.x86_64_code import GUESTS, SIZE, Split, assemble, assemble_gate, assemble_split
from torpor.linux.libc import syscall
from torpor.model.errors import Refusal, Refused
from torpor.tracee import padding
from torpor.tracee.call import Answer, Call
from torpor.tracee.task import ALL_BLOCKED, NOT_IN_CALL, Seat, Task, quiet_signal

if TYPE_CHECKING:
    from torpor.tracee.stops import Facts

SCRATCH_SIZE = 64 * 1024
_WORD = 4
"""Bytes of a guest's word at the beginning of the scratch memory."""

_MOST_EXPECTED = 128
"""So many threads have their status files opened before they are stopped; we may have more threads than descriptors."""

SLOTS = 64
"""So many places for code are looked for in a process, at most (and looked at after a tracer of ours was killed)."""


class Process:
    """A process all of whose threads are stopped. `pid` is the host's number, `vpid` the one it sees itself.

    tgid: differs from `pid` where the first thread has ended; then `pid` is the number of one that lives.
    """

    def __init__(self, pid: int, vpid: int) -> None:
        self.pid, self.vpid, self.tgid = pid, vpid, pid
        self.tasks: list[Task] = []
        self.waiting: Sequence[bytes] = ()
        """Signals (siginfo) that wait for the process as a whole, when they were `peeked`: a moment of the realtime
        clock, in nanoseconds."""
        self.peeked = 0
        self.fdinfo: Mapping[int, Sequence[str]] = {}
        """The lines of /proc/PID/fdinfo by descriptor, once they have been looked at."""
        self._copies: dict[int, int] = {}
        self._pidfd = -1
        self._comm = ""
        self._stat: proc.Stat | None = None
        self._status: Mapping[str, str] | None = None
        self._areas: list[proc.Area] | None = None
        self._program: str | None = None

    @property
    def leader(self) -> Task:
        """The thread that runs calls for the process: the first one that is alive."""
        return self.tasks[0]

    @property
    def comm(self) -> str:
        """Its name, read once; '?' if it is gone."""
        if not self._comm:
            try:
                self._comm = self.stat.comm
            except OSError:
                self._comm = "?"
        return self._comm

    @property
    def status(self) -> Mapping[str, str]:
        """/proc/PID/status, read once."""
        if self._status is None:
            self._status = proc.status(self.pid, self.leader.tid)
        return self._status

    @property
    def stat(self) -> proc.Stat:
        """/proc/PID/stat, read once."""
        if self._stat is None:
            self._stat = proc.stat(self.pid)
        return self._stat

    @property
    def program(self) -> str:
        """What /proc/PID/exe says, read once."""
        if self._program is None:
            self._program = os.readlink(f"/proc/{self.pid}/exe")
        return self._program

    @property
    def areas(self) -> list[proc.Area]:
        """Its memory areas, looked at once, before any code of ours was in it."""
        if self._areas is None:
            self._areas = proc.maps(self.pid, self.leader.tid)
        return self._areas

    def run(
        self, calls: Sequence[Call], check: bool = True, objects: Callable[[int], int] | None = None
    ) -> list[Answer]:
        """Run system calls in the first thread; see Task.run."""
        return self.leader.run(calls, check, objects)

    def read(self, address: int, size: int) -> bytes:
        """Memory of the process. Raises OSError (EFAULT)."""
        return uio.read(self.leader.tid, address, size)

    def write(self, address: int, data: bytes) -> None:
        """Write memory that the process itself could write. Raises OSError (EFAULT)."""
        uio.write(self.leader.tid, address, data)

    def put(self, address: int, data: bytes) -> None:
        """See tracee.task.Owner."""
        self.write(address, data)

    def get(self, address: int, size: int) -> bytes:
        """See tracee.task.Owner."""
        return self.read(address, size)

    def peek(self, tasks: Sequence[Task]) -> None:
        """See which signals wait for the process and for its threads. Nothing is consumed.

        tasks: those for which, or for whose process, any waited a moment ago. For others what comes by now comes after
        the moment that is saved. Where there are none, `peeked` stays before all that was asked.
        """
        self.waiting = ()
        for task in self.tasks:
            task.waiting = ()
        if tasks:
            self.waiting = ptrace.pending(self.leader.tid, True)
            for task in tasks:
                task.waiting = ptrace.pending(task.tid, False)
            self.peeked = time.clock_gettime_ns(time.CLOCK_REALTIME)

    def fd(self, number: int) -> int:
        """Our own descriptor for the open file description behind the process' descriptor `number`.

        Closing it does no harm to the process (its fcntl locks stay). Kept until `close`.
        """
        if number not in self._copies:
            if self._pidfd < 0:
                # For a thread that is not the first one a flag is needed (PIDFD_THREAD, Linux 6.9).
                self._pidfd = os.pidfd_open(self.pid, 0 if self.pid == self.tgid else os.O_EXCL)
            self._copies[number] = syscall(NR.pidfd_getfd, self._pidfd, number, 0)
        return self._copies[number]

    def forget(self, number: int) -> None:
        """Close our copy of one descriptor."""
        if number in self._copies:
            os.close(self._copies.pop(number))

    def close(self) -> None:
        """Close our copies of the process' descriptors."""
        for fd in self._copies.values():
            os.close(fd)
        self._copies.clear()
        if self._pidfd >= 0:
            os.close(self._pidfd)
            self._pidfd = -1


class LivingProcess(Process):
    """A process of a running job, frozen in the middle of whatever it did.

    The first thread is *parked*: from its first call until the release it stands in our code, which, should we die,
    unmaps the scratch memory and goes home. Other threads run their calls as guests in that scratch memory, each in a
    part of it and with code in a place of its own (a lane); so a few may do so at the same time.
    """

    _expected = 0
    """So many status files are open, of all processes."""

    def __init__(self, pid: int, vpid: int = 0) -> None:
        super().__init__(pid, vpid)
        self._memory = uio.Memory(pid)
        self._slots: list[int] = []
        self._signal = 0
        self._seat: Seat | None = None
        self._lanes: dict[int, Seat] = {}
        """The seats of guests, by lane: the same for all of them."""
        self._gated: list[tuple[Task, int]] = []
        self._leaves = self._is_home = False
        self._files: dict[int, int] = {}
        """Status files of threads (tid) that are about to be stopped."""

    def put(self, address: int, data: bytes) -> None:
        """See tracee.task.Owner."""
        self._memory.write(address, data)

    def get(self, address: int, size: int) -> bytes:
        """See tracee.task.Owner; any memory of the process."""
        return self._memory.read(address, size)

    def enter(self, task: Task) -> Seat:
        """See tracee.task.Owner."""
        if self._seat is None:
            self._seat = self._park()
        return self._seat if task is self.leader else self.seat_guest(task, 0)

    def seat_guest(self, task: Task, lane: int) -> Seat:
        """Make a thread that is not the first one ready to run calls in a lane that nobody else uses."""
        seat, slot, code = self.guest(task, lane)
        self._memory.write(slot, code)
        return seat

    def guest(self, task: Task, lane: int) -> tuple[Seat, int, bytes]:
        """The same, but for its code, which is still to be written: (seat, where to, the code)."""
        home = self.enter(self.leader)
        slot, size = self._slots[1 + lane], SCRATCH_SIZE // GUESTS
        code = assemble(slot, self.vpid, task.vtid, self._signal, task.regs, task.mask, SCRATCH_SIZE, guest=True)
        if lane not in self._lanes:
            scratch, hold = home.scratch + lane * size, home.scratch + lane * _WORD
            self._lanes[lane] = Seat(code.loop, code.one, code.stop, scratch, size, self._signal, hold)
        return self._lanes[lane], slot, code.blob

    def memory(self) -> AbstractContextManager[int]:
        """A descriptor of its memory (uio.Memory) that stays open meanwhile."""
        return self._memory.opened()

    @property
    def lanes(self) -> int:
        """How many guests it has room for."""
        self.enter(self.leader)
        return min(len(self._slots) - 1, GUESTS)

    def leave(self, task: Task) -> None:
        """See tracee.task.Owner."""
        if task is not self.leader:
            task.put_back()

    def places(self) -> list[int]:
        """Where code of ours may be, or left-overs of it are."""
        return padding.find(self._memory, self.areas, SLOTS)

    def hold_others(self) -> int:
        """If we die from here on, no thread goes on before the first one, which may be running calls (Task.start), has
        gone home. As many threads as there is padding for; how many there is none for."""
        seat = self.enter(self.leader)
        slots = self.places()
        free = [slot for slot in slots if slot not in self._slots[:2]]  # no guest comes meanwhile, but a copy may
        for task, slot in zip(self.tasks[1:], free):
            code, entry = assemble_gate(slot, task.regs, task.mask, seat.scratch)
            self._memory.write(slot, code)
            self._gated.append((task, slot))
            regs = task.regs.copy()
            regs.orig_rax, regs.rip = NOT_IN_CALL, entry
            ptrace.set_regs(task.tid, regs)
            ptrace.set_mask(task.tid, ALL_BLOCKED)
        return max(0, len(self.tasks) - 1 - len(free))

    def split(self) -> tuple[Seat, Split]:
        """Put code for a copy of the process (assemble_split) where guests have theirs. Not while a thread is held."""
        seat = self.enter(self.leader)
        code = assemble_split(self._slots[1], seat.tail, SCRATCH_SIZE)
        self._memory.write(self._slots[1], code.blob)
        return seat, code

    def send_home(self, words: int, code: Split) -> None:
        """Let the first thread make a copy of the process on its way home, by this code; words: their address."""
        seat = self.enter(self.leader)
        self.leader.set_out(seat, code.entry, r12=words)
        self.leader.send(seat)
        self._leaves = True

    @property
    def slots(self) -> tuple[int, ...]:
        """Addresses of our code, SIZE bytes each, as long as it is there."""
        return tuple(self._slots)

    def let_others(self) -> None:
        """Undo `hold_others`."""
        for task, slot in self._gated:
            try:
                task.put_back()
                self._memory.write(slot, bytes(SIZE))
            except (ProcessLookupError, FileNotFoundError):
                continue  # killed where it stood
        self._gated.clear()

    def set_out(self) -> None:
        """Let the first thread begin to park itself, while we turn to something else."""
        if self._seat is None and self.leader.under_way is None:
            task = self.leader
            seat, code = self._place()
            flags = 0x02 | 0x20 | 0x4000  # MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE
            task.set_out(seat, code, rax=NR.mmap, rdi=0, rsi=SCRATCH_SIZE, rdx=3, r10=flags, r8=-1, r9=0)
            task.send(seat)

    def _park(self) -> Seat:
        self.set_out()
        task = self.leader
        seat = task.under_way
        assert seat is not None
        task.to_stop(seat, runs=True)
        scratch = ptrace.get_regs(task.tid).rbx  # the code keeps the result there; rax is its signal call's by now
        if scratch >> 63:
            task.put_back()
            raise Refused(
                [Refusal(self.pid, self.comm, "has no room for 64 KiB more of memory", "raise its limits (ulimit -v)")]
            )
        return seat._replace(scratch=scratch)

    def _place(self) -> tuple[Seat, int]:
        """Put the first thread's code in its place: its seat, still without memory, and the entry for one call."""
        task = self.leader
        self._slots = padding.find(self._memory, self.areas, 1 + max(1, min(GUESTS, len(self.tasks) - 1)))
        if len(self._slots) < 2:
            raise Refused(
                [
                    Refusal(
                        self.pid,
                        self.comm,
                        "has no padding in executable memory",
                        "nothing can be asked in it; please report this program",
                    )
                ]
            )
        masks = [int(self.status[key], 16) for key in ("SigCgt", "SigPnd", "ShdPnd")]
        self._signal = quiet_signal(masks[0], masks[1] | masks[2])
        code = assemble(
            self._slots[0], self.vpid, task.vtid, self._signal, task.regs, task.mask, SCRATCH_SIZE, guest=False
        )
        self._memory.write(self._slots[0], code.blob)
        return Seat(code.loop, code.one, code.stop, 0, SCRATCH_SIZE, self._signal, tail=code.tail), code.one

    def set_out_home(self) -> None:
        """Let the first thread begin to take the scratch memory away, while we turn to something else."""
        if self._leaves or self._is_home or not self.tasks:  # none of them came to its stop, or all of them have ended
            return
        task = self.leader
        if self._seat is None and task.under_way is None:
            return
        if self._seat is None:
            self._seat = self._park()
        elif task.under_way is not None:
            task.to_stop(task.under_way, runs=True)
        seat = self._seat
        task.set_out(seat, seat.one, rax=NR.munmap, rdi=seat.scratch, rsi=SCRATCH_SIZE, rbx=0)
        task.send(seat)
        self._leaves = True

    def come_home(self, there: bool = False) -> ptrace.Regs:
        """Wait for the first thread, which is on its way home, unless it is `there`: our code stays until `unpark`. The
        registers with which it has come. Raises Gone."""
        seat, self._seat, self._leaves = self._seat, None, False
        assert seat is not None
        self._lanes.clear()
        if there:
            self.leader.under_way = None
        else:
            self.leader.to_stop(seat, runs=True)
        self._is_home = True
        return ptrace.get_regs(self.leader.tid)

    def unpark(self) -> None:
        """Take scratch memory and code away again; afterwards every thread stands where it was found."""
        try:
            self.set_out_home()
        except Refused:
            return  # it never came to have any
        if self._leaves:
            self.come_home()
        if self._is_home:
            self._is_home = False
            self.leader.put_back()
            for start, end in _joined(self._slots):
                self._memory.write(start, bytes(end - start))

    def expect(self, tid: int) -> None:
        """A thread is about to be stopped. What is to be read of it (`Learning`) is opened before, which takes as long
        as to read it."""
        if LivingProcess._expected < _MOST_EXPECTED:
            try:
                self._files[tid] = proc.open_status(self.pid, tid)
                LivingProcess._expected += 1
            except OSError:
                pass  # it has ended, or there are too many open files: `learn` reads it then

    def status_file(self, tid: int) -> int:
        """The descriptor of a status file that `expect` has opened, -1 if it has not."""
        return self._files.get(tid, -1)

    def add(self, tid: int, regs: ptrace.Regs) -> Task:
        """Take a freshly stopped thread in; `learn` is to follow."""
        task = Task(tid, self.tgid, 0, self)
        task.regs = regs
        self.tasks.append(task)
        return task

    def learn(self, facts: Mapping[int, Facts]) -> None:
        """Take in mask and status of all threads (by tid), read when all had stopped (until then one may change
        another: filters of all threads, signals). Their numbers stand there. Raises ProcessLookupError if one of them
        is not there any more."""
        for task in self.tasks:
            known = facts.get(task.tid)
            if known is None:
                raise ProcessLookupError(errno.ESRCH, os.strerror(errno.ESRCH))
            task.mask, task.rseq, task.xstate = known.mask, known.rseq, known.xstate
            fields = proc.Status(known.status) if known.status else proc.status(self.pid, task.tid)
            task.learn(fields)
            filtered = fields.get("Seccomp", "0") != "0"
            task.plain = known.plain and not filtered and not fields.mentions("shstk")
            if filtered:
                try:
                    # Or its own filters would kill it for our calls. Where we may not, the survey has refused it.
                    ptrace.request(ptrace.SETOPTIONS, task.tid, 0, ptrace.O_SUSPEND_SECCOMP)
                    task.options = ptrace.O_SUSPEND_SECCOMP
                except OSError:
                    pass
        self._status = self.leader.status
        self.tgid, self.vpid = self.leader.tgid, proc.inner_pid(self._status, "NStgid")

    def abandon(self) -> None:
        """Close what we hold of a process that has ended."""
        self.close()
        self._memory.close()
        self._forget_files()

    def _forget_files(self) -> None:
        """Close what `expect` has opened and nobody has read."""
        while self._files:
            LivingProcess._expected -= 1
            os.close(self._files.popitem()[1])

    def detach(self) -> None:
        """Let every thread go on."""
        try:
            self.unpark()
        finally:
            self._memory.close()
            for task in self.tasks:
                try:
                    task.release()
                except ProcessLookupError:
                    pass  # killed meanwhile: nothing to let go
            self.close()
            self._forget_files()


def _joined(slots: Iterable[int]) -> list[tuple[int, int]]:
    """Places for code as ranges, those side by side as one. Pure."""
    found: list[tuple[int, int]] = []
    for slot in sorted(slots):
        if found and found[-1][1] == slot:
            found[-1] = found[-1][0], slot + SIZE
        else:
            found.append((slot, slot + SIZE))
    return found


def in_sequences(process: LivingProcess) -> set[int]:
    """The threads (tid) that may stand in a restartable sequence: they have announced one, or it cannot be told."""
    areas = [(task.tid, task.rseq[0] + 8) for task in process.tasks if task.rseq[0] and task.rseq[1] >= 16]
    found: set[int] = set()
    for at in range(0, len(areas), uio.MOST):
        some = areas[at : at + uio.MOST]
        try:
            words = uio.read_words(process.leader.tid, [address for _, address in some])
        except OSError:
            found.update(tid for tid, _ in some)  # one of them cannot be read: each is looked at by itself
        else:
            found.update(tid for (tid, _), word in zip(some, words) if word)
    return found


def rseq_abort(process: LivingProcess, task: Task) -> int:
    """Where a thread that stands in a restartable sequence has to go on, or 0.

    Running calls in the thread makes the kernel forget that it stood there (kernel/rseq.c clears rseq_cs once the
    instruction pointer is elsewhere), so the abort that the kernel would have made is made here.
    """
    try:
        address, size, _ = task.rseq
        if not address or size < 16:
            return 0
        cs = int.from_bytes(process.get(address + 8, 8), "little")
        if not cs:
            return 0
        raw = process.get(cs, 32)
    except OSError:
        return 0
    start = int.from_bytes(raw[8:16], "little")
    length = int.from_bytes(raw[16:24], "little")
    abort = int.from_bytes(raw[24:32], "little")
    return abort if start <= task.regs.rip < start + length else 0
