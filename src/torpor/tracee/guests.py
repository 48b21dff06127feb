"""The threads of a living process make their calls, a few at the same time.

While some make theirs, the next are told: so neither we nor the threads wait for the way from one to the other, which
takes longer than the calls. And what there is to be done for a thread is done by tables of calls of our own
(linux/multicall.py): its code, its calls and its registers put in their places, the wait for its end, its answers.
"""

from __future__ import annotations

import errno
import os
import struct
from collections import deque
from collections.abc import Iterable, Sequence
from itertools import islice

from torpor.linux import ptrace
from torpor.linux.arch.x86_64 import NR
from torpor.linux.arch.x86_64_code import SIZE
from torpor.linux.multicall import Room, Row, Table
from torpor.named_tuple import NamedTuple
from torpor.tracee.batch import Batch, laid_out
from torpor.tracee.call import Call
from torpor.tracee.process import LivingProcess
from torpor.tracee.task import BUSY, HEAD, Begun, Gone, Made, Seat, Task, mask_in

Asked = tuple[Task, Sequence[Call]]

_HOME, _REGS, _MASK, _OURS, _BUSY, _STATUS, _RIP, _IMAGE, _ANSWERS = 512, 728, 944, 952, 960, 964, 968, 1024, 8192
"""Where in a lane's part of the room things are, behind the code: registers and mask as they were found, in between
those with which the thread sets out; the word that says that there is a guest; what the wait has told, and where it
stands then; its calls; these with their answers."""
_PART = 2 * _ANSWERS - _IMAGE
_ENDED = struct.Struct("<IQ").unpack_from
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


class _Guest(NamedTuple):
    """A thread on its way, or at its end. slot, code: where its code is to be, and that."""

    task: Task
    seat: Seat
    batch: Batch
    slot: int
    code: bytes


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
        self._batches: dict[int, Batch] = {}
        """By part: the calls that are laid out in it."""
        self._numbers = [
            (table, range(row, rows * len(lanes), rows), argument)
            for table, rows, row, argument in (
                (self._back, 2, 0, 1), (self._back, 2, 1, 1), (self._out, 5, 3, 1), (self._out, 5, 4, 1),
                (self._go, 1, 0, 1), (self._end, 3, 0, 0), (self._end, 3, 1, 1),
            )
        ]  # fmt: skip
        """Where the number of a thread stands: in which rows of a table, one for each part, as which argument."""

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
            (NR.pread64, memory, self._room.at(part, _ANSWERS), 0, 0),
        )

    def set_out(self, threads: Sequence[Asked]) -> bool:
        """Send threads, no more than there are lanes, to their calls; whoever was in these lanes is put back. False if
        they are too many calls to be made at once: then nothing was done. Raises OSError."""
        guests = []
        for (task, calls), lane in zip(threads, self._lanes):
            seat, slot, code = self._process.guest(task, lane)
            batches = list(islice(laid_out(seat.scratch + HEAD, seat.size - 4096, calls), 2))
            if len(batches) != 1 or len(batches[0].image) > _ANSWERS - _IMAGE:
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
        task, seat, batch, code = guest.task, guest.seat, guest.batch, guest.code
        task.in_signal_stop = False
        words = struct.pack("<QQ", task.mask, mask_in(seat))
        registers = bytes(task.regs) + task.as_guest(seat, batch)
        self._room.put(part, 0, code.ljust(_HOME, b"\0") + registers + words + BUSY)
        if self._batches.get(part) is not batch:
            self._lay_out(part, guest)
        tid = task.tid
        for table, row, argument in self._numbers:
            table.put(row[part], argument, tid)
        return len(code), len(batch.image), len(BUSY), 0, 0

    def _lay_out(self, part: int, guest: _Guest) -> None:
        """What stays the same as long as those in a lane make the same calls."""
        image, at = guest.batch.image, guest.seat.scratch + HEAD
        self._room.put(part, _IMAGE, image)
        for row, value, address in (
            (0, len(guest.code), guest.slot),
            (1, len(image), at),
            (2, len(BUSY), guest.seat.hold),
        ):
            self._out.put(5 * part + row, 2, value)
            self._out.put(5 * part + row, 3, address)
        self._end.put(3 * part + 2, 2, len(image))
        self._end.put(3 * part + 2, 3, at)
        self._batches[part] = guest.batch

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
        status, rip = _ENDED(self._room.memory, part * _PART + _STATUS)
        if results == [task.tid, 0, size] and status == seat.signal << 8 | 0x7F and rip == seat.stop:
            task.in_signal_stop = True
            return self._room.bytes(part, _ANSWERS, size)
        known = status if results[0] == task.tid else None
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
