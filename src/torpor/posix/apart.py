"""What must be brought to its end even if we are killed meanwhile: done by a process of its own that outlives us.

Some queues can only be looked at by emptying and filling them again (posix/pty_queue.py, posix/mqueue.py). The process
that does so ignores every signal it can and is in a session of its own, so that nothing that ends us ends it.
"""

from __future__ import annotations

import os
import select
import signal
from collections.abc import Callable


def apart(do: Callable[[], bytes], silence: float) -> bytes | None:
    """What `do` returns, called in a child; None if it failed, or says nothing for `silence` seconds.

    The child is forked while no other threads of ours run, or `do` needs nothing that they might hold.
    """
    source, target = os.pipe()
    pid = os.fork()
    if pid == 0:
        _be_apart(do, target)
    os.close(target)
    try:
        told = hear(source, silence)
    finally:
        os.close(source)
    if told is None:
        return None
    _, status = os.waitpid(pid, 0)
    return told if status == 0 else None


def hear(source: int, silence: float) -> bytes | None:
    """All that comes out of a pipe until nobody can write to it; None if nothing is said for `silence` seconds."""
    told = b""
    poll = select.poll()
    poll.register(source, select.POLLIN)
    while poll.poll(silence * 1000):
        data = os.read(source, 1 << 17)
        if not data:
            return told
        told += data
    return None


def tell(target: int, told: bytes) -> None:
    """Write all of it to a pipe."""
    while told:
        told = told[os.write(target, told) :]


class Deputy:
    """A child that does something if we die, and nothing if we do not (`dismiss`)."""

    def __init__(self, do: Callable[[], None]) -> None:
        source, self._target = os.pipe()
        self._pid = os.fork()
        if self._pid == 0:
            try:
                os.close(self._target)
                _be_deaf()
                if not os.read(source, 1):
                    do()
            finally:
                os._exit(0)
        os.close(source)

    def dismiss(self) -> None:
        """Whatever happens to us from here on, it does nothing."""
        if self._target >= 0:
            os.write(self._target, b"\0")
            os.close(self._target)
            self._target = -1
            try:
                os.waitpid(self._pid, 0)
            except ChildProcessError:
                pass


def _be_deaf() -> None:
    os.setsid()
    for number in range(1, 32):
        if number not in (signal.SIGKILL, signal.SIGSTOP):
            signal.signal(number, signal.SIG_IGN)


def _be_apart(do: Callable[[], bytes], target: int) -> None:
    """In the child. Never returns."""
    try:
        _be_deaf()
        tell(target, do())
        os._exit(0)
    finally:
        os._exit(1)
