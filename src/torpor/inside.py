"""For a program that runs as a job of torpor and wishes to know: `torpor run --inside -- PROGRAM` (docs/inside.md).

    from torpor import inside

    inside.on_restart(lambda: random.seed())
    with inside.hold():                  # no checkpoint is made in here
        move_money()
    if inside.checkpoint() == "restarted":
        reconnect()

Everything else of torpor stays out of the process: this module needs the standard library only, and imports what it
needs when it is used. It may be copied into a program that has no torpor installed. There is no connection that could
be in the way of a checkpoint: a question is one datagram, which carries the number of a pipe of this process, and the
answer is written into that pipe from outside (supervise/inside.py is the other end).
"""

from __future__ import annotations

import os
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

_PATIENCE = 15.0
"""Seconds without any answer after which nobody is there. A checkpoint in between does not count."""
_AGAIN = 0.5
"""Seconds after which a question is asked again."""
_PAUSE = 0.01
"""Seconds between two questions about something that takes its time."""
_HIGH = 400
"""Descriptors that stay open are put above this number, out of the way of programs that count on low ones."""


class NotInside(RuntimeError):
    """This process is not part of a job that was started with `torpor run --inside`, or nobody supervises it."""


class NotSaved(RuntimeError):
    """The checkpoint was not made; the text says why."""


def present() -> bool:
    """Is this process part of such a job?"""
    return bool(os.environ.get("TORPOR_INSIDE"))


def job() -> str | None:
    """The job's name; None for a process that is not part of one. Raises NotInside if nobody answers."""
    return _ask("hello")[2] if present() else None


def checkpoint() -> str:
    """Save the job: "saved" where it goes on, "restarted" where it was restarted since this was called.

    Raises NotSaved (the job runs on), NotInside; RuntimeError within `hold()`, which would wait for itself."""
    if _held():
        raise RuntimeError("a checkpoint within hold() would wait for itself")
    run = _ask("hello")[1]
    asked = _new_id()
    while True:
        state, now, rest = _ask("checkpoint", asked, run)
        if state == "saved":
            return state
        if state == "failed":
            raise NotSaved(rest)
        if state == "restarted":
            _wait_for_callbacks(now)
            return state
        time.sleep(_PAUSE)


def hold() -> AbstractContextManager[None]:
    """`with hold():` keeps checkpoints from being made meanwhile. One that is being made is waited for; one that is
    asked for waits, half a minute at most, and then fails, naming this process. May be nested. Raises NotInside."""
    from contextlib import contextmanager

    @contextmanager
    def holding() -> Iterator[None]:
        held = _holds()
        if held.depth == 0:
            held.name = _new_id()
            while _ask("hold", held.name)[0] != "held":
                time.sleep(_PAUSE)
        held.depth += 1
        try:
            yield
        finally:
            held.depth -= 1
            if held.depth == 0:
                _ask("release", held.name)

    return holding()


def on_restart(call: Callable[[], object]) -> None:
    """Have `call()` called after every restart of the job, by a thread of its own. Not by children that are forked
    later. Raises NotInside."""
    global _listener
    if _listener is None or _listener.pid != os.getpid():
        _listener = _Listener()
    _listener.calls.append(call)


# -- one question -----------------------------------------------------------------------------------------------------


def _address() -> bytes:
    """Where the supervisor listens now: a restarted job is in another namespace of pids, unless it is in place."""
    token = os.environ.get("TORPOR_INSIDE")
    if not token:
        raise NotInside("this process was not started by torpor run --inside")
    space = os.readlink("/proc/self/ns/pid").strip("pid:[]")
    return f"\0torpor-inside-{token}-{space}".encode()


def _ask(word: str, asked: str = "", run: str = "-", more: str = "") -> tuple[str, str, str]:
    """Ask until there is an answer: what, by which run of the job's supervisor, and what else there is to say."""
    import select
    import socket

    asked = asked or _new_id()
    reading, writing = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        poll = select.poll()
        poll.register(reading, select.POLLIN)
        # As often as that, and not until a certain time: the clock also runs while a checkpoint is made.
        for _ in range(int(_PATIENCE / _AGAIN)):
            text = f"torpor1 {word} {asked} {run} {writing} {os.fstat(writing).st_ino} {more}"
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
                try:
                    sock.sendto(text.encode(), _address())
                except OSError:
                    time.sleep(_AGAIN)  # nobody is there, at this moment at least
                    continue
            while poll.poll(_AGAIN * 1000):
                for line in os.read(reading, 4096).decode(errors="replace").splitlines():
                    name, state, now, rest = (line.split(" ", 3) + [""] * 4)[:4]
                    if name == asked:
                        return state, now, rest
    finally:
        os.close(reading)
        os.close(writing)
    raise NotInside("nobody supervises this job any more")


def _new_id() -> str:
    return os.urandom(8).hex()


# -- what a process holds ---------------------------------------------------------------------------------------------


class _Holds:
    """Of one thread of one process."""

    def __init__(self) -> None:
        self.pid, self.depth, self.name = os.getpid(), 0, ""


_local: threading.local | None = None


def _holds() -> _Holds:
    global _local
    if _local is None:
        import threading

        _local = threading.local()
    held: _Holds | None = getattr(_local, "held", None)
    if held is None or held.pid != os.getpid():
        held = _local.held = _Holds()
    return held


def _held() -> bool:
    return _local is not None and _holds().depth > 0


# -- restarts ---------------------------------------------------------------------------------------------------------


class _Listener:
    """A thread that sleeps until the supervisor of a restarted job writes into a pipe of this process."""

    def __init__(self) -> None:
        import fcntl
        import threading

        self.pid = os.getpid()
        self.calls: list[Callable[[], object]] = []
        self._called = threading.Condition()
        self._run = ""
        low = os.pipe2(os.O_CLOEXEC)
        try:
            self._reading, self._writing = (fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, _HIGH) for fd in low)
        finally:
            for fd in low:
                os.close(fd)
        _ask("tell", more=f"{self._reading} {self._writing}")
        threading.Thread(target=self._listen, name="torpor.inside", daemon=True).start()

    def _listen(self) -> None:
        while True:
            said = os.read(self._reading, 4096).decode(errors="replace").split()
            for call in list(self.calls):
                try:
                    call()
                except Exception:
                    import traceback

                    traceback.print_exc()
            with self._called:
                self._run = said[-1] if said else ""
                self._called.notify_all()

    def wait(self, run: str) -> None:
        """Until the calls for the restart that began that run have been made."""
        with self._called:
            self._called.wait_for(lambda: self._run == run, timeout=_PATIENCE)


_listener: _Listener | None = None


def _wait_for_callbacks(run: str) -> None:
    if _listener is not None and _listener.pid == os.getpid():
        _listener.wait(run)
