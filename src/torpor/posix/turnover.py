"""Looking into connections that wait to be accepted: by turning a listener's line over once.

What such a connection carries can be read only from the end that `accept` returns, and `accept` takes it out of the
line. So, while the job is stopped, the oldest one is accepted, read, connected anew behind all others, given the
same data again, and the accepted end is closed. Done once for each that waits, the line is as it was, and what was
in it is known. unix_turnover.py and inet_turnover.py say how for their kinds; here is what both stand on.

**Who does it.** Not this process: were it killed in between, a connection would be lost. One task of the job does it
(the *actor*), in one batch of calls, which runs to its end whatever becomes of us (tracee/task.py, `start`). The batch
passes over the calls that have no sense any more once one has failed (`Script.add`, `otherwise`).

**What it needs** comes from us: the batch connects to a socket of ours (an abstract name, gone when we are) and waits
for one message with all descriptors in it: the listener, and what else is called for. This message is the point of no
return. A batch that does not get it closes what it had opened, and nothing has happened. One that got it needs us
no more. What was in the connection comes back the same way.

**Other processes that have the client's end** stand in a batch of their own meanwhile (`Gate`), waiting to be told by
the actor. Their waiting is over, too, when the actor's end is closed: by the actor at its end, or with our death
before the message. **Other threads** of all these processes, which our death sets free, come into code of ours that
lets them go on when the batch of their process is over (LivingProcess.hold_others). So nobody who has the client's
end goes on while a connection is on its way.

**If we are killed**, then:
 - before the message: nothing has happened;
 - after it: the batch goes on to its end. What had been turned over by then is at the end of the line, so connections
   may be accepted in another order; each is whole.
 - A process with the listener only goes on at once: it may find a line empty that it was told is not (accept(2) speaks
   of that case) for the rest of these moments, which are well below a millisecond, or as long as it takes to copy the
   data. A program outside the job that connects just then may take the last place in a full line.
 - Threads for which there is no room for code of ours (more than some 60 in a process, or a program without
   shared libraries) go on at once as well; one that uses this very connection then may find it closed.

Descriptors that the batch opens get the lowest free numbers, which are known because every process that shares the
table is stopped; at its end it closes everything that was not open before.
"""

from __future__ import annotations

import _socket
import array
import os
import select
import struct
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import pairwise

from torpor.linux import kcmp, proc
from torpor.linux.arch.x86_64 import NR
from torpor.model.errors import CheckpointFailed, NotNow, Refusal
from torpor.named_tuple import NamedTuple
from torpor.posix.service import Descriptor
from torpor.tracee.call import RESULT, Answer, Argument, Call, In, Out, Pointer, Word
from torpor.tracee.process import LivingProcess
from torpor.tracee.task import Started

CMSG_CLOEXEC, NOSIGNAL, DONTWAIT, WAITALL = 0x40000000, _socket.MSG_NOSIGNAL, _socket.MSG_DONTWAIT, _socket.MSG_WAITALL
SOL_SOCKET, SCM_RIGHTS = 1, 1
PATIENCE = 5.0
"""Seconds in which a batch that was started must have come to us."""
_MOST_PASSED = 250
"""Descriptors that one message can carry (SCM_MAX_FD is 253)."""
MAP_FLAGS = 0x02 | 0x20 | 0x4000 | 0x100000
"""MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED_NOREPLACE"""
_NOFILE = 7
_FUTEX_CMP_REQUEUE = 4
_FREE = 512
"""So many free numbers are kept an eye on; a batch opens far fewer."""


class Script:
    """A batch in the making: calls by the order in which they are added."""

    def __init__(self) -> None:
        self._calls: list[Call] = []
        self._skips: list[tuple[int, str, str]] = []
        self._labels: dict[str, int] = {}

    def add(self, nr: int, *args: Argument, otherwise: str = "", then: str = "") -> int:
        """Add a call; its place. otherwise, then: the label to go on at if it fails, or if it does not ('': at the next
        call)."""
        if otherwise or then:
            self._skips.append((len(self._calls), otherwise, then))
        self._calls.append(Call(nr, args, name=str(len(self._calls))))
        return len(self._calls) - 1

    def __len__(self) -> int:
        return len(self._calls)

    def label(self, name: str) -> None:
        """The next call has this label."""
        self._labels[name] = len(self._calls)

    @property
    def calls(self) -> list[Call]:
        out = list(self._calls)
        for at, *names in self._skips:
            failed, done = (str(self._labels[name]) if name else "" for name in names)
            out[at] = out[at]._replace(if_failed=failed, if_done=done)
        return out


def result(call: int) -> Word:
    """A pointer to what a call of a script returns, by its place."""
    return Word(str(call), RESULT)


def argument(call: int, number: int) -> Word:
    """A pointer to an argument of a call of a script, by its place."""
    return Word(str(call), number)


class Numbers:
    """Descriptor numbers of a process: which are free, in the order in which the kernel gives them out."""

    def __init__(self, pid: int) -> None:
        self._used = sorted(proc.descriptors(pid))
        self._next = self._free()

    def _free(self) -> Iterator[int]:
        used = frozenset(self._used)
        number = 0
        while True:
            if number not in used:
                yield number
            number += 1

    def take(self) -> int:
        """The number that the next descriptor opened will have."""
        return next(self._next)

    def gaps(self) -> list[tuple[int, int]]:
        """Ranges of numbers that were free at the beginning: the lowest ones."""
        out = []
        start, free = 0, 0
        for number in self._used:
            if number > start:
                out.append((start, number - 1))
                free += number - start
                if free >= _FREE:
                    return out
            start = number + 1
        return [*out, (start, 0xFFFFFFFF)]


def room(pid: int, tid: int, size: int) -> int:
    """An address with `size` bytes of unmapped memory around it on both sides, away from heap and stack."""
    areas = proc.maps(pid, tid)
    widest, at = 0, 0
    for before, after in pairwise(areas):
        if after.start - before.end > widest and after.start < 1 << 47:
            widest, at = after.start - before.end, before.end
    if widest < 4 * size:
        raise CheckpointFailed(f"process {pid} has no address space left for {size} bytes")
    return (at + widest // 2 - size // 2) & ~0xFFFF


def more_descriptors(pid: int, script: Script) -> Callable[[], None]:
    """Add: the process may have as many descriptors as it could allow itself. What adds the way back."""
    for line in proc.text(f"/proc/{pid}/limits").splitlines():
        if line.startswith("Max open files"):
            soft, hard = (int(word) for word in line.split()[3:5])
            break
    else:
        raise CheckpointFailed(f"process {pid}: /proc/{pid}/limits does not tell how many descriptors it may have")
    script.add(NR.prlimit64, 0, _NOFILE, In(struct.pack("<QQ", hard, hard)), 0)
    return lambda: (script.add(NR.prlimit64, 0, _NOFILE, In(struct.pack("<QQ", soft, hard)), 0), None)[1]


def buffer_limit() -> int:
    """net.core.wmem_max: what may be asked of SO_SNDBUF, which the kernel then doubles."""
    try:
        return int(proc.text("/proc/sys/net/core/wmem_max"))
    except OSError:
        return 212992


def header(data: In | Out, size: int, control: In | Out, control_size: int) -> In:
    """A struct msghdr with one buffer."""
    vector = In(struct.pack("<QQ", 0, size), ((0, data),))
    return In(struct.pack("<QIIQQQQII", 0, 0, 0, 0, 1, 0, control_size, 0, 0), ((16, vector), (32, control)))


def receive_descriptors(fd: int, most: int, script: Script, otherwise: str) -> None:
    """Add: wait for a message with up to `most` descriptors; go on at `otherwise` if there comes none any more."""
    size = 16 + (4 * most + 7 & ~7)
    received = script.add(NR.recvmsg, fd, header(Out(1), 1, Out(size), size), CMSG_CLOEXEC, otherwise=otherwise)
    compare(result(received), 1, script, otherwise)  # 0: the other end is closed


def compare(word: Pointer, value: int, script: Script, otherwise: str) -> None:
    """Add: go on only if the 32 bits at an address are these. (FUTEX_CMP_REQUEUE looks at them; nobody waits there.)"""
    script.add(NR.futex, word, _FUTEX_CMP_REQUEUE, 0, 0, Out(4), value, otherwise=otherwise)


def send_descriptor(fd: int, what: int, script: Script) -> None:
    """Add: send a descriptor of the process."""
    control = In(struct.pack("<QiiiI", 20, SOL_SOCKET, SCM_RIGHTS, what, 0))
    script.add(NR.sendmsg, fd, header(In(b"\0"), 1, control, 24), NOSIGNAL | DONTWAIT)


def copy(vtid: int, moves: Iterable[tuple[Word | int, Word | int, int]], script: Script, otherwise: str = "") -> None:
    """Add: copy memory within the process of thread `vtid`: (to, from, bytes), as pointers into the batch or addresses.

    By process_vm_readv, which no privilege is asked for where the process is one's own.
    """
    sides: list[In] = []
    listed = list(moves)
    for side in (0, 1):
        data, pointers = b"", []
        for i, move in enumerate(listed):
            where = move[side]
            data += struct.pack("<QQ", where if isinstance(where, int) else 0, move[2])
            if not isinstance(where, int):
                pointers.append((16 * i, where))
        sides.append(In(data, tuple(pointers)))
    script.add(NR.process_vm_readv, vtid, sides[0], len(listed), sides[1], len(listed), 0, otherwise=otherwise)


def close_all(numbers: Numbers, script: Script) -> None:
    """Add: close everything that was not open before."""
    for first, last in numbers.gaps():
        script.add(NR.close_range, first, last, 0)


class Gate(NamedTuple):
    """A process that is to stand still while another one's batch runs, and what it does when that is over.

    The script gets the actor's message, with a descriptor in it if the actor has sent one, as `told`.
    """

    process: LivingProcess
    script: Script


class Meeting:
    """Where batches come to fetch what they need; ends with us."""

    def __init__(self, kind: int) -> None:
        self.kind = kind
        self._listener = _socket.socket(_socket.AF_UNIX, kind | _socket.SOCK_CLOEXEC)
        name = b"\0torpor-turnover-" + os.urandom(12).hex().encode()
        self._listener.bind(name)
        self._listener.listen(8)
        self.address = struct.pack("=H", _socket.AF_UNIX) + name

    def connect(self, numbers: Numbers, script: Script, otherwise: str) -> int:
        """Add: connect to us; the number of the descriptor."""
        fd = numbers.take()
        script.add(NR.socket, _socket.AF_UNIX, self.kind | _socket.SOCK_CLOEXEC, 0, otherwise=otherwise)
        script.add(NR.connect, fd, In(self.address), len(self.address), otherwise=otherwise)
        return fd

    def accept(self, pid: int) -> _socket.socket:
        """The connection from a process (host pid). Raises CheckpointFailed."""
        poll = select.poll()
        poll.register(self._listener.fileno(), select.POLLIN)
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            if not poll.poll(100):
                continue
            fd, _ = self._listener._accept()  # type: ignore[attr-defined]
            link = _socket.socket(fileno=fd)
            who = struct.unpack("iii", link.getsockopt(SOL_SOCKET, _socket.SO_PEERCRED, 12))[0]
            if who == pid:
                return link
            link.close()
        raise CheckpointFailed(f"process {pid} cannot look into a connection that waits to be accepted")

    def close(self) -> None:
        self._listener.close()


def pass_descriptors(link: _socket.socket, fds: Sequence[int]) -> None:
    """Send descriptors of ours."""
    if len(fds) > _MOST_PASSED:
        raise CheckpointFailed("too many connections wait to be accepted")
    link.sendmsg([b"\0"], [(SOL_SOCKET, SCM_RIGHTS, array.array("i", fds).tobytes())], NOSIGNAL)


def gate(process: LivingProcess, meeting: Meeting, numbers: Numbers, script: Script) -> int:
    """Begin the script of a gate: wait for the actor. The number of the descriptor that comes with its message."""
    fd = meeting.connect(numbers, script, "over")
    receive_descriptors(fd, 1, script, "over")
    channel = numbers.take()
    receive_descriptors(channel, 1, script, "over")
    return numbers.take()


def bystander(process: LivingProcess, meeting: Meeting) -> Gate:
    """A process that only stands still."""
    script, numbers = Script(), Numbers(process.pid)
    gate(process, meeting, numbers, script)
    script.label("over")
    close_all(numbers, script)
    return Gate(process, script)


class Run:
    """The batches of one turn: those of the gates first, then the actor's. `close` in any case.

    loose: threads that nobody holds (`LivingProcess.hold_others`)."""

    def __init__(self, meeting: Meeting) -> None:
        self._meeting = meeting
        self._running: list[Started] = []
        self._held: list[LivingProcess] = []
        self._ends: list[_socket.socket] = []
        self._link: _socket.socket | None = None
        self.loose = 0

    def hold(self, gates: Iterable[Gate]) -> None:
        """Let the gates wait."""
        for one in gates:
            self._hold_threads(one.process)
            self._running.append(one.process.leader.start(one.script.calls))
            link = self._meeting.accept(one.process.tgid)
            try:
                ours, theirs = _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_SEQPACKET | _socket.SOCK_CLOEXEC)
                one_end = _socket.socket(fileno=ours.detach())
                self._ends.append(one_end)
                pass_descriptors(link, [theirs.fileno()])
                theirs.close()
            finally:
                link.close()

    def start(self, actor: LivingProcess, script: Script) -> _socket.socket:
        """Let the actor begin: it has its memory now, and waits for `commit`. The connection to it."""
        self._hold_threads(actor)
        self._running.append(actor.leader.start(script.calls))
        self._link = self._meeting.accept(actor.tgid)
        return self._link

    def address(self, word: Word) -> int:
        """Where an argument of one of the actor's calls is kept."""
        return self._running[-1].address(word)

    def commit(self, fds: Sequence[int]) -> None:
        """From here on it is done. fds: what the actor gets of us, and behind it its end to each gate."""
        assert self._link is not None
        pass_descriptors(self._link, [*fds, *(end.fileno() for end in self._ends)])
        self._close_ends()

    def finish(self) -> list[Answer]:
        """Wait for the actor, then for the gates; what came of the actor's calls."""
        answers: list[Answer] = []
        while self._running:
            found = self._running.pop().finish()
            answers = answers or found
        return answers

    def _hold_threads(self, process: LivingProcess) -> None:
        self._held.append(process)
        self.loose += process.hold_others()

    def _close_ends(self) -> None:
        for end in self._ends:
            end.close()
        self._ends.clear()

    def close(self) -> None:
        """Everybody who still waits for us goes on and comes to an end."""
        self._close_ends()
        self._meeting.close()
        if self._link is not None:
            self._link.close()
        try:
            while self._running:
                self._running.pop().finish()
        finally:
            for process in self._held:
                process.let_others()


def holders(ino: int, descriptors: Iterable[Descriptor]) -> dict[int, list[Descriptor]]:
    """The descriptors of a socket by process, in the order of the job's processes."""
    found: dict[int, list[Descriptor]] = {}
    for seen in descriptors:
        if seen.ino == ino and seen.target.startswith("socket:"):
            found.setdefault(seen.pid, []).append(seen)
    return found


def refuse_stopped(processes: Iterable[LivingProcess]) -> None:
    """Raises NotNow for a process that is stopped (SIGSTOP): were we killed, it would stand still in the middle of
    it."""
    for process in processes:
        if process.leader.stop_signal:
            thing = "is stopped, and a connection of it waits to be accepted, with data in it"
            raise NotNow([Refusal(process.pid, process.comm, thing, "let it go on (SIGCONT)")])


def share_descriptors(pids: Sequence[int]) -> bool:
    """Do any two of these processes have one table of descriptors?"""
    return any(kcmp.shares_files(one, other) for i, one in enumerate(pids) for other in pids[:i])
