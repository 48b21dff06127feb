"""A host stands still for a whole minute in the middle of a checkpoint, and of a restart, under the limits that a job
has by default: the others go on, it is said which host it was, and the next checkpoint works."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Iterator

import pytest
from apart import FIRST
from over import text
from test_fault_phases import SECOND, Talking, failed, talking

pytest.importorskip("nats")
pytestmark = pytest.mark.exam
MINUTE = 60.0


@pytest.fixture
def job() -> Iterator[Talking]:
    with talking("torpor-minute-", hasty=False) as made:
        yield made


@contextlib.contextmanager
def a_minute(job: Talking) -> Iterator[None]:
    """All of the second host stands still meanwhile: torpor, what it watches over, the job's processes."""
    frozen = job.everything(SECOND)
    for pid in frozen:
        os.kill(pid, signal.SIGSTOP)
    job.go_on(SECOND)
    began = time.monotonic()
    try:
        yield
        time.sleep(max(0.0, began + MINUTE - time.monotonic()))  # the subject of this test
    finally:
        for pid in frozen:
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGCONT)


def state(pid: int) -> str:
    return text(f"/proc/{pid}/stat").rpartition(")")[2].split()[0]


@pytest.mark.parametrize("phase", ["capture", "store"])
def test_in_a_checkpoint(job: Talking, phase: str) -> None:
    first = job.talk()
    job.torpor(FIRST, "checkpoint")
    here = [pid for pid in job.everything(FIRST) if pid in job.talkers()]
    job.hold(SECOND, phase)
    asker = job.save()
    job.held(SECOND)
    with a_minute(job):
        _, said = asker.communicate(timeout=MINUTE - 5)
        said = said.strip().splitlines()[-1]  # lines about how far it is may come before
        assert asker.returncode == 1 and "not saved: " in said and SECOND in said, said
        assert len(here) == 1 and state(here[0]) in "RS", state(here[0])
    job.runs()
    assert job.checkpoints() == [1]
    job.saved(SECOND)
    job.end(first)


@pytest.mark.parametrize("phase", ["connect", "fill"])
def test_in_a_restart(job: Talking, phase: str) -> None:
    """It comes back after all, or nothing is left and it can be brought back again."""
    first = job.talk()
    job.torpor(FIRST, "checkpoint")
    job.kill()
    first.wait(20)
    job.hold(SECOND, phase)
    first = job.restart("far", come=False)
    job.held(SECOND)
    with a_minute(job), contextlib.suppress(subprocess.TimeoutExpired):
        first.wait(MINUTE - 5)
    failed(job, first)
