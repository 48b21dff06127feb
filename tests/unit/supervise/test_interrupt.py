"""A signal that means checkpoint-stop while a job is being restarted.

Each test is in a process of its own: a signal that one thread blocks goes to any other, and pytest may have some.
"""

from __future__ import annotations

import functools
import os
import signal
import traceback
from collections.abc import Callable

import pytest

from torpor.launch.interrupt import Interrupted, Interrupts

NUMBER = signal.SIGUSR2


def alone(test: Callable[[], None]) -> Callable[[], None]:
    """Run a test in a child that has one thread."""

    @functools.wraps(test)
    def wrapped() -> None:
        child = os.fork()
        if child == 0:
            status = 1
            try:
                signal.pthread_sigmask(signal.SIG_SETMASK, [])
                signal.signal(NUMBER, signal.SIG_DFL)
                test()
                status = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(status)
        assert os.waitpid(child, 0)[1] == 0

    return wrapped


@alone
def test_it_ends_the_restart() -> None:
    with pytest.raises(Interrupted, match="USR2: the restart was given up") as caught, Interrupts([NUMBER], 75):
        os.kill(os.getpid(), NUMBER)
    assert caught.value.status == 75
    assert signal.getsignal(NUMBER) == signal.SIG_DFL


@alone
def test_one_that_was_blocked_before_is_not_lost() -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, [NUMBER])
    os.kill(os.getpid(), NUMBER)
    with pytest.raises(Interrupted), Interrupts([NUMBER], 75):
        pass


@alone
def test_once_the_job_is_about_to_run_it_waits_for_the_supervisor() -> None:
    with Interrupts([NUMBER], 75) as interrupts:
        interrupts.hold()
        os.kill(os.getpid(), NUMBER)
    assert NUMBER in signal.sigpending()


@alone
def test_without_signals_nothing_changes() -> None:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    with Interrupts([], 0) as interrupts:
        interrupts.hold()
    assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == before
