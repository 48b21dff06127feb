"""A stopped thread: its registers as they were found, and system calls run in it.

Two kinds of task run calls. A task of a *living* job (`Task`) was stopped at an arbitrary instruction and has to go on
as if nothing had happened, also if we are killed while our code runs in it: its code heals itself
(linux/arch/x86_64_code.py) and its process keeps the scratch memory (tracee/process.py). A task of a job that is being
*recreated* uses the same code without that care: it dies with us (PTRACE_O_EXITKILL).
"""

from __future__ import annotations

import os
import signal
import struct
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Protocol, TypeAlias

from torpor.linux import proc, ptrace
from torpor.linux.arch.x86_64 import NR
from torpor.linux.ptrace import Regs
from torpor.named_tuple import NamedTuple
from torpor.tracee.batch import Batch, laid_out
from torpor.tracee.call import Answer, Call, Word, failed

NOT_IN_CALL = (1 << 64) - 1
"""orig_rax of a task that is not in a system call."""

ALL_BLOCKED = (1 << 64) - 1

HEAD = 64
"""Bytes at the beginning of the scratch memory that are not for batches: its owner's."""

_GUEST = struct.Struct("<4Q8sQ72s2Q80s").pack
"""The registers of a guest that sets out, in the order of ptrace.REGISTERS: its number, hold, the count and the place
of its calls in r15 to r12, its own rbp, a zero in rbx, its own r11 to rdi, orig_rax, rip, and its own others."""

BUSY = b"\x01\0\0\0"
"""A word of them, while a guest uses the scratch memory; the guest's own code counts it down."""


class Gone(Exception):
    """The task ended while we were at it."""

    def __init__(self, tid: int, status: int) -> None:
        super().__init__(f"task {tid} ended while it was being steered")
        self.tid, self.status = tid, status


class Seat(NamedTuple):
    """Where a task runs our calls: addresses of the code's entries, the scratch memory and the signal it ends with."""

    loop: int
    one: int
    stop: int
    scratch: int
    size: int
    signal: int
    hold: int = 0
    """Of a guest: the scratch memory belongs to another thread, which must not unmap it while this word is not 0."""
    tail: int = 0
    """Where other code of ours goes on when it has done its work (not for guests)."""


def mask_in(seat: Seat) -> int:
    """The signals that are blocked while a task runs our calls there: all but the one that its code ends with."""
    return ALL_BLOCKED & ~(1 << (seat.signal - 1))


class Owner(Protocol):
    """The process a task belongs to, as far as a task needs it: it lends the place where calls run."""

    pid: int

    def enter(self, task: Task) -> Seat:
        """Make the task ready to run calls: code that knows its way home, scratch memory."""
        ...

    def leave(self, task: Task) -> None:
        """The calls are done; the task is put back as it was found if its process cannot keep it parked."""
        ...

    def put(self, address: int, data: bytes) -> None:
        """Write to our scratch memory in the process."""
        ...

    def get(self, address: int, size: int) -> bytes:
        """Read from it."""
        ...


class Task:
    """One stopped thread. `tid` and `tgid` are the host's numbers, `vtid` the one the thread itself sees."""

    def __init__(self, tid: int, tgid: int, vtid: int, owner: Owner) -> None:
        self.tid, self.tgid, self.vtid, self.owner = tid, tgid, vtid, owner
        self.regs: Regs = Regs()
        self.mask = 0
        self.stop_signal = 0
        """The signal of the group stop the task was in when it was found, else 0."""
        self.held: list[bytes] = []
        """Signals (siginfo) that arrived while calls ran; delivered at the release."""
        self.in_signal_stop = False
        self.under_way: Seat | None = None
        """It runs code of ours, and nobody has waited for it yet."""
        self.options = 0
        """PTRACE_O_* that were set."""
        self.rseq = 0, 0, 0
        """ptrace.rseq_configuration, of a task of a living job."""
        self.plain = False
        """It is as the kernel makes a thread: see stops.Facts; and it has no filters for system calls (seccomp), and no
        shadow stack."""
        self.xstate = b""
        """The state of FPU and vectors as it was found, where that has been read already."""
        self.waiting: Sequence[bytes] = ()
        """Signals (siginfo) that wait for this thread alone: see Process.peek."""
        self._masked = 0
        """The mask it has while it runs code of ours; 0 where that is its own."""
        self._status: Mapping[str, str] | None = None

    @property
    def status(self) -> Mapping[str, str]:
        """Its /proc/PID/task/TID/status, read once."""
        if self._status is None:
            self._status = proc.status(self.tgid, self.tid)
        return self._status

    @property
    def in_call(self) -> int:
        """Number of the system call the task was interrupted in, or -1."""
        return -1 if self.regs.orig_rax >> 63 else int(self.regs.orig_rax)

    @property
    def result(self) -> int:
        """rax as a signed number: for a task in a system call, what the call was about to return."""
        rax: int = self.regs.rax
        return rax - (1 << 64) if rax >> 63 else rax

    def learn(self, fields: Mapping[str, str]) -> None:
        """Take in its status, and the numbers that stand there."""
        self._status = fields
        self.tgid, self.vtid = int(fields["Tgid"]), proc.inner_pid(fields)

    def look(self) -> None:
        """Read registers and mask of the freshly stopped task."""
        self.regs, self.xstate = ptrace.get_regs(self.tid), b""
        self.mask, self._masked = ptrace.get_mask(self.tid), 0

    def run(
        self, calls: Sequence[Call], check: bool = True, objects: Callable[[int], int] | None = None
    ) -> list[Answer]:
        """Run system calls in the task, as few round trips as the scratch memory allows.

        check: raise CallFailed for an error that its call does not accept. objects: descriptor number of an Object.
        """
        made = self.make(calls, objects)
        return made.answers() if check else made.unchecked()

    def make(self, calls: Sequence[Call], objects: Callable[[int], int] | None = None) -> Made:
        """Run system calls in the task; what came of them is looked at later."""
        return self.begin(calls, objects).made() if calls else Made(self.tgid, [])

    def begin(self, calls: Sequence[Call], objects: Callable[[int], int] | None = None) -> Begun:
        """Set calls going that are waited for later."""
        return Begun(self, self.owner.enter(self), calls, objects)

    def start(self, calls: Sequence[Call]) -> Started:
        """Set a batch going without waiting for its end. It has to fit the scratch memory: it runs as one, to its end,
        whatever becomes of us. Only for the thread that keeps its seat (the first one)."""
        seat = self.owner.enter(self)
        batch = Batch(seat.scratch + HEAD, calls)
        if len(batch.image) > seat.size - 4096:
            raise ValueError("more calls than one batch has room for")
        return self.launch(seat, batch)

    def launch(self, seat: Seat, batch: Batch) -> Started:
        """Set a batch going that was laid out for a seat of this task."""
        table = seat.scratch + HEAD
        self.owner.put(table, batch.image)
        if seat.hold:
            # It takes hold of the memory before it stands in our code: were it the other way round and we died in
            # between, the memory could go while the guest is in it.
            self.owner.put(seat.hold, BUSY)
            self._enter(seat, self.as_guest(seat, batch))
        else:
            self.set_out(seat, seat.loop, r12=table, r13=batch.count)
        self.send(seat)
        return Started(self, seat, batch)

    def as_guest(self, seat: Seat, batch: Batch) -> bytes:
        """The registers with which a guest sets out, as `set_out` would give them to it."""
        home = bytes(self.regs)
        return _GUEST(self.vtid, seat.hold, batch.count, seat.scratch + HEAD, home[32:40], 0, home[48:120],
                      NOT_IN_CALL, seat.loop, home[136:])  # fmt: skip

    def set_out(self, seat: Seat, entry: int, **registers: int) -> None:
        """Let the task stand at the beginning of our code."""
        regs = self.regs.copy()
        regs.orig_rax = NOT_IN_CALL
        regs.rip = entry
        regs.rbx = 0
        regs.r15 = self.vtid  # see assemble_plain
        for name, value in registers.items():
            setattr(regs, name, value & NOT_IN_CALL)
        if seat.hold:
            regs.r14 = seat.hold
        elif "rbx" not in registers:
            regs.rbx = seat.scratch
        self._enter(seat, bytes(regs))

    def _enter(self, seat: Seat, regs: bytes) -> None:
        # Registers first, then the mask. Were it the other way round, a tracer killed in between would leave the
        # program with all its signals blocked. A mask that was set stays until the task is put back.
        ptrace.set_raw_regs(self.tid, regs)
        mask = mask_in(seat)
        if self._masked != mask:
            ptrace.set_mask(self.tid, mask)
            self._masked = mask

    def send(self, seat: Seat) -> None:
        """Let the task go; it is `under_way` until `to_stop` has seen it at its stop."""
        ptrace.request(ptrace.CONT, self.tid)
        self.in_signal_stop = False
        self.under_way = seat

    def to_stop(self, seat: Seat, runs: bool = False, known: int | None = None) -> None:
        """Let the task run until it stands at the stop of our code. runs: it is on its way already.  known: what a wait
        has told of it on its way."""
        self.under_way = None
        while True:
            if not runs:
                ptrace.request(ptrace.CONT, self.tid)
            runs = self.in_signal_stop = False
            status, known = ptrace.wait(self.tid) if known is None else known, None
            if not os.WIFSTOPPED(status):
                raise Gone(self.tid, status)
            if status >> 16:
                continue  # a group stop, or a trap of an earlier INTERRUPT: not ours
            if self.at_end(status, seat):
                return

    def at_end(self, status: int, seat: Seat) -> bool:
        """Is the signal stop that a wait has told of the end of our code? Else the signal is held."""
        self.in_signal_stop = True
        if os.WSTOPSIG(status) == seat.signal and ptrace.instruction(self.tid) == seat.stop:
            return True
        self.held.append(ptrace.get_siginfo(self.tid))
        return False

    def put_back(self) -> None:
        """Give the task its own mask and registers again (leaving: mask first, then registers)."""
        self._masked = 0
        ptrace.set_mask(self.tid, self.mask)
        ptrace.set_regs(self.tid, self.regs)

    def release(self) -> None:
        """Let go of a task whose registers and mask are its own again; held signals are delivered."""
        deliver = 0
        if self.held and self.in_signal_stop:
            info = self.held.pop(0)
            ptrace.set_siginfo(self.tid, info)
            deliver = int.from_bytes(info[:4], "little")
        for info in self.held:
            # All of them are signals the program ignores, or SIGSTOP: what they carry does not matter.
            _tgkill(self.tgid, self.tid, int.from_bytes(info[:4], "little"))
        ptrace.request(ptrace.DETACH, self.tid, 0, deliver)


class Made:
    """Calls that have been made, and their answers as they stood in memory."""

    def __init__(self, pid: int, images: Sequence[tuple[Batch, bytes]]) -> None:
        self._pid, self._images = pid, images

    def ends_with(self, data: bytes) -> bool:
        """Does the last table end with that? It is the room of the last call's last `Out`."""
        return self._images[-1][1].endswith(data)

    def unchecked(self) -> list[Answer]:
        """What came of them, failed ones too."""
        return [answer for batch, image in self._images for answer in batch.answers(image)]

    def answers(self, first: int = 0, count: int | None = None) -> list[Answer]:
        """What came of them, or of `count` from the call `first` on. Raises CallFailed for an error that its call does
        not accept."""
        last = None if count is None else first + count
        if len(self._images) == 1:
            batch, image = self._images[0]
            calls, found = batch.calls[first:last], batch.answers(image, first, count)
        else:
            calls = [call for batch, _ in self._images for call in batch.calls][first:last]
            found = self.unchecked()[first:last]
        failed(self._pid, calls, found)
        return found


class Begun:
    """Calls that a task is making, at least one. When they are `made`, or cannot be, it has left its seat."""

    def __init__(
        self, task: Task, seat: Seat, calls: Sequence[Call], objects: Callable[[int], int] | None = None
    ) -> None:
        self._task, self._seat = task, seat
        self._batches = iter(laid_out(seat.scratch + HEAD, seat.size - 4096, calls, objects))
        try:
            self._launch()
        except BaseException:
            task.owner.leave(task)
            raise

    def _launch(self) -> bool:
        """Is there another batch? Then it runs."""
        batch = next(self._batches, None)
        if batch is not None:
            self._running = batch, self._task.launch(self._seat, batch)
        return batch is not None

    def made(self) -> Made:
        """Wait for the end of them. Raises Gone."""
        images = []
        try:
            more = True
            while more:
                batch, started = self._running
                images.append((batch, started.image()))
                more = self._launch()
            return Made(self._task.tgid, images)
        finally:
            self._task.owner.leave(self._task)


class Started:
    """A batch that is running."""

    def __init__(self, task: Task, seat: Seat, batch: Batch) -> None:
        self._task, self._seat, self._batch = task, seat, batch

    def address(self, word: Word) -> int:
        """The address of an argument, or a result, in the table."""
        return self._batch.address(word)

    def finish(self) -> list[Answer]:
        """Wait for its end; what came of the calls, failed ones too. Raises Gone."""
        return self._batch.answers(self.image())

    def image(self) -> bytes:
        """Wait for its end; the table as it is then. Raises Gone."""
        self._task.to_stop(self._seat, runs=True)
        return self._task.owner.get(self._seat.scratch + HEAD, len(self._batch.image))


class Asked(NamedTuple):
    """Calls for a task. check: those that fail are an error.  objects: see `Task.run`.  seat: where the task has to run
    them; None for a place of its process' own."""

    task: Task
    calls: Sequence[Call]
    check: bool = True
    objects: Callable[[int], int] | None = None
    seat: Seat | None = None


Work: TypeAlias = Generator[Asked, list[Answer], None]
"""Something that is done in a task, or several: it asks, and goes on with the answers (tracee/together.py)."""


def _tgkill(tgid: int, tid: int, number: int) -> None:
    from torpor.linux.libc import syscall

    try:
        syscall(NR.tgkill, tgid, tid, number)
    except ProcessLookupError:
        pass


def quiet_signal(caught: int, pending: int) -> int:
    """The signal our code ends with: one that a program at its defaults ignores, and that is not caught or pending.

    caught, pending: bit masks as in /proc/PID/status. If all are caught, SIGURG: one spurious run of a handler is
    accepted if the tracer dies. Never SIGCONT: it wakes stopped jobs.
    """
    choices = (signal.SIGURG, signal.SIGWINCH, signal.SIGCHLD)
    for number in choices:
        if not (caught | pending) >> (number - 1) & 1:
            return number
    for number in choices:
        if not pending >> (number - 1) & 1:
            return number
    return signal.SIGURG
