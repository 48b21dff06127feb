"""Turn a stub into the process it stands for, from outside.

`Takeover` is one process' part of a restart. Its methods are the steps, and for its memory those of `AddressSpace`
(checkpoint/address_space.py); `checkpoint/restart.py` runs each step for all processes before the next, so that
whatever one process needs of another is there.
"""

from __future__ import annotations

import fcntl
import os
import signal
import struct
from collections.abc import Container, Mapping, Sequence
from typing import Any

import msgspec

from torpor.checkpoint.address_space import AddressSpace
from torpor.checkpoint.recreate import Inventory
from torpor.image.manifest import ProcessRecord, Services, ThreadRecord
from torpor.linux import proc, ptrace, pty
from torpor.linux.arch.x86_64 import NR
from torpor.linux.ptrace import NT_X86_XSTATE, Regs
from torpor.posix import cpu, pending
from torpor.posix.descriptors import O_ASYNC
from torpor.posix.process_services import PROCESS_SERVICES, THREAD_SERVICES
from torpor.posix.service import Stage, Steps
from torpor.tracee.call import ANY, Call, In, Out, call
from torpor.tracee.stub import StubProcess
from torpor.tracee.task import Asked, Task, Work
from torpor.tracee.together import together

_SIG_IGN_ACTION = (1).to_bytes(8, "little") + bytes(24)


class Takeover:
    """One process of the job, from stub to release."""

    def __init__(
        self, record: ProcessRecord, host: int, inventory: Inventory, held: bool = False,
        inherited: Sequence[tuple[int, int]] = (),
    ) -> None:  # fmt: skip
        """held: the whole job is to stand still once it is released. What was stopped of itself is not held.
        inherited: areas (start, end), ascending, that the stub has already, with their contents."""
        self.record, self.inventory = record, inventory
        self.held = held and not record.stop_signal
        self.process = StubProcess(host, record.pid)
        self.memory = AddressSpace(record, inventory, self.process, inherited)
        self._steps: list[Steps] | None = None
        self._thread_steps: dict[int, list[Steps]] = {}

    # Steps, in order.

    def seize(self) -> None:
        """Attach, and tell it to stop."""
        self.process.seize()

    def settle(self) -> Work:
        """Wait for the stop, and move into the hole."""
        self.process.arrived()
        yield from self.memory.settle(self._pending())

    def execute(self) -> str:
        """Execute the program, for the sake of /proc/PID/exe where it cannot be set; a note if that was refused."""
        fd = self.inventory.file(self.record.exe)
        error = self.process.execute(fd)
        if error:
            exe = self.inventory.manifest.files[self.record.exe].identity.path
            return f"/proc/{self.record.pid}/exe shows torpor's Python: {exe} cannot be executed ({os.strerror(error)})"
        self.memory.look_around()
        together([self.memory.settle(self._pending())])
        return ""

    def join(self, there: Container[int]) -> Work:
        """Join the process group. A group of the outside world whose number is not here is left alone.

        there: the groups that have been made.
        """
        if self.record.pgid > 1 and self.record.pgid not in there:
            return
        outer = (1, 3) if self.record.pgid > 1 else ANY
        yield self._ask([call(NR.setpgid, 0, self.record.pgid, accept=outer)])

    def attend(self, terminals: Mapping[int, tuple[int, int]]) -> None:
        """Put the right group in front of our terminal, if we lead its session; give it up, if we had done so.

        terminals: see Inventory. All groups exist.
        """
        record = self.record
        fd, front = terminals.get(record.sid, (-1, 0))
        if fd >= 0 and record.pid == record.sid and front:
            # A group without members is not to be had again.
            group = In(front.to_bytes(4, "little"))
            self.process.run([call(NR.ioctl, fd, pty.TIOCSPGRP, group, accept=(1, 3))])
        elif fd >= 0 and record.pid != record.sid and not record.has_terminal:
            self.process.run([call(NR.ioctl, fd, pty.TIOCNOTTY, 0)])

    def reap(self, ghosts: Sequence[int]) -> None:
        """Wait for ghosts (pids) that have fallen to this process and are ending."""
        self.process.run([call(NR.wait4, ghost, 0, 0, 0) for ghost in ghosts])

    def place(self, first: set[int]) -> None:
        """Stage PLACE for those of our objects that no other process has done already (`first` collects them)."""
        having = sorted({d.object for d in self.record.descriptors} - first)
        first.update(having)
        calls: list[Call] = []
        for service, state, number in self.inventory.places(having):
            calls += service.place(state, number)
        self.process.run(calls, objects=self.inventory.object)

    def receive(self, late: Sequence[int]) -> None:
        """Take the objects that were made after this process; what stood for them was inherited."""
        having = {d.object for d in self.record.descriptors}
        for number in late:
            if number not in having:
                continue
            # struct msghdr: no name, one byte of data, room for one descriptor (recvmsg(2), cmsg(3)).
            data = In(bytes(8) + (1).to_bytes(8, "little"), ((0, Out(8)),))
            header = In(struct.pack("<8xI4x8xQ8xQI4x", 0, 1, 24, 0), ((16, data), (32, Out(24))))
            answer = self.process.run([call(NR.recvmsg, self.inventory.post(number), header, 0)])[0]
            (fd,) = struct.unpack_from("<i", answer.outs[1], 16)
            place = self.inventory.object(number)
            self.process.run([call(NR.dup3, fd, place, 0), call(NR.close, fd)])

    def furnish(self) -> Work:
        """Its memory as it was, its descriptors, and what else the kernel keeps for the process."""
        yield from self.memory.protect()
        yield from self._descriptors()
        yield from self._restore()

    def _descriptors(self) -> Work:
        """Every descriptor to its number; all others are closed."""
        calls = []
        numbers = [d.number for d in self.record.descriptors]
        for d in self.record.descriptors:
            calls.append(call(NR.dup3, self.inventory.object(d.object), d.number, 0o2000000 if d.cloexec else 0))
        start = 0
        for number in sorted(numbers):
            if number > start:
                calls.append(call(NR.close_range, start, number - 1, 0))
            start = number + 1
        calls.append(call(NR.close_range, start, 0xFFFFFFFF, 0))
        yield self._ask(calls)

    def _restore(self) -> Work:
        """Everything the kernel keeps for the process beside memory and descriptors."""
        process = self.process
        # What ended while the tree was made has left SIGCHLD behind; ignoring a signal discards it (signal(7)).
        ignore = call(NR.rt_sigaction, signal.SIGCHLD, In(_SIG_IGN_ACTION), 0, 8)
        yield self._ask([ignore, *self._process_calls(Stage.PROCESS)])
        for service, state in self._states(PROCESS_SERVICES, self.record.services):
            service.outside(state, process)

    def others(self) -> list[int]:
        """The numbers of the threads that are to be made."""
        return [thread.tid for thread in self.record.threads if thread.tid != self.record.pid]

    def threaded(self) -> Work:
        """What the kernel keeps for the process, and needs threads. All of them are there."""
        if self.record.leader_exited:
            self.process.lose_leader()
            self._steps = None  # another thread makes the calls from now on
        yield self._ask(self._process_calls(Stage.THREAD))

    def threads(self) -> list[Work]:
        """What the kernel keeps for each thread."""
        return [self._thread(task, thread) for task, thread in zip(self.process.tasks, self.record.threads)]

    def _thread(self, task: Task, thread: ThreadRecord) -> Work:
        own: list[Call] = self._thread_calls(task, thread.services, Stage.PROCESS)
        own += self._thread_calls(task, thread.services, Stage.THREAD)
        # rseq checks that the area belongs to the address space; the kernel writes to it at the next return.
        yield Asked(task, own + cpu.registration(thread.cpu))
        for service, state in self._states(THREAD_SERVICES, thread.services):
            service.outside(state, task)

    def halt(self) -> None:
        """Stop again what was stopped; and what is held. What had been stopped, and its parent does not know yet that
        it goes on, is stopped and goes on, without a signal that tells of it."""
        if self.stands:
            self.process.halt()
        elif self.record.continued:
            self.process.halt()
            os.kill(self.process.pid, signal.SIGCONT)
            self.process.run([_taken(signal.SIGCONT)])

    @property
    def stands(self) -> bool:
        """Will it be in a group stop when it is released?"""
        return self.held or bool(self.record.stop_signal)

    @property
    def halted(self) -> bool:
        """Was it stopped by `halt`, even if it goes on by now?"""
        return self.stands or self.record.continued

    def know_stops(self, children: Sequence[Takeover]) -> None:
        """See the stops of children that this process had seen already, or that are not the job's own affair, and
        forget the signals that told of them. children: those that were `halt`ed."""
        calls = [
            call(NR.wait4, child.record.pid, 0, 2, 0) for child in children if child.held or child.record.stop_reported
        ]
        if children:
            calls.append(_taken(signal.SIGCHLD))
        self.process.run(calls)

    def ask_for_signals(self, done: set[int]) -> None:
        """Signals on input or output (O_ASYNC) are asked for where the descriptor has a number: it is sent with them.

        done: objects for which another process has done it."""
        for d in self.record.descriptors:
            owned = self.inventory.manifest.objects[d.object].owner
            if owned is not None and owned.sending and d.object not in done:
                done.add(d.object)
                flags = fcntl.fcntl(self.inventory.object(d.object), fcntl.F_GETFL)
                self.process.run([call(NR.fcntl, d.number, fcntl.F_SETFL, flags | O_ASYNC)])

    def late(self) -> None:
        """Files that only the process itself can open, over what holds their place."""
        opened: dict[int, int] = {}
        for d in self.record.descriptors:
            late = self.inventory.late(d.object)
            if late is None:
                continue
            if d.object not in opened:
                path = In(late.path + b"\0")
                fd = self.process.run([call(NR.openat, 0, path, late.flags | 0o2000000, 0)], check=False)[0]
                if fd.error:
                    continue  # gone in the meantime: what holds its place says so
                opened[d.object] = fd.value
                self.process.run([call(NR.lseek, fd.value, late.position, 0, accept=ANY)])
            self.process.run([call(NR.dup3, opened[d.object], d.number, 0o2000000 if d.cloexec else 0)])
        self.process.run([call(NR.close, fd) for fd in opened.values()])

    def clocks(self) -> list[Work]:
        """Whatever starts to run."""
        pairs = list(zip(self.process.tasks, self.record.threads))
        return [self._clock(task, thread, task is self.process.leader) for task, thread in pairs]

    def _clock(self, task: Task, thread: ThreadRecord, first: bool) -> Work:
        calls = self._process_calls(Stage.CLOCKS) if first else []
        calls += self._thread_calls(task, thread.services, Stage.CLOCKS)
        yield Asked(task, self._but_continuing(calls))

    def last_of_others(self) -> list[Work]:
        """Identity of all threads but the first; afterwards a thread can do no more than it could when it was saved.
        What the first one drops for the whole process may be needed by the others."""
        pairs = list(zip(self.process.tasks, self.record.threads))
        return [self._last(task, thread) for task, thread in pairs[1:]]

    def _last(self, task: Task, thread: ThreadRecord) -> Work:
        yield Asked(task, self._thread_calls(task, thread.services, Stage.LAST))

    def last(self) -> Work:
        """The same of the first thread, and of the process."""
        own = self._thread_calls(self.process.leader, self.record.threads[0].services, Stage.LAST)
        yield self._ask([*self.memory.seals(), *own, *self._process_calls(Stage.LAST)])

    def dress(self) -> None:
        """Take the scaffold down and set the registers of all threads."""
        process, record = self.process, self.record
        self.memory.vacate()
        fields = proc.status(process.pid)
        caught, shared = int(fields["SigCgt"], 16), int(fields["ShdPnd"], 16)
        for task, thread in zip(process.tasks, record.threads):
            regs = Regs.from_buffer_copy(thread.cpu.regs)
            ptrace.set_regset(task.tid, NT_X86_XSTATE, thread.cpu.xstate)
            task.mask = thread.cpu.mask
            due = _handler_due(task, caught & ~thread.cpu.mask, shared)
            task.regs = cpu.going_on(regs, due, thread.cpu.restarting)
            task.put_back()
            task.held.clear()

    def release(self) -> None:
        """Let all threads go."""
        for task in self.process.tasks[::-1]:
            try:
                ptrace.request(ptrace.DETACH, task.tid)
            except ProcessLookupError:
                pass  # ended by one that was let go before and runs already
        self.process.close()

    # Helpers.

    def _ask(self, calls: Sequence[Call], check: bool = True) -> Asked:
        """Of the first thread."""
        return Asked(self.process.leader, calls, check)

    def _states(self, services: Sequence[Any], saved: Services) -> list[tuple[Any, Any]]:
        return [
            (service, msgspec.msgpack.decode(saved[service.name], type=service.record))
            for service in services
            if service.name in saved
        ]

    def _process_calls(self, stage: Stage) -> list[Call]:
        if self._steps is None:
            states = self._states(PROCESS_SERVICES, self.record.services)
            self._steps = [service.restore(state, self.process) for service, state in states]
        return [call for steps in self._steps for call in steps.get(stage, ())]

    def _thread_calls(self, task: Task, saved: Services, stage: Stage) -> list[Call]:
        if task.tid not in self._thread_steps:
            states = self._states(THREAD_SERVICES, saved)
            self._thread_steps[task.tid] = [service.restore(state, task) for service, state in states]
        return [call for steps in self._thread_steps[task.tid] for call in steps.get(stage, ())]

    def _but_continuing(self, calls: list[Call]) -> list[Call]:
        """Without the SIGCONT that was pending, if the process is held: to queue it would end the stop. The one that
        lets it go on takes its place."""
        if not self.held:
            return calls
        place: dict[int, int] = {NR.rt_sigqueueinfo: 1, NR.rt_tgsigqueueinfo: 2}
        return [each for each in calls if each.nr not in place or each.args[place[each.nr]] != signal.SIGCONT]

    def _pending(self) -> int:
        """Signals (bits) that will be queued for this process or a thread of it."""
        # Only these two records are decoded here: this runs for every process before anything else of it is there.
        whole = [service for service in PROCESS_SERVICES if service.name == "pending"]
        each = [service for service in THREAD_SERVICES if service.name == "thread_signals"]
        states = self._states(whole, self.record.services)
        for thread in self.record.threads:
            states += self._states(each, thread.services)
        found = 0
        for _, state in states:
            found |= pending.bits(state.signals)
        return found


def _handler_due(task: Task, open_to: int, shared: int) -> bool:
    """Is a signal waiting that has a handler, and that the thread does not block? open_to: such signals (bits).
    shared: those that wait for the whole process."""
    if not open_to:
        return False
    return bool(open_to & (shared | pending.bits(ptrace.pending(task.tid, shared=False))))


def _taken(number: int) -> Call:
    """Take a blocked signal that waits, if it does."""
    return call(NR.rt_sigtimedwait, In((1 << (number - 1)).to_bytes(8, "little")), 0, In(bytes(16)), 8, accept=(11,))
