"""The seat keeper: a process that acquires the seats of one job, renews them, and gives them back.

A process of its own, since seats have to be renewed for as long as the job lives, and whoever gives them may take his
time to answer: it outlives the supervisor. It is no part of the job, nor is what it starts itself.

It speaks with the supervisor in frames (protocol.py):

    -> {"seats": [...], "request": {...}, "wait": SECONDS}   the first one; wait: null for as long as it takes
    <- {"event": "waiting", "seat", "reason"}                none is free yet
    <- {"event": "refused", "seat", "reason", "final"}       there is none, final: whoever waits; the keeper has ended
    <- {"event": "held"}                                     all are held: the job may go on
    -> {"do": "job", "pids": [[PID, START], ...]}            the job runs; it is over when all of these have ended
    <- {"event": "lost", "seat", "reason"}                   it could not be renewed; tried again and again
    <- {"event": "regained", "seat"}
    -> {"do": "release"}
    <- {"event": "released"}                                 the keeper has ended

If the supervisor dies before the job runs, everything is given back at once; later, when the job has ended. SIGTERM
has it give up while it acquires seats, and is nothing to it later.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import time
from collections.abc import Callable
from typing import Any

import msgspec

from torpor.model.errors import Refusal, Refused, TorporError
from torpor.model.terms import SeatTerms
from torpor.seats import kinds
from torpor.seats.provider import Lost, NoneFree, Provider, Request, Unreachable
from torpor.supervise import audit, protocol
from torpor.supervise.registry import Pid

FD = 3
"""Where the supervisor is."""
_REASON_MOST = 2000
RETRY = 1.0
"""Seconds between two attempts to have a seat."""


class Kept:
    """One seat. due: when it is to be looked at again, by the monotonic clock.  known: does the supervisor take it for
    held?"""

    def __init__(self, terms: SeatTerms, request: Request) -> None:
        self.name = terms.name
        self.request = request
        self.provider = _Careful(kinds.make(terms.provider, terms.options, request))
        self.held = False
        self.known = True
        self.due = 0.0

    def had(self) -> None:
        """It is held, for now."""
        self.held = True
        self.due = time.monotonic() + self.provider.every


class _Careful:
    """A provider that does not answer when something is wrong with it, in place of ending us: the job has to be warned
    then, as of any other seat that is lost."""

    def __init__(self, provider: Provider) -> None:
        self._provider = provider

    @property
    def every(self) -> float:
        return self._provider.every

    def acquire(self) -> None:
        self._try(self._provider.acquire)

    def renew(self) -> None:
        self._try(self._provider.renew)

    def release(self) -> None:
        self._try(self._provider.release)

    def fileno(self) -> int:
        return self._provider.fileno()

    def _try(self, ask: Callable[[], None]) -> None:
        try:
            ask()
        except TorporError:
            raise
        except Exception as error:
            raise Unreachable(f"{type(error).__name__}: {error}") from error


class _GivenUp(BaseException):
    """SIGTERM, while seats were being acquired."""


class SeatKeeper:
    """See above."""

    def __init__(self, supervisor: socket.socket) -> None:
        self._supervisor = supervisor
        self._orphaned = self._over = self._acquiring = False
        self._decoder = protocol.Decoder()
        self._seats: list[Kept] = []
        self._job: list[Pid] = []

    def run(self) -> None:
        """From the first frame to the end."""
        while not self._seats and not self._over:
            for first, message in enumerate(self._hear(None)):
                self._obey(message) if first else self._begin(message)
        try:
            self._keep()
        finally:
            for seat in self._seats:
                self._release(seat)
            self._say({"event": "released"})

    def _begin(self, first: protocol.Message) -> None:
        request = Request(seat="", **first["request"])
        terms = [msgspec.convert(each, SeatTerms) for each in first["seats"]]
        name = ""
        try:
            for each in terms:
                name = each.name
                self._seats.append(Kept(each, request._replace(seat=name)))
            self._acquire(first["wait"])
        except TorporError as error:
            self._refuse(name or "", error)
        except _GivenUp:
            self._over = True

    def give_up(self) -> None:
        """At SIGTERM."""
        if self._acquiring:
            self._acquiring = False
            raise _GivenUp

    # -- until all are held

    def _acquire(self, wait: float | None) -> None:
        """wait: None: go on without them, and try."""
        if wait is None:
            return
        self._acquiring = True
        try:
            self._try_for(wait)
        finally:
            self._acquiring = False

    def _try_for(self, wait: float) -> None:
        end, told = time.monotonic() + wait, ""
        while not self._over:
            failed: Kept | None = None
            try:
                for seat in self._seats:
                    failed = seat
                    seat.provider.acquire()
                    seat.had()
            except (NoneFree, Unreachable) as error:
                assert failed is not None
                for seat in self._seats:  # who waits for one must not keep others from another
                    self._release(seat)
                if time.monotonic() >= end:
                    self._refuse(failed.name, error)
                    return
                if _plain(error) != told:
                    told = _plain(error)
                    self._say({"event": "waiting", "seat": failed.name, "reason": told})
                self._pass_time(RETRY)
            except TorporError as error:
                assert failed is not None
                self._refuse(failed.name, error)
                return
            else:
                for seat in self._seats:
                    self._log(seat, "acquire")
                self._say({"event": "held"})
                return

    def _refuse(self, name: str, error: TorporError) -> None:
        for seat in self._seats:
            if seat.name == name:
                self._log(seat, "acquire", Refused([Refusal(0, "", _plain(error), "")], "no seat"))
        final = not isinstance(error, (NoneFree, Unreachable))
        self._say({"event": "refused", "seat": name, "reason": _plain(error), "final": final})
        self._over = True

    # -- as long as the job lives

    def _keep(self) -> None:
        while not self._over:
            now = time.monotonic()
            for seat in self._seats:
                if seat.due <= now:
                    self._renew(seat)
            if self._orphaned and not any(pid.alive for pid in self._job):
                return
            self._pass_time(min(seat.due for seat in self._seats) - time.monotonic())

    def _renew(self, seat: Kept) -> None:
        try:
            if seat.held:
                seat.provider.renew()
            else:
                seat.provider.acquire()
        except TorporError as error:
            seat.held = False
            seat.due = time.monotonic() + RETRY
            if seat.known:
                seat.known = False
                self._log(seat, "renew", error)
                self._say({"event": "lost", "seat": seat.name, "reason": _plain(error)})
            if not isinstance(error, (Lost, NoneFree, Unreachable)):
                seat.due += 4 * RETRY  # expired: not soon
        else:
            seat.had()
            if not seat.known:
                seat.known = True
                self._log(seat, "acquire")
                self._say({"event": "regained", "seat": seat.name})

    def _pass_time(self, seconds: float) -> None:
        """Wait, and do what is said meanwhile."""
        ready = [seat for seat in self._seats if seat.held and seat.provider.fileno() >= 0]
        if self._orphaned:
            seconds = min(seconds, RETRY)  # the job may end
        for message in self._hear(max(0.0, seconds), [seat.provider.fileno() for seat in ready]):
            self._obey(message)
        for seat in ready:
            if seat.held and select.select([seat.provider.fileno()], [], [], 0)[0]:
                seat.due = 0.0

    def _obey(self, message: protocol.Message) -> None:
        if message.get("do") == "release":
            self._over = True
        elif message.get("do") == "job":
            self._job = [Pid(*each) for each in message["pids"]]

    def _hear(self, seconds: float | None, others: list[int] | None = None) -> list[protocol.Message]:
        fds = [*([] if self._orphaned else [self._supervisor.fileno()]), *(others or [])]
        ready = select.select(fds, [], [], seconds)[0]
        if self._supervisor.fileno() not in ready:
            return []
        try:
            data = self._supervisor.recv(1 << 16)
        except OSError:
            data = b""
        if not data:
            self._orphaned = True
            self._over = not self._job
            return []
        return self._decoder.feed(data)

    def _release(self, seat: Kept) -> None:
        held, seat.held = seat.held, False
        try:
            seat.provider.release()
        except TorporError as error:
            self._log(seat, "release", error)
        else:
            if held:
                self._log(seat, "release")

    def _say(self, message: protocol.Message) -> None:
        try:
            self._supervisor.sendall(protocol.encode(message))
        except OSError:
            pass

    def _log(self, seat: Kept, do: str, error: TorporError | None = None) -> None:
        audit.record("seat", error, do=do, seat=seat.name, job=seat.request.job, identity=seat.request.identity)


def _plain(error: TorporError) -> str:
    """What somebody else has said, as one line for a terminal."""
    return "".join(each if each.isprintable() else " " for each in str(error)[:_REASON_MOST])


def main() -> None:
    """The process: the socket is FD, all other descriptors are closed."""
    os.closerange(FD + 1, 1 << 20)
    keeper = SeatKeeper(socket.socket(fileno=FD))
    # What ends a foreground job from the terminal, or its supervisor, is no business of ours. It is not ignored: a
    # program that we start would inherit that, and a shell could then not even trap the SIGTERM that it is ended with.
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda *_: None)
    signal.signal(signal.SIGTERM, lambda *_: keeper.give_up())
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    keeper.run()


def first_frame(seats: list[SeatTerms], request: dict[str, Any], wait: float | None) -> bytes:
    """What a keeper is told first."""
    return protocol.encode({"seats": msgspec.to_builtins(seats), "request": request, "wait": wait})
