"""Programs that were started in a job from elsewhere (`torpor run --join`): from another terminal, or as a further task
of a batch system on this host.

The command that asks for it (launch/join.py) hands over its standard streams and everything that a program gets from
whoever starts it, and waits for the program's end. The program is a child of the supervisor, in a session of its own,
and so of the job like any other. It has the streams of that command, also a terminal, but no controlling terminal:
signals come to it through the command. The job ends when its first program and all of these have ended.

At a restart what was a terminal, a pipe or a socket of that command is the standard stream of that number of whoever
restarts.
"""

from __future__ import annotations

import os
import signal
import stat
from collections.abc import Callable, Sequence
from typing import Any

from torpor.model.errors import TorporError
from torpor.named_tuple import NamedTuple
from torpor.supervise import protocol
from torpor.supervise.registry import Entry, Pid
from torpor.supervise.server import Connection


class Program(NamedTuple):
    """What is to be started. env, argv, cwd: as `os.fsdecode` gives them.  ignored, mask: signals.  limits: soft ones,
    each with its number (getrlimit(2))."""

    argv: list[str]
    env: dict[str, str]
    cwd: str
    umask: int
    ignored: list[int]
    mask: list[int]
    limits: list[tuple[int, int]]

    @classmethod
    def of(cls, said: dict[str, Any]) -> Program:
        """What `_asdict` became in JSON. Raises KeyError, TypeError, ValueError."""
        argv, env = [str(word) for word in said["argv"]], {str(key): str(value) for key, value in said["env"].items()}
        limits = [(int(which), int(soft)) for which, soft in said["limits"]]
        if not argv:
            raise ValueError("no program")
        return cls(argv, env, str(said["cwd"]), int(said["umask"]), list(map(int, said["ignored"])),
                   list(map(int, said["mask"])), limits)  # fmt: skip


Start = Callable[[Program, Sequence[int]], int]
"""`start(program, streams)`: its pid, once it has been executed. Raises TorporError."""


class _One:
    """streams: (number, our descriptor) of those that lead out of the job."""

    def __init__(self, pid: Pid, connection: Connection, streams: list[tuple[int, int]]) -> None:
        self.pid, self.connection, self.streams = pid, connection, streams
        self.status: int | None = None


class Joined:
    """Those of one job. start: None where nobody can join."""

    def __init__(self) -> None:
        self.start: Start | None = None
        self._asked: list[tuple[Connection, Program]] = []
        self._there: dict[int, _One] = {}

    @property
    def streams(self) -> list[tuple[int, int]]:
        """What they have inherited from outside: see `Supervisor`."""
        return [pair for one in self._there.values() for pair in one.streams]

    @property
    def run(self) -> bool:
        """Is one there, or about to be?"""
        return bool(self._asked or self._there)

    def ask(self, entry: Entry, connection: Connection, request: protocol.Message) -> None:
        """Somebody wants a program started. Raises TorporError, ValueError."""
        if self.start is None or entry.anchor:
            raise TorporError(f"{entry.name} was restarted, in namespaces of its own: nothing can join it from outside")
        if len(connection.fds) != 3:
            raise ValueError("three streams are wanted")
        self._asked.append((connection, Program.of(request["program"])))

    def begin(self) -> None:
        """Start what is asked for. Not while a save looks which processes there are."""
        while self._asked:
            connection, program = self._asked.pop(0)
            if not connection.open or self.start is None:
                continue
            fds = connection.take()
            try:
                pid = self.start(program, fds)
            except TorporError as error:
                _close(fds)
                connection.finish(protocol.error_message(error))
                continue
            streams = [(number, fd) for number, fd in enumerate(fds) if _leads_out(fd)]
            _close([fd for fd in fds if fd not in {kept for _, kept in streams}])
            self._there[pid] = _One(Pid.of(pid), connection, streams)
            connection.send({"event": "joined", "pid": pid})

    def changed(self, pid: int, code: int, value: int) -> None:
        """A child of ours: `si_code` and `si_status` of waitid(2)."""
        one = self._there.get(pid)
        if one is None:
            return
        if code == os.CLD_EXITED:
            one.status = value << 8
        elif code in (os.CLD_KILLED, os.CLD_DUMPED):
            one.status = value
        elif code == os.CLD_STOPPED:
            one.connection.send({"event": "stop"})

    def look(self) -> None:
        """Whose end a save has seen: a tracer's wait for it is the parent's, if they are one."""
        for pid, one in self._there.items():
            if one.status is None and not one.pid.state:
                from torpor.linux import ptrace

                one.status = ptrace.reaped.pop(pid, signal.SIGKILL)

    def answer(self, final: Callable[[int], dict[str, Any]]) -> None:
        """Tell those whose program has ended. final: what they are told, of a wait status."""
        for pid, one in list(self._there.items()):
            if one.status is not None:
                one.connection.finish({"result": final(one.status)})
                _close([fd for _, fd in one.streams])
                del self._there[pid]


def _leads_out(fd: int) -> bool:
    """Is it something that only whoever restarts the job can give anew? A file is found by its path."""
    mode = os.fstat(fd).st_mode
    return stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode) or os.isatty(fd)


def _close(fds: Sequence[int]) -> None:
    for fd in fds:
        os.close(fd)
