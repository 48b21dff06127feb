"""Trying something in a forked child, so that what it changes, or dies of, is not ours."""

from __future__ import annotations

import os
import select
import signal
from collections.abc import Callable

Verdict = tuple[bool, str]
"""What a probe says: does it work here, and why not (or what is special about it)."""


def trial(attempt: Callable[[], Verdict], fork: Callable[[], int] = os.fork, seconds: float = 5.0) -> Verdict:
    """The verdict of `attempt`, called in a child that is made by `fork`.

    An OSError, also of the fork, is a no. So are the child's death and its silence for `seconds`.
    """
    source, target = os.pipe()
    try:
        try:
            pid = fork()
        except OSError as error:
            return False, str(error.strerror)
        if pid == 0:
            _report(attempt, target)
        os.close(target)
        target = -1
        answer = _listen(source, pid, seconds)
        _, status = os.waitpid(pid, 0)
    finally:
        os.close(source)
        if target >= 0:
            os.close(target)
    if answer:
        return answer[:1] == b"+", os.fsdecode(answer[1:])
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) != signal.SIGKILL:
        return False, f"the attempt died of {signal.Signals(os.WTERMSIG(status)).name}"
    return False, "the attempt did not end"


def _report(attempt: Callable[[], Verdict], target: int) -> None:
    """In the child. Never returns."""
    try:
        try:
            ok, detail = attempt()
        except OSError as error:
            ok, detail = False, str(error.strerror)
        os.write(target, (b"+" if ok else b"-") + os.fsencode(detail)[:4000])
    finally:
        os._exit(0)


def _listen(source: int, pid: int, seconds: float) -> bytes:
    """What the child writes; it is killed if that takes too long."""
    poll = select.poll()
    poll.register(source, select.POLLIN)
    if not poll.poll(seconds * 1000):
        os.kill(pid, signal.SIGKILL)
        return b""
    return os.read(source, 8192)
