"""POSIX message queues: what is refused, what becomes of a queue that is found at its name at the restart, and of
notifications when torpor is killed."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator

import harness
import pytest

from torpor.linux import mqueue

pytestmark = pytest.mark.skipif(not shutil.which("gcc"), reason="needs gcc")


def start(bench: harness.Bench, mode: str) -> harness.Running:
    job = bench.run([harness.build("mqueue.c"), bench.go, "0", mode], "run")
    job.ready()
    return job


def name_of(job: harness.Running) -> bytes:
    pid = job.output().split("READY pid ")[1].split()[0]
    return f"torpor-test-one-{pid}".encode()


def refusal(bench: harness.Bench, *words: str) -> str:
    """The one line of a command that must be refused."""
    said = bench.torpor(*words, "--store", bench.store)
    assert said.status == 1 and len(said.err.strip().splitlines()) == 1, said
    return said.err


def test_what_is_on_its_way_is_refused(user_bench: harness.Bench) -> None:
    job = start(user_bench, "flight")
    said = refusal(user_bench, "checkpoint", job.name)
    assert "on its way" in said and f"the message queue /{name_of(job).decode()}" in said, said
    job.verified()


def test_a_queue_that_somebody_else_has_open_is_refused(root_bench: harness.Bench) -> None:
    job = start(root_bench, "plain")
    fd = mqueue.open_queue(name_of(job), os.O_RDONLY)
    try:
        said = refusal(root_bench, "checkpoint", job.name)
    finally:
        os.close(fd)
    assert f"which process {os.getpid()} (" in said and "outside the job" in said, said
    root_bench.checkpoint(job)
    job.verified()


@pytest.fixture
def killed(root_bench: harness.Bench) -> Iterator[tuple[harness.Bench, str, bytes]]:
    """A job that was saved and killed: its queue is still there."""
    job = start(root_bench, "plain")
    root_bench.checkpoint(job)
    name = name_of(job)
    root_bench.kill()
    try:
        yield root_bench, job.name, name
    finally:
        try:
            mqueue.unlink(name)
        except FileNotFoundError:
            pass


def finish_in_place(bench: harness.Bench, job: str) -> str:
    """Restart in place; the job must be well. What was said."""
    bench.untell()
    again = bench.restart(job, "--in-place")
    again.verified()
    return harness.text(again.out + ".err")


def make(name: bytes, *messages: tuple[int, bytes]) -> int:
    fd = mqueue.open_queue(name, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NONBLOCK, 0o600, (3, 64))
    for priority, data in messages:
        mqueue.send(fd, priority, data)
    return fd


@pytest.mark.exam  # another process may have got the job's number meanwhile
def test_in_place_what_the_job_left_is_taken_over(killed: tuple[harness.Bench, str, bytes]) -> None:
    bench, job, name = killed
    fd = mqueue.open_queue(name, os.O_RDWR | os.O_NONBLOCK)
    assert mqueue.receive(fd, 64) == (2, b"first\0")
    mqueue.send(fd, 9, b"later")
    os.close(fd)
    assert "the 2 messages in it gave way to the 2 of the checkpoint" in finish_in_place(bench, job)


@pytest.mark.exam  # another process may have got the job's number meanwhile
def test_in_place_an_equal_one_is_taken(killed: tuple[harness.Bench, str, bytes]) -> None:
    bench, job, name = killed
    mqueue.unlink(name)
    os.close(make(name, (2, b"first\0"), (1, b"second\0")))
    finish_in_place(bench, job)


@pytest.mark.exam  # another process may have got the job's number meanwhile
def test_in_place_somebody_elses_is_not_touched(killed: tuple[harness.Bench, str, bytes]) -> None:
    bench, job, name = killed
    mqueue.unlink(name)
    fd = make(name, (2, b"other"))
    said = refusal(bench, "restart", job, "--in-place")
    assert f"process {os.getpid()} (" in said and "has open" in said, said
    os.close(fd)
    said = refusal(bench, "restart", job, "--in-place")
    assert "with other messages in it" in said and f"rm /dev/mqueue/{name.decode()}" in said, said
    bench.gone("after the refusal")
    fd = mqueue.open_queue(name, os.O_RDWR | os.O_NONBLOCK)
    assert mqueue.receive(fd, 64) == (2, b"other")
    os.close(fd)
    mqueue.unlink(name)
    finish_in_place(bench, job)


# -- notifications ----------------------------------------------------------------------------------------------------


def told(bench: harness.Bench, via: str = "pid", *mode: str) -> harness.Running:
    """A job of processes that are to be told of messages."""
    job = bench.run([harness.build("mqueue_notify.c"), bench.go, "0", *mode], via)
    job.ready()
    return job


@pytest.mark.parametrize(
    ("mode", "words"),
    [
        ("stops", "signal 20 is to tell (mq_notify), which cannot be blocked or stops a process"),
        ("pending", "signal 10 is to tell (mq_notify), which is waiting already"),
        ("full", "with messages in it and a notification"),
        ("locked", "and which is locked (fcntl)"),
        ("rights", "which we have no right to read and write"),
        ("socket", "a thread is to tell (mq_notify), by a netlink socket that is not to be found"),
    ],
)
def test_what_cannot_be_told_in_secret_is_refused(mode: str, words: str, user_bench: harness.Bench) -> None:
    job = told(user_bench, "run", mode)
    said = refusal(user_bench, "checkpoint", job.name)
    assert words in said and "the message queue /torpor-test-notify-" in said, said
    job.verified()


def test_a_thread_that_nobody_can_tell_any_more(user_bench: harness.Bench) -> None:
    """Its socket is closed, another one is there: nobody is told, and nobody else may ask."""
    user_bench.cycle([harness.build("mqueue_notify.c"), user_bench.go, "0", "socket", "another"], "run")


def test_a_process_whose_first_thread_has_ended(user_bench: harness.Bench) -> None:
    user_bench.cycle([harness.build("mqueue_notify.c"), user_bench.go, "0", "leader"], "run")


@pytest.mark.diagonal
def test_notifications_go_on(bench: harness.Bench, via: str) -> None:
    bench.goes_on([harness.build("mqueue_notify.c"), bench.go], via, times=3)


def kill_when_told(bench: harness.Bench, times: int, *moments: str) -> None:
    """Checkpoints that are killed at these moments while the program's processes are told, one after the other."""
    job = told(bench)
    for turn in range(times * len(moments)):
        number, moment = str(turn % TELLINGS + 1), moments[turn % len(moments)]
        command = [bench.account.python, harness.script("dying_torpor.py"), number, moment, "checkpoint"]
        process = bench.popen([*command, *job.which(), "--store", bench.store])
        assert process.wait(harness.PATIENCE) == -9, (turn, moment, job.trace())
    bench.checkpoint(job)
    job.verified()
    bench.gone("after the job has ended")


TELLINGS = 10
"""So many queues of mqueue_notify.c are such that something is to be told."""


def test_notifications_survive_a_killed_checkpoint(user_bench: harness.Bench) -> None:
    kill_when_told(user_bench, 2, "held", "started", "0", "50", "done")


@pytest.mark.exam
def test_notifications_survive_many_killed_checkpoints(bench: harness.Bench) -> None:
    kill_when_told(bench, 8, "held", "started", *(str(10 * i) for i in range(13)), "done")
