"""The seats of a job, as its supervisor sees them: it starts the keeper (seat_keeper.py), waits for it before the job
runs, says what it says, and pauses the job if a seat is lost for too long."""

from __future__ import annotations

import os
import select
import signal
import socket
import time
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

from torpor.model import ourselves
from torpor.model.duration import short
from torpor.model.errors import Refusal, Refused, TorporError
from torpor.supervise import protocol
from torpor.supervise.registry import Pid
from torpor.supervise.say import say

if TYPE_CHECKING:
    from torpor.model.terms import SeatTerms
    from torpor.supervise.loop import Loop

FD = 3
_PATIENCE = 15.0
"""Seconds for the keeper to give seats back: a program that holds one may take ten to end."""
_REVIVE = 2.0
_BEAT = 1.0
_SILENT = 3.0
"""Seconds after which it is said that nobody has answered yet."""


class SeatWatch:
    """seats, identity, job: what is to be had, and for whom. pid: of the keeper."""

    def __init__(self, seats: Sequence[SeatTerms], identity: str, job: str) -> None:
        self.seats = list(seats)
        self.pid = 0
        self._identity, self._job = identity, job
        self._socket: socket.socket
        self._decoder = protocol.Decoder()
        self._loop: Loop | None = None
        self._pids: list[Pid] = []
        self._lost: dict[str, str] = {}
        self._serial = 0
        self._began = 0.0
        self._over = self._held = False
        self.pause: Callable[[], None] = lambda: None
        self.resume: Callable[[], None] = lambda: None
        self.replaced: Callable[[int], None] = lambda pid: None
        """Called when the job is to stand still, when it may go on, and when another process keeps its seats."""

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(seat.name for seat in self.seats)

    def acquire(self, wait: float | None, tell: Callable[[str], None], what: str) -> None:
        """Have all seats. wait: seconds to wait for them, None for what the policy says.  tell: see `admission.Tell`.
        what: what cannot be done without them, for the error.
        Raises Refused; then nothing is held. May be interrupted by any exception; `close` then."""
        limit = max((seat.wait for seat in self.seats), default=0.0) if wait is None else wait
        self._start(limit)
        silent = 0.0
        while True:
            if not select.select([self._socket], [], [], _BEAT)[0]:
                silent += _BEAT
                tell(f"waiting for an answer: {', '.join(self.names)}" if silent == _SILENT else "")
                continue
            silent = _SILENT
            for message in self._hear():
                if message["event"] == "held":
                    self._held = True
                    return
                reason, name = str(message.get("reason", "")), str(message.get("seat", ""))
                if message["event"] == "waiting":
                    tell(f"waiting for a seat {name}, {short(limit)} at most: {reason}")
                elif message["event"] == "refused":
                    self.close()
                    way_out = "" if message.get("final") else "try again when there is one, or wait for it (--wait 10m)"
                    raise Refused([Refusal(0, "", f"no seat {name} is to be had: {reason}", way_out)], what)

    def _start(self, wait: float | None) -> None:
        """Raises TorporError."""
        from torpor.supervise.lease import user
        from torpor.supervise.seat_keeper import first_frame

        self._began = time.monotonic()
        command = ourselves.command("from torpor.supervise.seat_keeper import main; main()")
        ours, theirs = socket.socketpair()
        null = [(os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDWR, 0), *((os.POSIX_SPAWN_DUP2, 0, n) for n in (1, 2))]
        try:
            self.pid = os.posix_spawn(
                command[0], command, os.environ,
                file_actions=[*null, (os.POSIX_SPAWN_DUP2, theirs.fileno(), FD)],
                setsid=True, setsigmask=[], setsigdef=[signal.SIGPIPE, signal.SIGINT, signal.SIGTERM, signal.SIGCHLD],
            )  # fmt: skip
        except OSError as error:
            ours.close()
            raise TorporError(f"seats cannot be kept: {error.strerror}") from None
        finally:
            theirs.close()
        self._socket, self._decoder = ours, protocol.Decoder()
        request = {"identity": self._identity, "job": self._job, "host": os.uname().nodename, "user": user()}
        ours.sendall(first_frame(self.seats, request, wait))

    def _hear(self) -> list[protocol.Message]:
        """What it says next. Raises TorporError if it has ended."""
        try:
            data = self._socket.recv(1 << 16)
        except OSError:
            data = b""
        if not data:
            raise TorporError("the process that keeps the job's seats has ended")
        return self._decoder.feed(data)

    # -- while the job runs

    def running(self, pids: Iterable[Pid]) -> None:
        """The job is about to run: it is over when all of these have ended."""
        self._pids = [pid for pid in pids if pid.pid]
        self._tell({"do": "job", "pids": [list(pid) for pid in self._pids]})

    def attach(self, loop: Loop) -> None:
        """Listen to the keeper from now on."""
        self._loop = loop
        loop.watch(self._socket.fileno(), lambda _: self._listen())

    def _listen(self) -> None:
        try:
            messages = self._hear()
        except TorporError:
            self._revive()
            return
        for message in messages:
            name = str(message.get("seat", ""))
            if message["event"] == "lost":
                self._gone(name, str(message["reason"]))
            elif message["event"] == "regained":
                self._back(name)

    def _gone(self, name: str, reason: str) -> None:
        terms = next(seat for seat in self.seats if seat.name == name)
        pauses = terms.on_loss == "pause"
        if name not in self._lost:
            what = f"; the job is paused if it is not back in {short(terms.grace)}" if pauses else ""
            say(f"torpor: the seat {name} of {self._job} is lost: {reason}{what}")
        self._lost[name] = reason
        self._serial += 1
        serial = self._serial

        def expire() -> None:
            if name in self._lost and serial == self._serial and not self._over:
                say(f"torpor: {self._job} is paused until it has its seat {name} again: {self._lost[name]}")
                self._log("pause", name)
                self.pause()

        if pauses and self._loop is not None:
            self._loop.later(terms.grace, expire)

    def _back(self, name: str) -> None:
        self._lost.pop(name, None)
        say(f"torpor: {self._job} has its seat {name} again")
        if not self._lost:
            self._log("resume", name)
            self.resume()

    def _log(self, do: str, seat: str) -> None:
        from torpor.supervise import audit

        audit.record("seat", do=do, seat=seat, job=self._job, identity=self._identity)

    def _revive(self) -> None:
        """The keeper was killed: another one asks for the same seats, which are still this job's for a while."""
        self._forget()
        if self._over or self._loop is None:
            return
        if time.monotonic() - self._began < _REVIVE:
            self._loop.later(_REVIVE, self._revive)
            return
        try:
            self._start(None)
        except TorporError:
            self._loop.later(_REVIVE, self._revive)
            return
        self.replaced(self.pid)
        self.running(self._pids)
        self.attach(self._loop)

    def _forget(self) -> None:
        if self._loop is not None and self._socket.fileno() >= 0:
            self._loop.forget(self._socket.fileno())
        self._socket.close()

    def _tell(self, message: protocol.Message) -> None:
        try:
            self._socket.sendall(protocol.encode(message))
        except OSError:
            pass

    def close(self) -> None:
        """Give everything back, and wait until that is done."""
        if self._over or not self.pid:
            return
        self._over = True
        if self._loop is not None and self._socket.fileno() >= 0:
            self._loop.forget(self._socket.fileno())
        self._tell({"do": "release"})
        if not self._held:
            try:
                os.kill(self.pid, signal.SIGTERM)  # it may be waiting for an answer
            except ProcessLookupError:
                pass
        self._socket.settimeout(_PATIENCE)
        try:
            while not any(message["event"] == "released" for message in self._hear()):
                pass
        except TorporError:
            pass
        self._socket.close()

    # -- over an execve (launch/again.py)

    def hand_over(self) -> int:
        """A descriptor with which `taken_over` goes on, in the program that this process is about to become."""
        if self._loop is not None:
            self._loop.forget(self._socket.fileno())
        self._socket.set_inheritable(True)
        return self._socket.fileno()

    @classmethod
    def taken_over(cls, seats: Sequence[SeatTerms], identity: str, job: str, fd: int, pid: int) -> SeatWatch:
        """See `hand_over`."""
        found = cls(seats, identity, job)
        found._held = True
        found.pid, found._socket = pid, socket.socket(fileno=fd)
        found._socket.set_inheritable(False)
        return found
