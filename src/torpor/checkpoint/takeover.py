"""Turn a stub into the process it stands for, from outside.

`Takeover` is one process' part of a restart. Its methods are the steps; `checkpoint/restart.py` runs each step for all
processes before the next, so that whatever one process needs of another is there.
"""

from __future__ import annotations

import fcntl
import os
import signal
import struct
from collections.abc import Container, Mapping, Sequence
from typing import Any

import msgspec

from torpor.checkpoint.fill import worth_it
from torpor.checkpoint.recreate import Inventory
from torpor.image.manifest import ProcessRecord, Services, ThreadRecord
from torpor.linux import pidfd, proc, ptrace, pty, uio, userfaultfd
from torpor.linux.arch.x86_64 import NR
from torpor.linux.masks import masked
from torpor.linux.proc import Area
from torpor.linux.ptrace import NT_X86_XSTATE, Regs
from torpor.model.errors import RestartFailed
from torpor.posix import cpu, pending
from torpor.posix.descriptors import O_ASYNC
from torpor.posix.memory import area as areas
from torpor.posix.memory import layout, vdso
from torpor.posix.memory.area import ANONYMOUS, KERNEL, MAY_WRITE, OBJECT, SYSV, AreaRecord
from torpor.posix.memory.pages import PagesRecord
from torpor.posix.process_services import PROCESS_SERVICES, THREAD_SERVICES
from torpor.posix.service import Stage, Steps
from torpor.tracee.call import ANY, Call, In, Out, call
from torpor.tracee.stub import LOWEST, USER_END, StubProcess, find_hole, find_syscall
from torpor.tracee.task import Asked, Task, Work
from torpor.tracee.together import together

PAGE = 4096
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
        self._inherited = inherited
        self._segments = _segments(record.areas, inventory.segment_sizes())
        self._mine, self._hole, size = self._look_around(host)
        self.process = StubProcess(host, record.pid, self._hole, size)
        self._parked: dict[int, int] = {}
        self._segment_at: dict[tuple[int, bool], int] = {}
        self._kernel_at: dict[str, int] = {}
        self._steps: list[Steps] | None = None
        self._thread_steps: dict[int, list[Steps]] = {}

    def _look_around(self, host: int) -> tuple[list[Area], int, int]:
        """The areas that the stub has now, and a hole between them and those it will have: address and size."""
        mine = proc.maps(host)
        size = (1 << 20) + sum(_pages(len(area)) for _, area in self.inventory.parked()) + sum(self._segments.values())
        used = [(a.start, a.end) for a in mine] + [(a.start, a.end) for a in self.record.areas]
        return mine, find_hole(size, used), size

    # Steps, in order.

    def seize(self) -> None:
        """Attach, and tell it to stop."""
        self.process.seize()

    def settle(self) -> Work:
        """Wait for the stop, and move into the hole."""
        self.process.arrived()
        return (yield from self.process.settle(self._mine, self._pending()))

    def execute(self) -> str:
        """Execute the program, for the sake of /proc/PID/exe where it cannot be set; a note if that was refused."""
        fd = self.inventory.file(self.record.exe)
        error = self.process.execute(fd)
        if error:
            exe = self.inventory.manifest.files[self.record.exe].identity.path
            return f"/proc/{self.record.pid}/exe shows torpor's Python: {exe} cannot be executed ({os.strerror(error)})"
        self._mine, self._hole, size = self._look_around(self.process.pid)
        self.process.move(self._hole, size)
        together([self.process.settle(self._mine, self._pending())])
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

    def attach(self) -> None:
        """Attach the System V segments that the process had attached, each whole, in the hole."""
        if not self._segments:
            return
        from torpor.linux.sysvipc import SHM_RDONLY, SHM_REMAP

        calls = []
        room = self._hole + self.process.hole_size - sum(self._segments.values())
        for (number, writable), size in self._segments.items():
            calls.append(call(NR.shmat, number, room, SHM_REMAP | (0 if writable else SHM_RDONLY)))
            self._segment_at[number, writable] = room
            room += size
        self.process.run(calls)

    def map(self) -> Work:
        """Replace the stub's memory by the areas of the record, still without contents."""
        process, record = self.process, self.record
        calls: list[Call] = []
        for task in process.tasks:
            # The kernel writes to these behind the program's back; their memory is about to go.
            address, size, signature = ptrace.rseq_configuration(task.tid)
            if address:
                calls.append(call(NR.rseq, address, size, 1, signature))
        calls += [call(NR.set_robust_list, 0, 24), call(NR.set_tid_address, 0)]
        room = process.room
        for name, mine in self._kernel_areas().items():
            calls.append(call(NR.mremap, mine.start, mine.size, mine.size, 3, room))
            self._kernel_at[name] = room
            room += mine.size
        for number, shared in self.inventory.parked():
            size = _pages(len(shared))
            calls.append(call(NR.mremap, uio.address_of(shared), 0, size, 3, room))
            self._parked[number] = room
            room += size
        hole = (self._hole, self._hole + process.hole_size)
        at = LOWEST
        for start, end in sorted((*self._inherited, hole, (USER_END, USER_END))):
            if start > at:
                calls.append(call(NR.munmap, at, start - at))
            at = end
        yield self._ask(calls)
        calls, code = self._kernel_calls()
        there = set(self._inherited)
        calls += [
            areas.make(a, self._fd_of, self._parked_at)
            for a in record.areas
            if a.kind != KERNEL and (a.start, a.end) not in there
        ]
        answers = yield self._ask(calls)
        for what, answer in zip(calls, answers):
            wanted = what.args[0] if what.nr == NR.mmap else what.args[4]
            if answer.value != wanted:
                raise RestartFailed(f"process {record.pid}: no room at {wanted:#x}")
        calls = [each for area in record.areas for each in areas.before(area)]
        calls += [call(NR.munmap, at, self._segments[which]) for which, at in self._segment_at.items()]
        yield self._ask(calls)
        if code:
            uio.force_write(process.pid, self._vdso_start(), code)
        if record.layout is not None:
            fd = self.inventory.file(record.exe)
            answer = (yield self._ask([layout.restore(record.layout, fd)], check=False))[0]
            if answer.error:
                answer = (yield self._ask([layout.restore(record.layout, -1)], check=False))[0]
                if answer.error:
                    raise RestartFailed(f"process {record.pid}: its memory layout is refused (errno {answer.error})")

    def hand_out(self, pages: PagesRecord, faults: dict[int, int]) -> Work:
        """Put a userfaultfd of the process into `faults`, by its pid, if there is so much to fill that it is worth it,
        and if it may have one. pages: what is to be filled."""
        if masked("userfaultfd") or not worth_it(pages):
            return
        flags = os.O_CLOEXEC | os.O_NONBLOCK | userfaultfd.USER_MODE_ONLY
        (made,) = yield self._ask([call(NR.userfaultfd, flags)], check=False)
        if made.error:
            return  # it is filled without, as where we cannot have a copy
        process = os.pidfd_open(self.process.pid)
        try:
            faults[self.process.pid] = pidfd.copy(process, made.value)
        except OSError:
            pass  # the process closes its own, with all that it did not have
        finally:
            os.close(process)

    def furnish(self) -> Work:
        """Its memory as it was, its descriptors, and what else the kernel keeps for the process."""
        yield from self._protect()
        yield from self._descriptors()
        yield from self._restore()

    def _protect(self) -> Work:
        """The contents are in: protection, advice, locks."""
        # Guard pages first: none are to be had in memory that is locked (mm/madvise.c, is_valid_guard_vma).
        calls = [areas.guard(address, size) for address, size in self.record.guards]
        for record in self.record.areas:
            calls += areas.finish(record)
        yield self._ask(calls)

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
        seals: list[Call] = []
        for record in self.record.areas:
            seals += areas.seal(record)
        own = self._thread_calls(self.process.leader, self.record.threads[0].services, Stage.LAST)
        yield self._ask([*seals, *own, *self._process_calls(Stage.LAST)])

    def dress(self) -> None:
        """Take the scaffold down and set the registers of all threads."""
        process, record = self.process, self.record
        executable = [(a.start, a.end) for a in record.areas if a.prot & 4 and a.prot & 1]
        vdso_first = sorted(executable, key=lambda r: r[0] != self._vdso_start())
        process.vacate(find_syscall(process.pid, vdso_first), [(self._hole, process.hole_size)])
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

    def _kernel_calls(self) -> tuple[list[Call], bytes]:
        """The calls that put the kernel's own areas, which are parked, to where they belong; and the code that then
        has to be written over the old [vdso], empty if it needs none (see posix/memory/vdso.py)."""
        mine = {name: (area.start, area.size) for name, area in self._kernel_areas().items()}
        saved = {area.name: area for area in self.record.areas if area.kind == KERNEL}
        old = self.inventory.manifest.vdso
        at, size = self._kernel_at.get(vdso.CODE, 0), mine.get(vdso.CODE, (0, 0))[1]
        new = uio.force_read(self.process.pid, at, size) if size else b""
        if not saved:
            return [], b""
        if vdso.same(old, new, {name: (area.start, area.size) for name, area in saved.items()}, mine):
            moves = [(name, saved[name].start) for name in mine]
            return [
                call(NR.mremap, self._kernel_at[name], mine[name][1], mine[name][1], 3, to) for name, to in moves
            ], b""
        if not old:
            raise RestartFailed("this kernel's vDSO differs from the saved one's, which is not in this checkpoint")
        # This kernel's goes somewhere else, all of its areas at their distances.
        first = min((start for start, _ in mine.values()), default=0)
        extent = max((start + size for start, size in mine.values()), default=0) - first
        used = [(area.start, area.end) for area in self.record.areas]
        base = find_hole(extent, [*used, (self._hole, self._hole + self.process.hole_size)])
        calls = [
            call(NR.mremap, self._kernel_at[name], size, size, 3, base + start - first)
            for name, (start, size) in mine.items()
        ]
        for area in saved.values():
            plain = msgspec.structs.replace(area, kind=ANONYMOUS, flags=())
            calls.append(areas.make(plain, self._fd_of))
        pointers = [Regs.from_buffer_copy(thread.cpu.regs).rip for thread in self.record.threads]
        try:
            if vdso.cut_off(old, self._vdso_start(), pointers):
                raise RestartFailed(f"process {self.record.pid} was just entering the vDSO, and this kernel's differs")
            return calls, vdso.redirected(old, new, base + mine.get(vdso.CODE, (first, 0))[0] - first)
        except ValueError as error:
            raise RestartFailed(f"this kernel's vDSO differs, and of the saved one {error}") from None

    def _vdso_start(self) -> int:
        return next((a.start for a in self.record.areas if a.name == "[vdso]"), 0)

    def _kernel_areas(self) -> dict[str, Area]:
        return {a.path: a for a in self._mine if a.path in vdso.NAMES}

    def _fd_of(self, record: AreaRecord) -> int:
        if record.kind == OBJECT:
            if record.descriptor < 0:
                return self.inventory.memory(record.what)
            return self.inventory.mappable(record.descriptor, record.shared and record.may_write)
        return self.inventory.file(record.what)

    def _parked_at(self, record: AreaRecord) -> int:
        if record.kind == SYSV:
            return self._segment_at[record.what, MAY_WRITE in record.flags]
        return self._parked.get(record.what, 0) if record.descriptor < 0 else 0

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


def _pages(size: int) -> int:
    """A size rounded up to whole pages."""
    return (size + PAGE - 1) & ~(PAGE - 1)


def _segments(areas: Sequence[AreaRecord], sizes: dict[int, int]) -> dict[tuple[int, bool], int]:
    """The System V segments among areas: (id, may it be written to): bytes of address space for all of it."""
    return {(a.what, MAY_WRITE in a.flags): _pages(sizes[a.what]) for a in areas if a.kind == SYSV}


def _taken(number: int) -> Call:
    """Take a blocked signal that waits, if it does."""
    return call(NR.rt_sigtimedwait, In((1 << (number - 1)).to_bytes(8, "little")), 0, In(bytes(16)), 8, accept=(11,))
