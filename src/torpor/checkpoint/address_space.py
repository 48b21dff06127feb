"""The memory of a stub is replaced by that of the process it stands for, from outside.

All of the stub is unmapped but a *hole* that our code runs in (tracee/stub.py), and the areas of the process are made,
empty. What is not made but moved to its place is parked in the hole until then: the kernel's own areas, shared memory
that the stub has inherited, System V segments. Contents are put in by others (checkpoint/fill.py, checkpoint/lazy/),
and only then do areas get their protection.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

import msgspec

from torpor.checkpoint.fill import worth_it
from torpor.checkpoint.recreate import Inventory
from torpor.image.manifest import ProcessRecord
from torpor.linux import pidfd, proc, ptrace, uio, userfaultfd
from torpor.linux.arch.x86_64 import NR
from torpor.linux.masks import masked
from torpor.linux.proc import Area
from torpor.linux.ptrace import Regs
from torpor.model.errors import RestartFailed
from torpor.posix.memory import area as areas
from torpor.posix.memory import layout, vdso
from torpor.posix.memory.area import ANONYMOUS, KERNEL, MAY_WRITE, OBJECT, SYSV, AreaRecord
from torpor.posix.memory.pages import PAGE, PagesRecord
from torpor.tracee.call import Call, call
from torpor.tracee.stub import LOWEST, USER_END, StubProcess, find_hole, find_syscall
from torpor.tracee.task import Asked, Work


class AddressSpace:
    """The memory of one process: first the stub's, then that of its record. The methods are steps, in this order."""

    def __init__(
        self, record: ProcessRecord, inventory: Inventory, process: StubProcess,
        inherited: Sequence[tuple[int, int]] = (),
    ) -> None:  # fmt: skip
        """process: the stub, which needs no hole yet. inherited: areas (start, end), ascending, that it has already,
        with their contents."""
        self._record, self._inventory, self._process = record, inventory, process
        self._inherited = inherited
        self._segments = _segments(record.areas, inventory.segment_sizes())
        self._mine: list[Area] = []
        """The areas that the stub has, before `map`."""
        self._parked: dict[int, int] = {}
        """Shared memory in the hole: its address, by number (Manifest.memory)."""
        self._segment_at: dict[tuple[int, bool], int] = {}
        """System V segments in the hole, as in `_segments`."""
        self._kernel_at: dict[str, int] = {}
        """The kernel's own areas in the hole, by name."""
        self.look_around()

    def look_around(self) -> None:
        """See which areas the stub has now, and choose a hole between them and those that it will have. Again once it
        has executed a program."""
        self._mine = proc.maps(self._process.pid)
        parked = sum(_pages(len(area)) for _, area in self._inventory.parked())
        size = (1 << 20) + parked + sum(self._segments.values())
        used = [(a.start, a.end) for a in self._mine] + [(a.start, a.end) for a in self._record.areas]
        self._process.move(find_hole(size, used), size)

    def settle(self, pending: int) -> Work:
        """Move into the hole. pending: signals (bits) that will be queued for the process. Raises RestartFailed."""
        return self._process.settle(self._mine, pending)

    def attach(self) -> None:
        """Attach the System V segments that the process had attached, each whole, in the hole. Raises CallFailed."""
        if not self._segments:
            return
        from torpor.linux.sysvipc import SHM_RDONLY, SHM_REMAP

        calls = []
        room = self._hole[1] - sum(self._segments.values())
        for (number, writable), size in self._segments.items():
            calls.append(call(NR.shmat, number, room, SHM_REMAP | (0 if writable else SHM_RDONLY)))
            self._segment_at[number, writable] = room
            room += size
        self._process.run(calls)

    def map(self) -> Work:
        """Replace the stub's memory by the areas of the record, still without contents. Raises RestartFailed."""
        process, record = self._process, self._record
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
        for number, shared in self._inventory.parked():
            size = _pages(len(shared))
            calls.append(call(NR.mremap, uio.address_of(shared), 0, size, 3, room))
            self._parked[number] = room
            room += size
        at = LOWEST
        for start, end in sorted((*self._inherited, self._hole, (USER_END, USER_END))):
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
            fd = self._inventory.file(record.exe)
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
        process = os.pidfd_open(self._process.pid)
        try:
            faults[self._process.pid] = pidfd.copy(process, made.value)
        except OSError:
            pass  # the process closes its own, with all that it did not have
        finally:
            os.close(process)

    def protect(self) -> Work:
        """The contents are in: protection, advice, locks."""
        # Guard pages first: none are to be had in memory that is locked (mm/madvise.c, is_valid_guard_vma).
        calls = [areas.guard(address, size) for address, size in self._record.guards]
        for record in self._record.areas:
            calls += areas.finish(record)
        yield self._ask(calls)

    def seals(self) -> list[Call]:
        """The calls that seal the areas that were sealed: nothing of these can be changed afterwards."""
        return [seal for record in self._record.areas for seal in areas.seal(record)]

    def vacate(self) -> None:
        """Unmap the hole: nothing of ours is left. No calls can be run in the process any more."""
        process = self._process
        executable = [(a.start, a.end) for a in self._record.areas if a.prot & 4 and a.prot & 1]
        vdso_first = sorted(executable, key=lambda r: r[0] != self._vdso_start())
        process.vacate(find_syscall(process.pid, vdso_first), [(process.hole, process.hole_size)])

    # Helpers.

    @property
    def _hole(self) -> tuple[int, int]:
        """Its start and end."""
        return self._process.hole, self._process.hole + self._process.hole_size

    def _ask(self, calls: Sequence[Call], check: bool = True) -> Asked:
        """Of the first thread."""
        return Asked(self._process.leader, calls, check)

    def _kernel_calls(self) -> tuple[list[Call], bytes]:
        """The calls that put the kernel's own areas, which are parked, to where they belong; and the code that then
        has to be written over the old [vdso], empty if it needs none (see posix/memory/vdso.py)."""
        mine = {name: (area.start, area.size) for name, area in self._kernel_areas().items()}
        saved = {area.name: area for area in self._record.areas if area.kind == KERNEL}
        old = self._inventory.manifest.vdso
        at, size = self._kernel_at.get(vdso.CODE, 0), mine.get(vdso.CODE, (0, 0))[1]
        new = uio.force_read(self._process.pid, at, size) if size else b""
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
        used = [(area.start, area.end) for area in self._record.areas]
        base = find_hole(extent, [*used, self._hole])
        calls = [
            call(NR.mremap, self._kernel_at[name], size, size, 3, base + start - first)
            for name, (start, size) in mine.items()
        ]
        for area in saved.values():
            plain = msgspec.structs.replace(area, kind=ANONYMOUS, flags=())
            calls.append(areas.make(plain, self._fd_of))
        pointers = [Regs.from_buffer_copy(thread.cpu.regs).rip for thread in self._record.threads]
        try:
            if vdso.cut_off(old, self._vdso_start(), pointers):
                raise RestartFailed(f"process {self._record.pid} was just entering the vDSO, and this kernel's differs")
            return calls, vdso.redirected(old, new, base + mine.get(vdso.CODE, (first, 0))[0] - first)
        except ValueError as error:
            raise RestartFailed(f"this kernel's vDSO differs, and of the saved one {error}") from None

    def _vdso_start(self) -> int:
        return next((a.start for a in self._record.areas if a.name == "[vdso]"), 0)

    def _kernel_areas(self) -> dict[str, Area]:
        return {a.path: a for a in self._mine if a.path in vdso.NAMES}

    def _fd_of(self, record: AreaRecord) -> int:
        if record.kind == OBJECT:
            if record.descriptor < 0:
                return self._inventory.memory(record.what)
            return self._inventory.mappable(record.descriptor, record.shared and record.may_write)
        return self._inventory.file(record.what)

    def _parked_at(self, record: AreaRecord) -> int:
        if record.kind == SYSV:
            return self._segment_at[record.what, MAY_WRITE in record.flags]
        return self._parked.get(record.what, 0) if record.descriptor < 0 else 0


def _pages(size: int) -> int:
    """A size rounded up to whole pages."""
    return (size + PAGE - 1) & ~(PAGE - 1)


def _segments(areas: Sequence[AreaRecord], sizes: dict[int, int]) -> dict[tuple[int, bool], int]:
    """The System V segments among areas: (id, may it be written to): bytes of address space for all of it."""
    return {(a.what, MAY_WRITE in a.flags): _pages(sizes[a.what]) for a in areas if a.kind == SYSV}
