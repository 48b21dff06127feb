"""POSIX message queues: looking at one loses nothing, whatever becomes of whoever looks."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Iterator

import pytest

from torpor.linux import mqueue as binding
from torpor.posix import mqueue, outside

SEED = random.SystemRandom().randrange(1 << 30)
FULL = sorted(((i % 4, bytes([i]) * i) for i in range(10)), key=lambda one: -one[0])


@pytest.fixture
def queue() -> Iterator[int]:
    """A full queue: 10 messages of 4 priorities, also an empty one."""
    name = f"torpor-test.{os.getpid()}".encode()
    fd = binding.open_queue(name, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NONBLOCK, 0o600, (10, 16))
    binding.unlink(name)
    mqueue.put(fd, [(i % 4, bytes([i]) * i) for i in range(10)])
    yield fd
    os.close(fd)


def test_a_look_tells_all_and_takes_nothing(queue: int) -> None:
    assert mqueue.look(queue, 16) == FULL
    assert mqueue.take(queue, 16) == FULL
    assert mqueue.look(queue, 16) == []


_receive = binding.receive


def slow_receive(fd: int, size: int) -> tuple[int, bytes]:
    time.sleep(0.002)
    return _receive(fd, size)


def test_the_look_is_finished_if_we_are_killed(queue: int) -> None:
    dice = random.Random(SEED)
    in_time = 0
    for _ in range(25):
        pid = os.fork()
        if pid == 0:
            binding.receive = slow_receive
            while True:
                mqueue.look(queue, 16)
        time.sleep(dice.uniform(0, 0.05))
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        in_time += binding.attributes(queue).now < 10
        end = time.monotonic() + 20
        while outside.users(queue):
            assert time.monotonic() < end, "the look does not end"
            time.sleep(0.001)
        assert binding.attributes(queue).now == 10, SEED
    assert in_time, "no look was interrupted"
    assert mqueue.take(queue, 16) == FULL, SEED


def test_what_does_not_fit_any_more_waits(queue: int) -> None:
    mqueue.take(queue, 16)
    pid = os.fork()
    if pid == 0:
        mqueue.put(queue, [(1, b"x")] * 11)
        os._exit(0)
    end = time.monotonic() + 20
    while binding.attributes(queue).now < 10:
        assert time.monotonic() < end
        time.sleep(0.001)
    for _ in range(11):
        while not binding.attributes(queue).now:
            assert time.monotonic() < end
            time.sleep(0.001)
        assert binding.receive(queue, 16) == (1, b"x")
    assert os.waitpid(pid, 0)[1] == 0


def test_limits_of_a_new_namespace() -> None:
    state = mqueue.QueueState(0o600, 0, 0, 10, 8192, 1, "")
    small = mqueue.OpenQueue(b"q", 2, 1, 0, state=state)
    large = mqueue.OpenQueue(b"q", 2, 1, 0, state=mqueue.QueueState(0o600, 0, 0, 11, 8192, 1, ""))
    other = mqueue.OpenQueue(b"q", 2, 1, 0)
    assert mqueue.fit_anew([small, other])
    assert mqueue.fit_anew([small, large]) == (os.geteuid() == 0)
