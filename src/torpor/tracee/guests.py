"""The threads of a living process make their calls, a few at the same time.

While some make theirs, the next are told: so neither we nor the threads wait for the way from one to the other, which
takes longer than the calls. And what there is to be done for a thread is done by tables of calls of our own
(linux/multicall.py): its code, its calls and its registers put in their places, the wait for its end, its answers.
"""

from __future__ import annotations

import errno
import os
from collections import deque
from collections.abc import Iterable, Sequence
from itertools import islice

from torpor.linux import ptrace
from torpor.linux.arch.x86_64 import NR
from torpor.linux.arch.x86_64_code import SIZE
from torpor.linux.multicall import Room, Row, Table
from torpor.tracee.batch import Batch, laid_out
from torpor.tracee.call import Call
from torpor.tracee.process import LivingProcess
from torpor.tracee.task import BUSY, HEAD, Begun, Gone, Made, Seat, Task, mask_in

Asked = tuple[Task, Sequence[Call]]

_HOME, _REGS, _MASK, _OURS, _BUSY, _RIP, _STATUS, _IMAGE = 512, 768, 1024, 1032, 1040, 1048, 1056, 1088
"""Where in a lane's part of the room things are, behind the code: registers and mask as they were found, and those with
which the thread sets out; the word that says that there is a guest; where it stands, and what the wait has told; its
calls."""
_PART = 8192
assert SIZE <= _HOME


def make(process: LivingProcess, asked: Iterable[Asked]) -> list[Made]:
    """Have threads that are not the first one make calls; what came of them, in the same order.

    Raises Gone, OSError. All of them stand where they were found afterwards, in any case.
    """
    made: list[Made] = []
    threads = iter(asked)
    some = list(islice(threads, 1))
    if not some:
        return made
    lanes = process.lanes
    size = max(1, lanes // 2)
    with process.memory() as memory:
        crews = deque(_Crew(process, memory, range(at, at + size)) for at in range(0, min(lanes, 2 * size), size))
        try:
            while some:
                some += islice(threads, size - len(some))
                if crews[0].set_out(some):
                    crews.rotate(-1)
                    made += crews[0].end()  # of the others, who set out before
                else:
                    made += crews[-1].end()
                    for crew in crews:
                        crew.put_back()
                    made += [Begun(task, process.seat_guest(task, 0), calls).made() for task, calls in some]
                some = list(islice(threads, size))
            made += crews[-1].end()
        finally:
            for crew in crews:
                crew.give_up()
    return made


class _Guest:
    """A thread on its way, or at its end. slot, code: its code, and where that is."""

    def __init__(self, task: Task, seat: Seat, batch: Batch, slot: int, code: bytes) -> None:
        self.task, self.seat, self.batch, self.slot, self.code = task, seat, batch, slot, code


class _Crew:
    """Threads that set out together, each in a lane of its own (a part of the room, and rows of each table)."""

    def __init__(self, process: LivingProcess, memory: int, lanes: Sequence[int]) -> None:
        self._process, self._lanes = process, lanes
        self._room = Room(len(lanes), _PART)
        self._flying: list[_Guest] = []
        self._seated: dict[int, Task] = {}
        """By part: those whose registers and mask are still ours."""
        parts = range(len(lanes))
        self._back = Table(row for part in parts for row in self._rows_back(part))
        self._out = Table(row for part in parts for row in self._rows_out(part, memory))
        self._go = Table((NR.ptrace, ptrace.CONT, 0, 0, 0) for _ in parts)
        self._end = Table(row for part in parts for row in self._rows_end(part, memory))

    def _rows_back(self, part: int) -> tuple[Row, ...]:
        # Leaving, the mask comes first; setting out, the registers (Task.put_back, Task.launch).
        return (
            (NR.ptrace, ptrace.SETSIGMASK, 0, 8, self._room.at(part, _MASK)),
            (NR.ptrace, ptrace.SETREGS, 0, 0, self._room.at(part, _HOME)),
        )

    def _rows_out(self, part: int, memory: int) -> tuple[Row, ...]:
        return (
            (NR.pwrite64, memory, self._room.at(part), 0, 0),
            (NR.pwrite64, memory, self._room.at(part, _IMAGE), 0, 0),
            (NR.pwrite64, memory, self._room.at(part, _BUSY), len(BUSY), 0),
            (NR.ptrace, ptrace.SETREGS, 0, 0, self._room.at(part, _REGS)),
            (NR.ptrace, ptrace.SETSIGMASK, 0, 8, self._room.at(part, _OURS)),
        )

    def _rows_end(self, part: int, memory: int) -> tuple[Row, ...]:
        return (
            (NR.wait4, 0, self._room.at(part, _STATUS), ptrace.WALL, 0),
            (NR.ptrace, ptrace.PEEKUSER, 0, ptrace.RIP, self._room.at(part, _RIP)),
            (NR.pread64, memory, self._room.at(part, _IMAGE), 0, 0),
        )

    def set_out(self, threads: Sequence[Asked]) -> bool:
        """Send threads, no more than there are lanes, to their calls; whoever was in these lanes is put back. False if
        they are too many calls to be made at once: then nothing was done. Raises OSError."""
        guests = []
        for (task, calls), lane in zip(threads, self._lanes):
            seat, slot, code = self._process.guest(task, lane)
            batches = list(islice(laid_out(seat.scratch + HEAD, seat.size - 4096, calls), 2))
            if len(batches) != 1 or len(batches[0].image) > _PART - _IMAGE:
                return False
            guests.append(_Guest(task, seat, batches[0], slot, code))
        self.put_back()
        wanted: list[int] = []
        for part, guest in enumerate(guests):
            wanted += self._arrange(part, guest)
            self._seated[part] = guest.task
        if self._out.make(len(wanted)) != wanted:
            raise ProcessLookupError(errno.ESRCH, os.strerror(errno.ESRCH))  # its memory is gone
        self._go.make(len(guests))
        self._flying = guests
        return True

    def _arrange(self, part: int, guest: _Guest) -> tuple[int, ...]:
        """Fill in a lane's part of the room, and its rows; what those of `_rows_out` are to return."""
        task, seat, image, code = guest.task, guest.seat, guest.batch.image, guest.code
        room, at, tid = self._room.memory, part * _PART, task.tid
        task.in_signal_stop = False
        room[at : at + len(code)] = code
        home = bytes(task.regs)
        room[at + _HOME : at + _HOME + len(home)] = home
        room[at + _REGS : at + _REGS + len(home)] = task.as_guest(seat, guest.batch)
        room[at + _MASK : at + _OURS] = task.mask.to_bytes(8, "little")
        room[at + _OURS : at + _BUSY] = mask_in(seat).to_bytes(8, "little")
        room[at + _BUSY : at + _BUSY + len(BUSY)] = BUSY
        room[at + _IMAGE : at + _IMAGE + len(image)] = image
        table = seat.scratch + HEAD
        self._back.put(2 * part, 1, tid)
        self._back.put(2 * part + 1, 1, tid)
        out = self._out.put
        out(5 * part, 2, len(code))
        out(5 * part, 3, guest.slot)
        out(5 * part + 1, 2, len(image))
        out(5 * part + 1, 3, table)
        out(5 * part + 2, 3, seat.hold)
        out(5 * part + 3, 1, tid)
        out(5 * part + 4, 1, tid)
        self._go.put(part, 1, tid)
        end = self._end.put
        end(3 * part, 0, tid)
        end(3 * part + 1, 1, tid)
        end(3 * part + 2, 2, len(image))
        end(3 * part + 2, 3, table)
        return len(code), len(image), len(BUSY), 0, 0

    def end(self) -> list[Made]:
        """Wait for those that have set out; what came of their calls. Raises Gone, OSError, when all have been waited
        for."""
        guests, self._flying = self._flying, []
        results = self._end.make(3 * len(guests), waits=True)
        made, trouble = [], None
        for part, guest in enumerate(guests):
            try:
                made.append(
                    Made(guest.task.tgid, [(guest.batch, self._image(part, guest, results[3 * part : 3 * part + 3]))])
                )
            except (Gone, OSError) as error:
                self._seated.pop(part)
                trouble = trouble or error
        if trouble is not None:
            raise trouble
        return made

    def _image(self, part: int, guest: _Guest, results: Sequence[int]) -> bytes:
        """The calls of a thread as they are at its end, once it is there. Raises Gone, OSError."""
        task, seat, size = guest.task, guest.seat, len(guest.batch.image)
        known = int.from_bytes(self._room.bytes(part, _STATUS, 4), "little") if results[0] == task.tid else None
        at_end = known == seat.signal << 8 | 0x7F and self._room.word(part, _RIP) == seat.stop
        if at_end and results[1:] == [0, size]:
            task.in_signal_stop = True
            return self._room.bytes(part, _IMAGE, size)
        if known is not None and not os.WIFSTOPPED(known):
            ptrace.reaped[task.tid] = known
        task.to_stop(seat, runs=True, known=known)
        return self._process.get(seat.scratch + HEAD, size)

    def put_back(self) -> None:
        """All that are in the lanes, and have come to their ends, stand where they were found."""
        self._back.make(2 * len(self._seated))  # who was killed meanwhile will be missed elsewhere
        self._seated.clear()

    def give_up(self) -> None:
        """The same, also for those that are still on their way."""
        try:
            self.end()
        except (Gone, OSError):
            pass  # the first that went wrong is told
        for task in self._seated.values():
            try:
                task.put_back()
            except OSError:
                pass
        self._seated.clear()
