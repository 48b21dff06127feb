"""Leave the terminal: carry on in a process of its own session, and tell the one that stays behind how it
went."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any, NoReturn

from torpor.model.errors import TorporError
from torpor.named_tuple import NamedTuple
from torpor.supervise import protocol


class Started(NamedTuple):
    """A job that runs detached now. pid on the host, pid_inside as it sees itself; log: where its output
    goes."""

    name: str
    pid: int
    pid_inside: int
    log: str
    notes: tuple[str, ...] = ()
    seconds: float = 0.0


class Report:
    """The line from the detached process to the command that waits for it."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def event(self, message: protocol.Message) -> bool:
        """Say how far it is; False if nobody hears it any more."""
        if self._fd >= 0:
            try:
                os.write(self._fd, protocol.encode(message))
            except OSError:
                return False
        return True

    def started(self, job: Started) -> None:
        """It runs: the command may return."""
        self.event({"result": {**job._asdict()}})
        self._close()

    def failed(self, error: BaseException) -> None:
        """It does not: the command raises this."""
        self.event(protocol.error_message(error))
        self._close()

    def descriptors(self) -> list[int]:
        """Of the line."""
        return [self._fd] if self._fd >= 0 else []

    def _close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def detach(
    body: Callable[[Report], object], output: int, on_event: Callable[[protocol.Message], None] | None = None
) -> Started:
    """Run `body(report)` in a new process without terminal, and return once it has reported that the job
    runs.

    The process is in a session of its own; its standard input is /dev/null, output and error go to the
    descriptor `output`. Raises what `body` reported or raised.
    """
    reading = begin(body, output)
    try:
        return hear(reading, on_event or (lambda message: False))
    finally:
        os.close(reading)


def begin(body: Callable[[Report], object], output: int, left: bool = False) -> int:
    """The same, but returns at once: a descriptor to `hear` from. left: we have left the terminal already (`leave`); it
    is our child then, and of our session."""
    reading, writing = os.pipe()
    if not left:
        sys.stdout.flush()
    child = os.fork()
    if child == 0:
        os.close(reading)
        _carry_out(lambda report: _detached(body, report, output, left), Report(writing), traces=True)
    os.close(writing)
    os.close(output)
    if not left:
        os.waitpid(child, 0)
    return reading


def leave(body: Callable[[Report], object]) -> tuple[int, int]:
    """Run `body(report)` in a child of ours that leads a session of its own: its pid, and a descriptor to `hear`
    from."""
    reading, writing = os.pipe()
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        os.close(reading)
        os.setsid()
        _carry_out(body, Report(writing), traces=False)
    os.close(writing)
    return child, reading


def _detached(body: Callable[[Report], object], report: Report, output: int, left: bool) -> None:
    if not left:
        os.setsid()
        if os.fork():  # so that no terminal can ever become ours again
            os._exit(0)
    null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
    for number, source in ((0, null), (1, output), (2, output)):
        if source == number:
            os.set_inheritable(number, True)
        else:
            os.dup2(source, number)
    for spare in {null, output} - {0, 1, 2}:
        os.close(spare)
    body(report)


def _carry_out(body: Callable[[Report], object], report: Report, traces: bool) -> NoReturn:
    """In a process of its own. traces: its error output is a log, in which it may be told where a defect was."""
    status = 1
    try:
        body(report)
        status = 0
    except BaseException as error:
        report.failed(error)
        if traces and not isinstance(error, TorporError):
            import traceback

            traceback.print_exc()
    finally:
        os._exit(status)


class Enough(Exception):
    """An `on_event` of `hear` has heard what it waits for."""


def hear(reading: int, on_event: Callable[[protocol.Message], object]) -> Started:
    """Wait until the job runs; what is said before is passed to `on_event`. Raises what `body` reported or raised, and
    what `on_event` raises."""
    decoder = protocol.Decoder()
    while data := os.read(reading, 1 << 16):
        for message in decoder.feed(data):
            if "result" in message:
                plain: dict[str, Any] = message["result"]
                return Started(**{**plain, "notes": tuple(plain["notes"])})
            if "error" in message:
                raise protocol.raised(message["error"])
            on_event(message)
    raise TorporError("the detached process died before the job had started")
