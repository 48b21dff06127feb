"""Checkpoints of jobs that go on while they are saved: what is saved is one moment, and nobody notices the copies."""

from __future__ import annotations

import signal
import subprocess

import harness
import pytest
from test_robustness import picture, same_again
from toolchain import needs

pytestmark = pytest.mark.usefixtures("compiler")


@pytest.fixture
def compiler() -> None:
    needs("gcc")


# -- killed in the middle of it


def kill_at(bench: harness.Bench, steps: range) -> None:
    """Checkpoints that are killed at each of these steps; the last one is beyond the end."""
    job = bench.run([harness.build("busy.c"), bench.go], "pid")
    job.ready()
    assert job.popen is not None
    before, processes = picture(job.popen.pid), len(harness.tagged(bench.tag))
    killed = 0
    for step in steps:
        words = [bench.account.python, harness.script("dying_snapshot.py"), str(step), "checkpoint", *job.which()]
        command = bench.popen([*words, "--store", bench.store], stdout=subprocess.DEVNULL)
        status = command.wait(harness.PATIENCE)
        assert status in (-signal.SIGKILL, 0), (step, job.trace())
        killed += status != 0
        same_again(job.popen.pid, before, f"killed at step {step}")
        harness.until(lambda: len(harness.tagged(bench.tag)) == processes, f"the end of copies, step {step}")
        if not status:
            break
    assert killed >= 30 // steps.step and not status, f"killed {killed} times"
    bench.checkpoint(job)
    job.verified()


def test_killed_while_copies_are_made(user_bench: harness.Bench) -> None:
    kill_at(user_bench, range(1, 200, 4))


@pytest.mark.exam
def test_killed_at_every_step(bench: harness.Bench) -> None:
    kill_at(bench, range(1, 200))
