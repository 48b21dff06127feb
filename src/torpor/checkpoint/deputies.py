"""Deputies: processes that do something for the restarting one under a number of the job, before its tree is there.

Some things remember who made them: a UNIX socket (SO_PEERCRED), a message in its queue (SCM_CREDENTIALS). The kernel
keeps the process' `struct pid` for that, whose number can be read when the process is long gone (pid_vnr in
kernel/pid.c), but shows 0 where it has none in the reader's PID namespace. So whoever made such a thing is played by a
process that is forked in the job's namespace with that number (clone3 with set_tid), does it, and has ended and been
reaped before the tree is forked: the number is free again for its owner.

The first process of the tree forks the deputies, and is forked early for it. All of them share our table of
descriptors (CLONE_FILES): what one of them opens is open here, under the same number. So nobody may close anything
unasked, and a line to one that is gone does not hang up: each end also watches the pidfd of the other one.

There is one deputy per number, however much it has to do; a job without such things has none, and pays nothing.
"""

from __future__ import annotations

import gc
import os
import select
import signal
import socket
import struct
import sys
from collections.abc import Callable
from typing import Any

import msgspec

from torpor.linux import clone
from torpor.model.errors import RestartFailed

LIMIT = 32
"""How many there are at a time; each takes three descriptors."""

_SIZE = struct.Struct("<I")
_OK, _ERROR, _FAILED = 0, 1, 2


class Line:
    """One end of a line of messages (plain values). life: a pidfd of whoever is at the other end."""

    def __init__(self, end: int, life: int) -> None:
        self.end, self.life = end, life

    def say(self, what: Any) -> None:
        """Raises EOFError if nobody is there any more."""
        body = msgspec.msgpack.encode(what)
        data = memoryview(_SIZE.pack(len(body)) + body)
        while data:
            self._await(select.POLLOUT)
            data = data[_send(self.end, data) :]

    def hear(self) -> Any:
        """Raises EOFError if nobody is there any more."""
        (size,) = _SIZE.unpack(self._read(_SIZE.size))
        return msgspec.msgpack.decode(self._read(size))

    def ask(self, do: Callable[..., Any], *arguments: Any) -> Any:
        """What a function of a module returns at the other end (tuples come as lists). Raises OSError and RestartFailed
        as it does."""
        try:
            self.say((do.__module__, do.__name__, arguments))
            kind, answer = self.hear()
        except EOFError:
            raise RestartFailed("a process that was to make sockets of the job has ended") from None
        if kind == _ERROR:
            raise OSError(answer, os.strerror(answer))
        if kind == _FAILED:
            raise RestartFailed(answer)
        return answer

    def _read(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            self._await(select.POLLIN)
            data += os.read(self.end, size - len(data))
        return data

    def _await(self, event: int) -> None:
        poll = select.poll()
        poll.register(self.end, event)
        poll.register(self.life, select.POLLIN)
        if self.end not in dict(poll.poll()):
            raise EOFError


def _send(fd: int, data: memoryview) -> int:
    """As much as there is room for."""
    one = socket.socket(fileno=fd)
    try:
        return one.send(data[: 1 << 16], socket.MSG_DONTWAIT)
    except BlockingIOError:
        return 0
    finally:
        one.detach()


def serve(line: Line) -> Any:
    """In a process that shares descriptors with others: do what is asked for, until something else is said: that is
    returned. Ends the process when nobody is there to ask any more."""
    while True:
        try:
            said = line.hear()
            if not (isinstance(said, list) and len(said) == 3 and isinstance(said[0], str)):
                return said
            line.say(_done(*said))
        except EOFError:
            os._exit(1)


def _done(module: str, name: str, arguments: list[Any]) -> tuple[int, Any]:
    try:
        __import__(module)
        return _OK, getattr(sys.modules[module], name)(*arguments)
    except OSError as error:
        return _ERROR, error.errno
    except RestartFailed as error:
        return _FAILED, str(error)


def still() -> None:
    """In a process that shares our descriptors: nothing that was ours is closed because nobody here needs it, and the
    terminal's signals are for the restarting process."""
    gc.disable()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGTSTP, signal.SIGPIPE):
        signal.signal(number, signal.SIG_IGN)


class Pioneer:
    """The first process of a tree, forked early. pid: ours of it. number: its own."""

    def __init__(self, pid: int, number: int, line: Line, far: int, mine: int) -> None:
        self.pid, self.number, self.line = pid, number, line
        self._rest = far, mine
        self.mine = mine
        """A pidfd of the restarting process."""

    def descriptors(self) -> list[int]:
        """Everything that belongs to the line."""
        return [self.line.end, self.line.life, *self._rest]

    def close(self) -> None:
        for fd in self.descriptors():
            os.close(fd)


def pioneer(fork: Callable[[], int], be: Callable[[Line], None], number: int) -> Pioneer:
    """Fork a first process that shares our descriptors. be: what it does, never to return. number: its own, 0 if that
    is the one it has here. Raises OSError."""
    near, far = (end.detach() for end in socket.socketpair())
    mine = os.pidfd_open(os.getpid())
    try:
        pid = fork()
    except BaseException:
        for fd in (near, far, mine):
            os.close(fd)
        raise
    if pid == 0:
        try:
            be(Line(far, mine))
        finally:
            os._exit(1)
    return Pioneer(pid, number or pid, Line(near, os.pidfd_open(pid)), far, mine)


def spawn(number: int, far: int, mine: int) -> int:
    """In the pioneer: fork a deputy with that number, at that end of a line; a pidfd of it. Raises OSError."""
    pid = clone.fork(number, clone.FILES)
    if pid == 0:
        try:
            serve(Line(far, mine))
            os._exit(0)
        finally:
            os._exit(1)
    return os.pidfd_open(pid)


def reap(number: int) -> None:
    """In the pioneer: wait for a deputy to end."""
    os.waitpid(number, 0)


class Deputies:
    """The deputies of one restart. begin: forks the pioneer, when the first one is needed; None where numbers cannot be
    chosen."""

    def __init__(self, begin: Callable[[], Pioneer] | None) -> None:
        self._begin = begin
        self.pioneer: Pioneer | None = None
        self.missed: set[int] = set()
        """Numbers that were not to be had."""
        self._lines: dict[int, tuple[Line, int]] = {}
        """By number, the one that was asked last at the end; with the far end."""

    def ask(self, number: int, do: Callable[..., Any], *arguments: Any) -> Any:
        """What a function returns (tuples may come as lists), called by a process with that number; by ourselves where
        it cannot be had, and for 0."""
        line = self._line(number) if number > 0 else None
        return do(*arguments) if line is None else line.ask(do, *arguments)

    def _line(self, number: int) -> Line | None:
        if number in self._lines:
            self._lines[number] = self._lines.pop(number)
            return self._lines[number][0]
        if self._begin is None or number in self.missed:
            self.missed.add(number)
            return None
        if self.pioneer is None:
            self.pioneer = self._begin()
        if number == self.pioneer.number:
            return self.pioneer.line
        if len(self._lines) >= LIMIT:
            self._dismiss(self.pioneer, next(iter(self._lines)))
        near, far = (end.detach() for end in socket.socketpair())
        try:
            life = self.pioneer.line.ask(spawn, number, far, self.pioneer.mine)
        except OSError:
            os.close(near)
            os.close(far)
            self.missed.add(number)
            return None
        self._lines[number] = Line(near, life), far
        return self._lines[number][0]

    def dismiss(self) -> None:
        """All of them end; when this returns their numbers are free again. The pioneer stays."""
        for number in list(self._lines):
            assert self.pioneer is not None
            self._dismiss(self.pioneer, number)

    def _dismiss(self, pioneer: Pioneer, number: int) -> None:
        line, far = self._lines.pop(number)
        try:
            line.say(None)
        except EOFError:
            pass  # it has ended already
        pioneer.line.ask(reap, number)
        for fd in (line.end, line.life, far):
            os.close(fd)
