"""The supervisor's end of `torpor.inside`: what a process of the job asks for, and how it is answered (docs/inside.md
has the protocol).

Questions come as datagrams on an abstract address that is made of a token of the job's and of its namespace of pids: so
a restarted job, a clone too, has another one, and its programs find it without being told. Answers go into a pipe of
the asking process, of which we take a copy for the moment (pidfd_getfd(2)): nothing of the job is connected to us, and
a checkpoint at any moment finds only what is the job's own.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import select
import socket
import stat
import struct
import time
from collections.abc import Callable, Iterable
from typing import Any

from torpor.linux import pidfd, proc
from torpor.model.errors import CheckpointFailed, TorporError
from torpor.named_tuple import NamedTuple
from torpor.supervise.loop import Loop
from torpor.supervise.registry import Entry, Pid
from torpor.supervise.say import say
from torpor.supervise.tree import describe, reach

HOLD_SECONDS = 30.0
"""How long a checkpoint waits for those who do not want to be interrupted."""
_LOOK_SECONDS = 0.01
_CREDENTIALS = struct.Struct("=iII")
_ANSWERS = 64
"""Checkpoints whose outcome is remembered."""

Result = dict[str, Any]


class Kept(NamedTuple):
    """What a checkpoint remembers. token: of the address. told: who wants to know of restarts: pid as the job sees it,
    and both ends of a pipe there."""

    token: str
    told: tuple[tuple[int, int, int], ...] = ()

    @classmethod
    def new(cls) -> Kept:
        return cls(secrets.token_hex(16))

    @classmethod
    def decode(cls, text: str) -> Kept:
        """What `encode` wrote. Raises ValueError."""
        plain = json.loads(text)
        token = str(plain["token"])
        if not re.fullmatch("[0-9a-f]{32}", token):
            raise ValueError(f"inside {text!r}")
        return cls(token, tuple((int(pid), int(reading), int(writing)) for pid, reading, writing in plain["told"]))

    def encode(self) -> str:
        return json.dumps({"token": self.token, "told": self.told})


class Question(NamedTuple):
    """pid: who asks, on the host. run: the run of the supervisor that it speaks of. pipe, ino: where the answer
    goes."""

    pid: int
    word: str
    name: str
    run: str
    pipe: int
    ino: int
    more: tuple[str, ...] = ()


def parse(data: bytes, pid: int) -> Question | None:
    """A datagram; None if it makes no sense."""
    try:
        magic, word, name, run, pipe, ino, *more = data.decode("ascii").split()
        if magic != "torpor1" or len(name) > 64:
            return None
        return Question(pid, word, name, run, int(pipe), int(ino), tuple(more))
    except ValueError:
        return None


class Holds:
    """Who does not want to be interrupted."""

    def __init__(self) -> None:
        self._held: dict[tuple[Pid, str], float] = {}

    def add(self, who: Pid, name: str) -> None:
        self._held.setdefault((who, name), time.monotonic())

    def remove(self, who: Pid, name: str) -> None:
        self._held.pop((who, name), None)

    def oldest(self) -> tuple[Pid, float] | None:
        """Who has held longest, and for how many seconds. Those that have ended hold nothing."""
        self._held = {key: since for key, since in self._held.items() if key[0].alive}
        if not self._held:
            return None
        (who, _), since = min(self._held.items(), key=lambda item: item[1])
        return who, time.monotonic() - since


def begin(
    loop: Loop,
    entry: Entry,
    changed: Callable[[str], None],
    save: Callable[[Callable[[Result | None, BaseException | None], None]], None],
    busy: Callable[[], bool],
) -> Inside | None:
    """Answer for a job that runs, if that was asked for; and tell it if it has been restarted. None, with a line that
    says why, where that is impossible. The arguments: see Inside."""
    try:
        kept = Kept.decode(entry.inside)
        found = Inside(loop, entry.name, entry.root.pid, kept, changed, save, busy)
    except (OSError, ValueError) as error:
        say(f"torpor: {entry.name} cannot speak with torpor ({error})")
        return None
    if entry.origin:
        numbers = {member.vpid: member.pid for member in describe(reach(entry))}
        found.tell_restarted(lambda vpid: numbers.get(vpid, 0))
    return found


class Inside:
    """name: of the job. root: its first process, on the host. kept: see Kept; changed: called when that changes, with
    what is to be written down. save: begins a checkpoint and calls back with the
    report or what went wrong; raises TorporError if it cannot be begun now. busy: is one being made?"""

    def __init__(
        self,
        loop: Loop,
        name: str,
        root: int,
        kept: Kept,
        changed: Callable[[str], None],
        save: Callable[[Callable[[Result | None, BaseException | None], None]], None],
        busy: Callable[[], bool],
    ) -> None:
        self._loop, self._name, self._kept, self._changed = loop, name, kept, changed
        self._save, self._busy = save, busy
        self._run = secrets.token_hex(8)
        self._answers: dict[str, str] = {}
        self._holds = Holds()
        self._waiting = 0
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
        self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        space = os.stat(f"/proc/{root}/ns/pid").st_ino
        try:
            self._sock.bind(f"\0torpor-inside-{kept.token}-{space}")
        except OSError:
            self._sock.close()
            raise
        loop.watch(self._sock.fileno(), self._hear)

    @property
    def waiting(self) -> bool:
        """Does a checkpoint wait for those who hold?"""
        return self._waiting > 0

    def close(self) -> None:
        self._loop.forget(self._sock.fileno())
        self._sock.close()

    # -- questions

    def _hear(self, _events: int) -> None:
        while True:
            try:
                data, ancillary, _, _ = self._sock.recvmsg(1024, socket.CMSG_SPACE(_CREDENTIALS.size))
            except OSError:
                return
            pid = next((_CREDENTIALS.unpack(raw)[0] for _, kind, raw in ancillary if kind == socket.SCM_CREDENTIALS), 0)
            asked = parse(data, pid)
            # Whoever is not of the job might be anybody on this machine.
            # All of the job's are below us: its orphans come to us (`parent.become_subreaper`).
            if asked is not None and proc.is_below(pid, os.getpid()):
                self._answer(asked)

    def _answer(self, asked: Question) -> None:
        reply = self._reply(asked)
        with contextlib.suppress(OSError, ValueError):
            put(asked.pid, asked.pipe, asked.ino, f"{asked.name} {reply}\n".encode())

    def _reply(self, asked: Question) -> str:
        if asked.word == "hello":
            return f"here {self._run} {self._name}"
        if asked.word == "hold":
            if self._waiting or self._busy():
                return f"wait {self._run}"
            self._holds.add(Pid.of(asked.pid), asked.name)
            return f"held {self._run}"
        if asked.word == "release":
            self._holds.remove(Pid.of(asked.pid), asked.name)
            return f"released {self._run}"
        if asked.word == "tell" and len(asked.more) == 2:
            self._register(asked)
            return f"told {self._run}"
        if asked.word == "checkpoint":
            return self._checkpoint(asked)
        return f"failed {self._run} it is not understood"

    def _register(self, asked: Question) -> None:
        vpid = proc.inner_pid(proc.status(asked.pid))
        reading, writing = (int(word) for word in asked.more)
        others = tuple(each for each in self._kept.told if each[0] != vpid)
        self._kept = self._kept._replace(told=(*others, (vpid, reading, writing)))
        self._changed(self._kept.encode())

    def _checkpoint(self, asked: Question) -> str:
        if asked.run != self._run:
            return f"restarted {self._run} {self._name}"
        if asked.name not in self._answers:
            if self._waiting or self._busy():
                return f"pending {self._run}"  # asked again, it comes to its turn
            self._begin(asked.name)
        return self._answers[asked.name]

    def _begin(self, name: str) -> None:
        def done(report: Result | None, error: BaseException | None) -> None:
            if report is not None and error is None:
                self._answers[name] = f"saved {self._run} {report['job']}@{report['number']}"
            else:
                self._answers[name] = f"failed {self._run} {' '.join(str(error).split())[:900]}"

        while len(self._answers) >= _ANSWERS:
            del self._answers[next(iter(self._answers))]
        self._answers[name] = f"pending {self._run}"
        try:
            self._save(done)
        except TorporError as error:
            done(None, error)

    # -- holds

    def when_free(self, go: Callable[[], None], refuse: Callable[[TorporError], None]) -> None:
        """Call `go()` once nobody holds any more, at once if so; or `refuse` if that takes too long. New holds wait
        meanwhile."""
        if self._holds.oldest() is None:
            go()
            return
        self._waiting += 1
        end = time.monotonic() + hold_seconds()

        def look() -> None:
            oldest = self._holds.oldest()
            if oldest is not None and time.monotonic() < end:
                self._loop.later(_LOOK_SECONDS, look)
                return
            self._waiting -= 1
            if oldest is None:
                go()
                return
            who, seconds = oldest
            refuse(
                CheckpointFailed(
                    f"process {who.pid} ({proc.comm(who.pid)}) has asked {seconds:.0f} s ago not to be interrupted, "
                    "and has not said since that it may be; the job runs on"
                )
            )

        look()

    # -- restarts

    def tell_restarted(self, by_vpid: Callable[[int], int]) -> None:
        """Tell those who want to know that the job has been restarted. by_vpid: a process on the host by its number in
        the job, 0 if there is none."""
        for vpid, reading, writing in self._kept.told:
            pid = by_vpid(vpid)
            if pid:
                with contextlib.suppress(OSError, ValueError):
                    put(pid, writing, _same_pipe(pid, reading, writing), f"restarted {self._run}\n".encode())


def hold_seconds() -> float:
    """$TORPOR_HOLD_LIMIT, or half a minute. Raises UsageError."""
    from torpor.model.duration import parse as seconds

    return seconds(os.environ["TORPOR_HOLD_LIMIT"]) if "TORPOR_HOLD_LIMIT" in os.environ else HOLD_SECONDS


def put(pid: int, number: int, ino: int, data: bytes) -> None:
    """Write into a pipe that a process has open under that number, if it still is that pipe. What does not fit into it
    is no loss: there is something to read. Raises OSError, ValueError."""
    with _copies(pid, [number]) as (fd,):
        seen = os.fstat(fd)
        if not stat.S_ISFIFO(seen.st_mode) or seen.st_ino != ino:
            raise ValueError("that is another file now")
        poll = select.poll()
        poll.register(fd, select.POLLOUT)
        if poll.poll(0):
            os.write(fd, data)


def _same_pipe(pid: int, reading: int, writing: int) -> int:
    """The inode number of the pipe whose two ends those are. Raises OSError, ValueError if they are not."""
    with _copies(pid, [reading, writing]) as fds:
        first, last = (os.fstat(fd) for fd in fds)
        if not stat.S_ISFIFO(first.st_mode) or (first.st_dev, first.st_ino) != (last.st_dev, last.st_ino):
            raise ValueError("those are no pipe any more")
        return first.st_ino


@contextlib.contextmanager
def _copies(pid: int, numbers: Iterable[int]) -> Any:
    """Our own descriptors for those of a process, for the length of a `with`. Raises OSError."""
    opened = [os.pidfd_open(pid)]
    try:
        for number in numbers:
            opened.append(pidfd.copy(opened[0], number))
        yield opened[1:]
    finally:
        for fd in opened:
            os.close(fd)
