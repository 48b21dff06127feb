"""What is said of a process' stop: it decides who hears of it after a restart."""

from __future__ import annotations

import os
import signal
import time

import pytest

from torpor.checkpoint import asking
from torpor.checkpoint.capture import stop_of
from torpor.linux import proc
from torpor.tracee.freeze import freeze


def stopped(pid: int) -> None:
    """The child stops, and nobody has waited for that yet."""
    os.kill(pid, signal.SIGSTOP)
    proc.await_state(pid, "T")


@pytest.mark.parametrize(
    "before, meanwhile, found",
    [
        ("nothing", False, (0, False)),
        ("stopped", False, (signal.SIGSTOP, False)),
        ("seen", False, (signal.SIGSTOP, True)),
        ("nothing", True, (signal.SIGSTOP, False)),
    ],
)
def test_stop_of(before: str, meanwhile: bool, found: tuple[int, bool]) -> None:
    """meanwhile: another process of the job, which runs still, sends SIGSTOP to one that stands still already."""
    pid = os.fork()
    if pid == 0:
        while True:
            time.sleep(60)
    try:
        if before != "nothing":
            stopped(pid)
        if before == "seen":
            assert os.waitpid(pid, os.WUNTRACED)[0] == pid
        with freeze(lambda: [pid]) as frozen:
            if meanwhile:
                os.kill(pid, signal.SIGSTOP)
            asking.ask(frozen.processes[pid])
            assert stop_of(frozen.processes[pid]) == found
        if found[0]:
            proc.await_state(pid, "T", 10)
            assert proc.state(pid) == "T"  # it is as stopped as it was, or would have been
    finally:
        os.kill(pid, signal.SIGKILL)
        while os.WIFSTOPPED(os.waitpid(pid, os.WUNTRACED)[1]):
            pass
