"""The holder of a listener: answers the calls that a job's filter picks, and writes down what they ask for.

A process of its own, since calls must be answered as long as the job lives: it outlives the supervisor, and is not part
of the job. It has a session of its own, no terminal, and few modules. It ends when nobody has the filter any more.

A call goes on as if nothing had been, unless its address is elsewhere since a restart (watch/moved.py). A program that
changes it between our look and the kernel's deceives us: whoever wants to deceive is out of scope (docs/watch.md).

Source: seccomp_unotify(2).
"""

from __future__ import annotations

import ctypes
import errno
import gc
import os
import select
import struct
import sys
from collections.abc import Sequence

from torpor.linux import pidfd, prctl, sched, seccomp_notify, uio
from torpor.linux.arch.x86_64 import NR
from torpor.linux.libc import libc, syscall
from torpor.linux.seccomp_notify import Notice
from torpor.watch import lines
from torpor.watch.answers import Answers
from torpor.watch.book import UNREAD, Book

TYPE_CHECKING = False
if TYPE_CHECKING:
    from torpor.watch.moved import Mover, Outcome

CONTROL, BOOK, READY, LISTENERS = 3, 4, 5, 6
"""The descriptors it is given: where processes of a running job bring their listeners (watch/late.py), if they do; the
ledger's file; a pipe on which it says that it answers; and from LISTENERS on, listeners."""
DONE = 0
"""What stands for: no more listeners will be brought."""
_BROUGHT = struct.Struct("<q")
_LOOK = 30_000
"""Milliseconds after which it is looked whether there will be more listeners."""
_HASTE, _SLICE = -10, 100_000
"""Nice value, and slice in nanoseconds (the shortest there is): the job waits for us."""
_TASKS_MOST = 64
_ADDRESS_MOST = 128
"""sizeof(struct sockaddr_storage)."""
_MSGHDR, _MMSGHDR, _VECTOR_MOST = 56, 64, 1024
_SOL_SOCKET, _SO_PROTOCOL = 1, 38
PROTOCOLS = {1: "icmp", 6: "tcp", 17: "udp", 58: "icmp6", 132: "sctp", 136: "udplite", 255: "raw", 262: "mptcp"}


class Holder:
    """Answers the calls of listeners. control: a listening socket, -1 for none: see CONTROL."""

    def __init__(self, listeners: Sequence[int], book: Book, control: int = -1) -> None:
        self._listeners, self._book, self._control = list(listeners), book, control
        self._listener = -1
        """The one that speaks now."""
        self._parent = os.getppid()
        self._mover = _mover(book.moves)
        self._answers = Answers()
        self._tasks: dict[int, int] = {}
        """Descriptors for the latest tasks, by their number: such a descriptor never means another task."""
        self._number = ctypes.c_int()
        self._size = ctypes.c_uint()

    def take_over(self) -> None:
        """Answer the call that a holder before us has received and, killed, not answered."""
        owed = seccomp_notify.received(self._book.room)
        for listener in self._listeners if owed else ():
            self._listener = listener
            self._proceed(owed)  # numbers begin at random: no other listener has it

    def serve(self) -> None:
        """Until nobody has a filter any more, and nobody will bring one."""
        poll = select.poll()
        for fd in self._listeners:
            seccomp_notify.wake_here(fd)
            poll.register(fd, select.POLLIN)
        if self._control >= 0:
            poll.register(self._control, select.POLLIN)
        while self._listeners or self._control >= 0:
            ready = poll.poll(None if self._control < 0 else _LOOK)
            if not ready and os.getppid() != self._parent:
                self._end_control(poll)
            for fd, events in ready:
                if fd == self._control:
                    self._admit(poll)
                elif events & select.POLLHUP:
                    poll.unregister(fd)
                    self._listeners.remove(fd)
                    os.close(fd)
                else:
                    self._listener = fd
                    self._serve_one()

    def _serve_one(self) -> None:
        try:
            notice = seccomp_notify.receive(self._listener, self._book.room)
        except OSError:
            return  # interrupted: the task waits no more, or will make the call again
        try:
            outcome = self._look(notice)
        except Exception:
            outcome = None  # whatever is wrong with us, the job's call has to be answered
        if outcome is None:
            self._proceed(notice.id)
        else:
            self._answer(notice.id, outcome)

    def _admit(self, poll: select.poll) -> None:
        """Take a listener from the process that has just made it, and tell it that we have it."""
        import socket

        with socket.socket(fileno=os.dup(self._control)) as control:
            brought, _ = control.accept()
        with brought:
            brought.settimeout(1.0)
            try:
                pid, uid, _ = struct.unpack("=iII", brought.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
                (number,) = _BROUGHT.unpack(brought.recv(_BROUGHT.size, socket.MSG_WAITALL))
                if os.geteuid() not in (0, uid):
                    return
                if number == DONE:
                    self._end_control(poll)
                    return
                process = os.pidfd_open(pid)
                try:
                    listener = pidfd.copy(process, number)
                finally:
                    os.close(process)
                seccomp_notify.wake_here(listener)
                poll.register(listener, select.POLLIN)
                self._listeners.append(listener)
                brought.send(b"!")
            except (OSError, struct.error):
                return  # it has ended, or its filter was refused

    def _end_control(self, poll: select.poll) -> None:
        poll.unregister(self._control)
        os.close(self._control)
        self._control = -1

    def _proceed(self, id: int) -> None:
        try:
            seccomp_notify.proceed(self._listener, id)
        except OSError:
            pass  # killed meanwhile

    def _answer(self, id: int, outcome: Outcome) -> None:
        try:
            seccomp_notify.answer(self._listener, id, *outcome)
        except OSError:
            pass

    def _look(self, notice: Notice) -> Outcome | None:
        """Write down what the call asks for; make it, if it asks for an address that is elsewhere now."""
        if notice.nr == NR.recvfrom:
            return self._receives(notice)
        if notice.nr == NR.seccomp:
            self._book.listen(_program(notice.task))
            return None
        socket = -1
        try:
            asked = self._addresses(notice)
            if asked:
                socket = self._copy(notice)
                return self._asked(notice, asked, socket)
        except OSError as error:
            if error.errno in (errno.EPERM, errno.EACCES) and seccomp_notify.waits(self._listener, notice.id):
                self._book.note(*UNREAD, _program(notice.task), notice.task)
            # else the call is about to fail by itself, or its task is gone
        finally:
            if socket >= 0:
                os.close(socket)
        return None

    def _receives(self, notice: Notice) -> Outcome | None:
        """Write down which name it was, and which addresses it has, if a name server's answer is received next."""
        try:
            socket = self._copy(notice)
        except OSError:
            return None
        try:
            # What waits now was the same task when its socket was copied: an error is taken from no other.
            if not (self._answers.expected(socket, notice.args[3]) and seccomp_notify.waits(self._listener, notice.id)):
                return None
            answer, error = self._answers.next(socket)
        finally:
            os.close(socket)
        if answer is not None:
            for address in answer.addresses:
                self._book.call(address, answer.name)
        return (0, error) if error else None

    def _copy(self, notice: Notice) -> int:
        """Our own descriptor of the socket that a call is made on. Raises OSError."""
        task, number = notice.task, notice.args[0] & 0xFFFFFFFF
        process = self._tasks.get(task)
        if process is not None:
            try:
                return pidfd.copy(process, number)
            except OSError as error:
                if error.errno != errno.ESRCH:
                    raise
        # Not known, or another thread of that number, which has ended.
        if process is not None or len(self._tasks) >= _TASKS_MOST:
            for fd in self._tasks.values():
                os.close(fd)
            self._tasks.clear()
        try:
            process = self._tasks[task] = pidfd.exactly(task)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
        else:
            return pidfd.copy(process, number)
        process = pidfd.of_thread(task)
        try:
            return pidfd.copy(process, number)
        finally:
            os.close(process)

    def _asked(self, notice: Notice, asked: list[tuple[str, int]], socket: int) -> Outcome | None:
        protocol, program = self._protocol(socket), _program(notice.task)
        if not seccomp_notify.waits(self._listener, notice.id):
            return None  # what we have looked at may have been somebody else's
        if notice.nr != NR.bind:
            for host, port in asked:
                self._answers.sent(socket, port)
                self._book.note(protocol, host, port, program, notice.task)
        return self._mover.perform(notice, socket, protocol) if self._mover is not None else None

    def _addresses(self, notice: Notice) -> list[tuple[str, int]]:
        """The outside addresses that a call names. Raises OSError."""
        task, nr, args = notice.task, notice.nr, notice.args
        if nr == NR.sendto:
            where = [(args[4], args[5])]
        elif nr == NR.sendmsg:
            where = _names(uio.read(task, args[1], _MSGHDR), _MSGHDR)
        elif nr == NR.sendmmsg:
            count = min(args[2] & 0xFFFFFFFF, _VECTOR_MOST)
            where = _names(uio.read(task, args[1], count * _MMSGHDR), _MMSGHDR) if count else []
        else:
            where = [(args[1], args[2])]
        found = []
        for at, size in where:
            if at and 0 < size & 0xFFFFFFFF <= _ADDRESS_MOST:
                asked = lines.host_and_port(uio.read(task, at, size & 0xFFFFFFFF))
                if asked is not None:
                    found.append(asked)
        return found

    def _protocol(self, socket: int) -> str:
        """What kind of socket it is. Raises OSError."""
        self._size.value = 4
        if libc.getsockopt(socket, _SOL_SOCKET, _SO_PROTOCOL, ctypes.byref(self._number), ctypes.byref(self._size)):
            raise OSError(errno.ENOTSOCK, os.strerror(errno.ENOTSOCK))
        return PROTOCOLS.get(self._number.value, str(self._number.value))


def _mover(words: Sequence[str]) -> Mover | None:
    """Who makes calls to addresses that are elsewhere now."""
    if not words:
        return None
    from torpor.model.address_map import AddressMap
    from torpor.watch.moved import Mover

    return Mover(AddressMap.parse(words))


def _names(headers: bytes, size: int) -> list[tuple[int, int]]:
    """Address and size of the names in an array of struct msghdr."""
    return [
        (int.from_bytes(headers[at : at + 8], "little"), int.from_bytes(headers[at + 8 : at + 12], "little"))
        for at in range(0, len(headers), size)
    ]


def _program(task: int) -> str:
    """The executable of a task, '' if it is not to be known."""
    try:
        return os.readlink(f"/proc/{task}/exe")
    except OSError:
        return ""


def _hurry() -> None:
    """Be let run soon when a call comes, also where others want the processor."""
    try:
        os.nice(_HASTE)
    except OSError:
        pass  # that takes CAP_SYS_NICE
    try:
        # A short slice means an early turn, and takes no privilege (Linux 6.12, kernel/sched/syscalls.c).
        sched.setattr_of(0, sched.getattr_of(0)._replace(runtime=_SLICE))
    except OSError:
        pass


def main() -> None:
    """The process: descriptors as above, all others are closed. Its arguments: how many listeners there are; 1 if more
    will be brought."""
    count, control = int(sys.argv[1]), bool(int(sys.argv[2]))
    os.closerange(LISTENERS + count, 1 << 30)
    syscall(NR.prctl, prctl.SET_NAME, ctypes.addressof(ctypes.create_string_buffer(b"torpor-holder")), 0, 0, 0)
    _hurry()
    holder = Holder(range(LISTENERS, LISTENERS + count), Book(BOOK), CONTROL if control else -1)
    holder.take_over()
    gc.freeze()
    gc.disable()
    os.write(READY, b"!")
    os.close(READY)
    holder.serve()
