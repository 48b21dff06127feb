"""A signal that means checkpoint-stop while a job is being restarted."""

from __future__ import annotations

import os
import signal

import pytest

from torpor.launch.interrupt import Interrupted, Interrupts

NUMBER = signal.SIGUSR2


@pytest.fixture(autouse=True)
def _as_before() -> object:
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    handler = signal.signal(NUMBER, signal.SIG_DFL)
    yield
    signal.signal(NUMBER, signal.SIG_IGN)  # what pends is gone with that
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    signal.signal(NUMBER, handler)


def test_it_ends_the_restart() -> None:
    with pytest.raises(Interrupted, match="USR2: the restart was given up") as caught, Interrupts([NUMBER], 75):
        os.kill(os.getpid(), NUMBER)
    assert caught.value.status == 75
    assert signal.getsignal(NUMBER) == signal.SIG_DFL


def test_one_that_was_blocked_before_is_not_lost() -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, [NUMBER])
    os.kill(os.getpid(), NUMBER)
    with pytest.raises(Interrupted), Interrupts([NUMBER], 75):
        pass


def test_once_the_job_is_about_to_run_it_waits_for_the_supervisor() -> None:
    with Interrupts([NUMBER], 75) as interrupts:
        interrupts.hold()
        os.kill(os.getpid(), NUMBER)
    assert NUMBER in signal.sigpending()


def test_without_signals_nothing_changes() -> None:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    with Interrupts([], 0) as interrupts:
        interrupts.hold()
    assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == before
