"""Many threads at once: ask them to stop, see which have, learn what the kernel knows of each.

What is asked of all of them is asked by one table of calls (linux/multicall.py).
"""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Iterable, Sequence

from torpor.linux import kcmp, ptrace
from torpor.linux.arch.x86_64 import NR
from torpor.linux.multicall import Room, Row, Table
from torpor.linux.ptrace import Regs
from torpor.named_tuple import NamedTuple

_REGS = 16
"""Where in its part of the room the registers of a thread are; in front of them, what the wait has told."""
_PART = 256


class Stopped(NamedTuple):
    """A thread that has come to a stop, or ended. status: what the wait has told.  regs: as they are in this stop."""

    tid: int
    status: int
    regs: Regs


class Stops:
    """Threads that were seized, on their way to a stop. left: those of which nothing has been heard yet."""

    def __init__(self, tids: Iterable[int]) -> None:
        self.left: Sequence[int] = list(tids)
        self._ask = Table((NR.ptrace, ptrace.INTERRUPT, tid, 0, 0) for tid in self.left)
        self._arrange()

    def _arrange(self) -> None:
        self._room = Room(len(self.left), _PART)
        rows: list[Row] = []
        for part, tid in enumerate(self.left):
            rows.append((NR.wait4, tid, self._room.at(part), ptrace.WALL | os.WNOHANG, 0))
            rows.append((NR.ptrace, ptrace.GETREGS, tid, 0, self._room.at(part, _REGS)))
        self._look = Table(rows)

    def ask(self) -> None:
        """Ask all of them to stop. Those that have just ended do not mind."""
        self._ask.make()

    def look(self) -> list[Stopped]:
        """Those that have stopped, or ended, since the last look."""
        waited = self._look.make()[::2]
        found, left = [], []
        for part, (tid, result) in enumerate(zip(self.left, waited)):
            if result == tid:
                status = int.from_bytes(self._room.bytes(part, 0, 4), "little")
                if not os.WIFSTOPPED(status):
                    ptrace.reaped[tid] = status
                found.append(Stopped(tid, status, Regs.from_buffer_copy(self._room.memory, part * _PART + _REGS)))
            elif result in (0, -errno.EINTR):
                left.append(tid)
            else:
                found.append(Stopped(tid, 0, Regs()))  # somebody else has waited for its end
        if len(left) < len(self.left):
            self.left = left
            self._arrange()
        return found


class Facts(NamedTuple):
    """What the kernel knows of a stopped thread. mask: blocked signals.  rseq: see ptrace.rseq_configuration.  status:
    the text of its status file, empty where it was not opened before, or does not fit.  xstate: the state of FPU and
    vectors (NT_X86_XSTATE), empty where it is not known yet how large that is on this machine.  plain: it has
    descriptors and working directory in common with the first thread of its process, and its system calls go to the
    kernel (PR_SET_SYSCALL_USER_DISPATCH); False also where that cannot be told."""

    mask: int
    rseq: tuple[int, int, int]
    status: bytes
    xstate: bytes
    plain: bool


_RSEQ, _VECTOR, _DISPATCH, _STATUS, _XSTATE = 8, 32, 48, 80, 3 * 1024
"""Where the answers are in a thread's part of the room. The status has some 1.5 KiB."""
_ROWS = 7
_DISPATCH_SIZE = 32


class Learning:
    """Threads that are going to be asked for their `Facts`, made before they stop, so that this takes no time
    afterwards. threads: of each its number, that of its process, and a descriptor of its status file (-1 for none)."""

    def __init__(self, threads: Sequence[tuple[int, int, int]]) -> None:
        self._threads = threads
        size = ptrace.usual_room(ptrace.NT_X86_XSTATE)
        self._room = room = Room(len(threads), _XSTATE + size)
        room.memory[::1024] = b"\0" * len(room.memory[::1024])  # so that it is there when it counts
        rows: list[Row] = []
        for part, (tid, pid, fd) in enumerate(threads):
            room.put(part, _VECTOR, struct.pack("<QQ", room.at(part, _XSTATE), size))
            rows.append((NR.ptrace, ptrace.GETSIGMASK, tid, 8, room.at(part)))
            rows.append((NR.ptrace, ptrace.GET_RSEQ_CONFIGURATION, tid, 24, room.at(part, _RSEQ)))
            rows.append((NR.pread64, fd, room.at(part, _STATUS), _XSTATE - _STATUS, 0))
            rows.append((NR.ptrace, ptrace.GETREGSET, tid, ptrace.NT_X86_XSTATE, room.at(part, _VECTOR)))
            rows.append((NR.kcmp, pid, tid, kcmp.FILES, 0, 0))
            rows.append((NR.kcmp, pid, tid, kcmp.FS, 0, 0))
            rows.append((NR.ptrace, ptrace.GET_SYSCALL_USER_DISPATCH, tid, _DISPATCH_SIZE, room.at(part, _DISPATCH)))
        self._size = size
        self._table = Table(rows)

    def facts(self) -> dict[int, Facts]:
        """By tid: of those that are still there."""
        results = self._table.make()
        memory, step = self._room.memory, self._room.size
        found = {}
        for part, (tid, *_) in enumerate(self._threads):
            at = part * step
            masked, sequences, size, _, files, folders, dispatch = results[_ROWS * part : _ROWS * (part + 1)]
            if masked < 0:
                continue
            mask, pointer, length, signature, xstate, dispatched = _ANSWERS(memory, at)
            found[tid] = Facts(
                mask,
                (pointer, length, signature) if sequences > 0 else (0, 0, 0),
                bytes(memory[at + _STATUS : at + _STATUS + size]) if 0 < size < _XSTATE - _STATUS else b"",
                bytes(memory[at + _XSTATE : at + _XSTATE + xstate]) if 0 < xstate < self._size else b"",
                files == folders == 0 and dispatch >= 0 and not dispatched,
            )
        return found


_ANSWERS = struct.Struct("<Q QII8x 8xQ Q").unpack_from
"""Up to `_DISPATCH` and its first word: mask, restartable sequence, how much there was of the last register set, mode
of dispatch."""
