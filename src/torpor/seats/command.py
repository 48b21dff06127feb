"""A program of the site's that holds a seat for as long as it lives: what a vendor's checkout is wrapped in.

It is started with TORPOR_SEAT (the seat's name), TORPOR_JOB, TORPOR_IDENTITY, TORPOR_HOST and TORPOR_USER in its
environment, its standard input a pipe on which nothing ever comes. It has the seat once it has written a line `OK` to
its standard output; whatever it writes before that is for people. It gives the seat back and ends when it gets SIGTERM,
or when its standard input ends: then whoever held it is gone.

If it ends before it has said OK, its last line is the reason, and its exit status says what follows: 75 (EX_TEMPFAIL)
all seats are taken; 77 (EX_NOPERM) there is none for this job, such as where the licence has expired; anything else:
it does not work at the moment. If it ends later, the seat is lost.

`status`: another program, whose lines are the holders.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import time
from collections.abc import Mapping
from typing import IO, Any

from torpor.seats.provider import Lost, NoneFree, NotEntitled, Request, Status, Unreachable

TAKEN, NOT_ENTITLED = 75, 77
"""sysexits.h."""
PATIENCE = 120.0
"""Seconds for it to say OK."""
GRACE = 10.0
"""Seconds to end after SIGTERM."""
_MOST = 4096
"""Bytes of what it says that are kept."""


class Command:
    """See provider.Provider."""

    every = 3600.0
    """There is nothing to renew: that it lives is told by `fileno`."""

    def __init__(self, options: Mapping[str, Any], request: Request) -> None:
        self._words = [str(word) for word in options["command"]]
        self._status = [str(word) for word in options.get("status", ())]
        self._env = {
            **os.environ,
            "TORPOR_SEAT": request.seat, "TORPOR_JOB": request.job, "TORPOR_IDENTITY": request.identity,
            "TORPOR_HOST": request.host, "TORPOR_USER": request.user,
        }  # fmt: skip
        self._process: subprocess.Popen[bytes] | None = None
        self._pidfd = -1
        self._said = b""

    def acquire(self) -> None:
        if self._process is not None and self._process.poll() is None:
            return
        self._forget()
        try:
            self._process = subprocess.Popen(
                self._words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=self._env, start_new_session=True
            )
        except OSError as error:
            raise NotEntitled(f"{self._words[0]}: {error.strerror}") from None
        self._pidfd = os.pidfd_open(self._process.pid)
        self._said = b""
        end = time.monotonic() + PATIENCE
        while b"OK" not in self._said.splitlines():
            if not self._hear(end - time.monotonic()):
                raise self._why_not()

    def _hear(self, seconds: float) -> bool:
        """Read what it says; False if it says no more, or nothing for so long."""
        assert self._process is not None
        out = _out(self._process)
        poll = select.poll()
        poll.register(out, select.POLLIN)
        if seconds <= 0 or not poll.poll(seconds * 1000):
            return False
        data = os.read(out.fileno(), _MOST)
        self._said = (self._said + data)[-_MOST:]
        return bool(data)

    def _why_not(self) -> NoneFree | NotEntitled | Unreachable:
        """It has not said OK."""
        assert self._process is not None
        try:
            status = self._process.wait(1.0)
        except subprocess.TimeoutExpired:
            self._end()
            return Unreachable(f"{self._words[0]} has not said OK within {PATIENCE:.0f} s")
        reason = self._last_line() or f"{self._words[0]} {_ended(status)}"
        self._forget()
        if status == TAKEN:
            return NoneFree(reason)
        return NotEntitled(reason) if status == NOT_ENTITLED else Unreachable(reason)

    def _last_line(self) -> str:
        lines = self._said.decode(errors="replace").strip().splitlines()
        return lines[-1].strip() if lines else ""

    def renew(self) -> None:
        if self._process is None:
            raise Lost(f"{self._words[0]} does not run")
        while self._process.poll() is None:
            out = _out(self._process)
            if not select.select([out], [], [], 0)[0] or not self._hear(1.0):
                return  # alive, and has nothing to say
        while self._hear(0.1):
            pass
        status = self._process.returncode
        reason = self._last_line()
        self._forget()
        raise Lost(f"{self._words[0]} {_ended(status)}" + (f": {reason}" if reason != "OK" else ""))

    def release(self) -> None:
        if self._process is not None:
            self._end()

    def status(self) -> Status:
        if not self._status:
            raise NotEntitled("the policy names no program for it (status)")
        try:
            done = subprocess.run(
                self._status, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, env=self._env, timeout=PATIENCE,
                check=False,
            )  # fmt: skip
        except (OSError, subprocess.TimeoutExpired) as error:
            raise Unreachable(f"{self._status[0]}: {error}") from None
        if done.returncode:
            raise Unreachable(f"{self._status[0]} has ended with status {done.returncode}")
        return Status(0, tuple(done.stdout.decode(errors="replace").splitlines()))

    def fileno(self) -> int:
        return self._pidfd

    def _end(self) -> None:
        """End it, whatever it does."""
        assert self._process is not None
        for number, seconds in ((signal.SIGTERM, GRACE), (signal.SIGKILL, GRACE)):
            self._process.send_signal(number)
            try:
                self._process.wait(seconds)
                break
            except subprocess.TimeoutExpired:
                continue
        self._forget()

    def _forget(self) -> None:
        if self._process is not None:
            for pipe in (self._process.stdin, self._process.stdout):
                if pipe is not None:
                    pipe.close()
            self._process = None
        if self._pidfd >= 0:
            os.close(self._pidfd)
            self._pidfd = -1


def _ended(status: int) -> str:
    return f"was killed by signal {-status}" if status < 0 else f"has ended with status {status}"


def _out(process: subprocess.Popen[bytes]) -> IO[bytes]:
    assert process.stdout is not None
    return process.stdout
