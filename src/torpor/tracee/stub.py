"""A process being recreated: a stub whose memory is ours to replace.

It dies with us (PTRACE_O_EXITKILL), so nothing in it has to heal. Code and scratch memory live in a *hole*: a range of
addresses that neither the stub as it is nor the process it will be uses.
"""

from __future__ import annotations

import ctypes
import os
import signal
import time
from collections.abc import Iterable, Sequence

from torpor.linux import clone, proc, ptrace, uio
from torpor.linux.arch.x86_64 import NR
from torpor.linux.arch.x86_64_code import SIZE, SYSCALL, assemble_plain
from torpor.linux.proc import Area
from torpor.model.errors import RestartFailed
from torpor.tracee.call import In, call
from torpor.tracee.process import Process
from torpor.tracee.task import ALL_BLOCKED, NOT_IN_CALL, Asked, Seat, Task, Work, quiet_signal

SCRATCH_SIZE = 256 * 1024
LANES = 8
"""Into so many parts the scratch memory is cut where several threads run calls at once."""
CODE_SIZE = 4096
USER_END = 0x7FFF_FFFF_F000
LOWEST = 0x1_0000

_AT_EMPTY_PATH = 0x1000
_O_OPTIONS = ptrace.O_EXITKILL | ptrace.O_TRACECLONE | ptrace.O_TRACESYSGOOD
_CLONE_THREAD = clone.VM | clone.FS | clone.FILES | clone.SIGHAND | clone.THREAD | clone.SYSVSEM


def find_hole(size: int, used: Iterable[tuple[int, int]]) -> int:
    """An address with `size` free bytes that no range (start, end) in `used` comes near, high up in user space."""
    guard = 1 << 20
    end = USER_END - (1 << 30)
    for start, stop in sorted(used, reverse=True):
        if stop + guard <= end - size:
            break
        end = min(end, start - guard)
    hole = (end - size) & ~0xFFFF
    if hole < LOWEST:
        raise RestartFailed("the address space of a process has no room left")
    return hole


class StubProcess(Process):
    """A stub, seized and stopped. `hole`: `hole_size` bytes of address space for our own use, once `move` has told of
    it."""

    def __init__(self, pid: int, vpid: int) -> None:
        super().__init__(pid, vpid)
        self.hole = self.hole_size = self.room = 0
        """`room`: where the part of the hole begins that is free for parked mappings."""
        self._signal = quiet_signal(0, 0)
        self._seat = Seat(0, 0, 0, 0, 0, 0)
        """Where calls run: the same for all tasks, once `settle` has been called."""

    def seize(self) -> None:
        """Attach to the stub and tell it to stop; `arrived` is to follow. Its end is ours from now on."""
        ptrace.request(ptrace.SEIZE, self.pid, 0, _O_OPTIONS)
        ptrace.request(ptrace.INTERRUPT, self.pid)

    def move(self, hole: int, hole_size: int) -> None:
        """That is the hole, for memory as it is now; `settle` is to follow."""
        self.hole, self.hole_size = hole, hole_size
        self.room = hole + CODE_SIZE + SCRATCH_SIZE

    def execute(self, fd: int) -> int:
        """Execute a program (a descriptor in the stub) and stop before its first instruction; 0, or an errno if the
        kernel does not want to. Our hole is gone then. Descriptors without close-on-exec stay."""
        task = self.leader
        seat = self._seat
        at = seat.scratch + 64
        # "" for the path, and the vectors { "stub", NULL } and { NULL }.
        image = bytes(8) + b"stub\0\0\0\0" + (at + 8).to_bytes(8, "little") + bytes(8)
        uio.write(self.pid, at, image)
        ptrace.request(ptrace.SETOPTIONS, self.pid, 0, _O_OPTIONS | ptrace.O_TRACEEXEC)
        regs = task.regs.copy()
        regs.orig_rax, regs.rip, regs.rax = NOT_IN_CALL, seat.one, NR.execveat
        regs.r15 = task.vtid
        regs.rdi, regs.rsi, regs.rdx, regs.r10, regs.r8 = fd, at, at + 16, at + 24, _AT_EMPTY_PATH
        ptrace.set_regs(self.pid, regs)
        ptrace.set_mask(self.pid, ALL_BLOCKED & ~(1 << (seat.signal - 1)))
        executed = False
        while True:
            ptrace.request(ptrace.CONT, self.pid)
            status = ptrace.wait(self.pid)
            if not os.WIFSTOPPED(status):
                raise RestartFailed(f"process {self.vpid} ended while it executed its program")
            if status >> 16 == ptrace.EVENT_EXEC:
                # Still inside the call, which would write its result over registers set now.
                ptrace.request(ptrace.INTERRUPT, self.pid)
                executed = True
            elif executed:
                if status >> 16 == ptrace.EVENT_STOP:
                    break
            elif not status >> 16 and ptrace.get_regs(self.pid).rip == seat.stop:
                break
        ptrace.request(ptrace.SETOPTIONS, self.pid, 0, _O_OPTIONS)
        if not executed:
            return -ctypes.c_long(ptrace.get_regs(self.pid).rbx).value
        task.look()
        return 0

    def arrived(self) -> None:
        """Wait until it stands, after `seize`."""
        status = ptrace.wait(self.pid)
        if not os.WIFSTOPPED(status):
            raise RestartFailed(f"process {self.vpid} ended while it was being made")
        task = Task(self.pid, self.pid, self.vpid, self)
        task.look()
        self.tasks.append(task)

    def settle(self, areas: Sequence[Area], pending: int) -> Work:
        """Move into the hole: the first code runs over the stub's own text, and its calls over its stack.

        areas: the stub's memory. pending: signals (bits) that will be queued, none of which may end our batches.
        """
        self._signal = quiet_signal(0, pending)
        task = self.leader
        text = next(a for a in areas if a.perms[2] == "x" and a.path.startswith("/") and a.size >= 2 * SIZE)
        code = assemble_plain(text.start, self.vpid, self._signal)
        uio.force_write(self.pid, text.start, code.blob)
        seat = Seat(code.loop, code.one, code.stop, task.regs.rsp & ~63, SCRATCH_SIZE, self._signal)
        # The rest is kept free from what is mapped wherever there is room, such as an attached segment.
        rest = self.hole_size - (self.room - self.hole)
        parts = ((self.hole, CODE_SIZE, 5), (self.hole + CODE_SIZE, SCRATCH_SIZE, 3), (self.room, rest, 0))
        calls = [call(NR.mmap, at, size, prot, 0x100022, -1, 0) for at, size, prot in parts]
        answers = yield Asked(task, calls, check=False, seat=seat)
        for (at, _, _), answer in zip(parts, answers):
            if answer.value != at:
                raise RestartFailed(f"process {self.vpid}: no room at {at:#x}")
        code = assemble_plain(self.hole, self.vpid, self._signal)
        uio.force_write(self.pid, self.hole, code.blob)
        self._seat = Seat(code.loop, code.one, code.stop, self.hole + CODE_SIZE, SCRATCH_SIZE, self._signal)

    def lanes(self, count: int) -> list[Seat]:
        """Its place for calls, cut into so many."""
        size = self._seat.size // count
        return [self._seat._replace(scratch=self._seat.scratch + i * size, size=size) for i in range(count)]

    def enter(self, task: Task) -> Seat:
        """See tracee.task.Owner."""
        return self._seat

    def leave(self, task: Task) -> None:
        """See tracee.task.Owner."""

    def make_threads(self, vtids: Sequence[int]) -> None:
        """Make the other threads, with their numbers; each is stopped before its first instruction."""
        if not vtids:
            return
        calls = []
        arguments = clone.arguments(_CLONE_THREAD | clone.PTRACE, 0, 0, 1)
        for vtid in vtids:
            calls.append(call(NR.clone3, In(arguments, ((64, In(vtid.to_bytes(4, "little"))),)), clone.SIZE))
        # With O_TRACECLONE their maker would stop at each of them.
        ptrace.request(ptrace.SETOPTIONS, self.pid, 0, _O_OPTIONS & ~ptrace.O_TRACECLONE)
        answers = self.leader.run(calls)
        ptrace.request(ptrace.SETOPTIONS, self.pid, 0, _O_OPTIONS)
        tids = proc.threads_by_age(self.pid)[1:]
        if [answer.value for answer in answers] != list(vtids) or len(tids) != len(vtids):
            raise RestartFailed(f"process {self.vpid}: threads got other numbers than they had")
        for tid, vtid in zip(tids, vtids):
            self._take_in(tid, vtid)

    def make_some_threads(self, count: int) -> list[int]:
        """Make threads with whatever numbers come; the numbers. Each has to be adopted or ended."""
        made = self.leader.run([call(NR.clone, _CLONE_THREAD, 0, 0, 0, 0)] * count)
        return [answer.value for answer in made]

    def end_thread(self, tid: int) -> None:
        """End a thread that is not adopted. tid: as we see it."""
        ptrace.wait(tid)
        seat = self._seat
        regs = ptrace.get_regs(tid)
        regs.orig_rax, regs.rip, regs.rax, regs.rdi = NOT_IN_CALL, seat.one, NR.exit, 0
        ptrace.set_regs(tid, regs)
        ptrace.request(ptrace.CONT, tid)
        while os.WIFSTOPPED(ptrace.wait(tid)):
            ptrace.request(ptrace.CONT, tid)

    def adopt(self, vtids: Sequence[int]) -> None:
        """Take in threads that have just been made, in this order."""
        by_vtid = {}
        for tid in proc.threads(self.pid):
            if tid != self.pid:
                by_vtid[proc.inner_pid(proc.status(self.pid, tid))] = tid
        for vtid in vtids:
            self._take_in(by_vtid[vtid], vtid)

    def _take_in(self, tid: int, vtid: int) -> None:
        status = ptrace.wait(tid)
        if not os.WIFSTOPPED(status):
            raise RestartFailed(f"process {self.vpid}: thread {vtid} ended while it was being made")
        task = Task(tid, self.tgid, vtid, self)
        task.look()
        self.tasks.append(task)

    def lose_leader(self) -> None:
        """The first thread ends, the others live on; the process is looked at by one of those from now on."""
        task = self.tasks[0]
        seat = self._seat
        regs = task.regs.copy()
        regs.orig_rax, regs.rip, regs.rax, regs.rdi = NOT_IN_CALL, seat.one, NR.exit, 0
        ptrace.set_regs(task.tid, regs)
        ptrace.request(ptrace.CONT, task.tid)
        deadline = time.monotonic() + 5
        # Its end is not reported as long as others live.
        while proc.stat(self.pid, task.tid).state != "Z":
            if time.monotonic() > deadline:
                raise RestartFailed(f"process {self.vpid}: its first thread does not end")
            time.sleep(0.0002)
        self.tasks.pop(0)
        self.pid = self.tasks[0].tid

    def halt(self) -> None:
        """Put the whole process into a group stop, as SIGSTOP does; calls can still be run in it, and it stays stopped
        once it is released."""
        os.kill(self.pid, signal.SIGSTOP)
        for task in self.tasks:
            deliver = 0
            while True:
                ptrace.request(ptrace.CONT, task.tid, 0, deliver)
                status = ptrace.wait(task.tid)
                if not os.WIFSTOPPED(status):
                    raise RestartFailed(f"process {self.vpid} ended while it was being made")
                if status >> 16 == ptrace.EVENT_STOP and os.WSTOPSIG(status) == signal.SIGSTOP:
                    break
                deliver = signal.SIGSTOP if os.WSTOPSIG(status) == signal.SIGSTOP and not status >> 16 else 0

    def vacate(self, syscall_at: int, ranges: Sequence[tuple[int, int]]) -> None:
        """Unmap what is ours, by a `syscall` instruction of the process' own memory; the leader then stands in a stop
        at which registers may be set. ranges: (address, size)."""
        task = self.leader
        for address, size in ranges:
            regs = task.regs.copy()
            regs.orig_rax = NOT_IN_CALL
            regs.rip = syscall_at
            regs.rax, regs.rdi, regs.rsi = NR.munmap, address, size
            ptrace.set_regs(task.tid, regs)
            ptrace.set_mask(task.tid, ALL_BLOCKED)
            for _ in ("entry", "exit"):
                ptrace.request(ptrace.SYSCALL, task.tid)
                self._await_syscall(task)
            after = ptrace.get_regs(task.tid)
            if after.rax:
                raise RestartFailed(f"process {self.vpid}: the scaffold at {address:#x} cannot be taken down")
        ptrace.request(ptrace.INTERRUPT, task.tid)
        ptrace.request(ptrace.CONT, task.tid)
        while True:
            status = ptrace.wait(task.tid)
            if not os.WIFSTOPPED(status):
                raise RestartFailed(f"process {self.vpid} ended while it was being made")
            if status >> 16 == ptrace.EVENT_STOP:
                return
            ptrace.request(ptrace.CONT, task.tid)

    def _await_syscall(self, task: Task) -> None:
        while True:
            status = ptrace.wait(task.tid)
            if not os.WIFSTOPPED(status):
                raise RestartFailed(f"process {self.vpid} ended while it was being made")
            if os.WSTOPSIG(status) == 0x85:
                return
            ptrace.request(ptrace.SYSCALL, task.tid)


def find_syscall(pid: int, areas: Iterable[tuple[int, int]]) -> int:
    """The address of a `syscall` instruction in executable memory (start, end) of a process."""
    for start, end in areas:
        for at in range(start, end, 1 << 20):
            raw = uio.force_read(pid, at, min(1 << 20, end - at))
            found = raw.find(SYSCALL)
            if found >= 0:
                return at + found
    raise RestartFailed("a process without any system call instruction cannot be recreated")
