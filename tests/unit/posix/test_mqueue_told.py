"""A process is told of a message in secret (posix/mqueue_told.py): the real calls, made in a stopped child, also when
something comes in between."""

from __future__ import annotations

import fcntl
import os
import signal
import struct
import time
from collections.abc import Iterator
from typing import NamedTuple

import pytest

from torpor.linux import mqueue, proc, ptrace, siginfo
from torpor.linux.arch.x86_64 import NR
from torpor.posix import mqueue_told as told
from torpor.tracee.call import LEFT_OUT, Answer, Call, In, Out, call
from torpor.tracee.freeze import freeze
from torpor.tracee.process import Process

VALUE = 0xFEDCBA9876543210
SIGNAL = signal.SIGRTMIN + 6


class Stopped(NamedTuple):
    """A stopped child that has asked to be told by SIGNAL, which it blocks. ours: our descriptor of the queue, which
    is locked. number: its own."""

    process: Process
    ours: int
    number: int
    size: int = 64

    def run(self, calls: list[Call]) -> dict[str, Answer]:
        return {one.name: answer for one, answer in zip(calls, self.process.run(calls, check=False))}

    def ask(self, kind: int = mqueue.SIGNAL) -> None:
        event = told.sigevent(SIGNAL, kind, value=VALUE)
        self.process.run([call(NR.mq_notify, self.number, event)])

    def by_signal(self, ends: bool = True) -> dict[str, Answer]:
        pair = (self.number, self.number) if ends else None
        return self.run(told.by_signal(self.process.vpid, self.number, SIGNAL, self.size, pair))

    def taking(self) -> dict[str, Answer]:
        return self.run(told.taking(self.process.vpid, self.number, SIGNAL))

    def foreign(self, value: int) -> None:
        """Another signal of that number is sent to it."""
        info = struct.pack("=iii4xiiQ", SIGNAL, 0, -1, os.getpid(), os.getuid(), value).ljust(siginfo.SIZE, b"\0")
        self.process.run([call(NR.rt_sigqueueinfo, self.process.vpid, SIGNAL, In(info))])

    def waiting(self) -> list[int]:
        """The values of its signals that wait."""
        found = ptrace.pending(self.process.leader.tid, True)
        return [struct.unpack_from("=Q", info, told.VALUE)[0] for info in found if siginfo.number(info) == SIGNAL]

    def asks(self) -> bool:
        return mqueue.notification(self.ours) == (self.process.pid, mqueue.SIGNAL, SIGNAL)

    def value(self) -> int:
        """What it is told by a real message; it asks no more."""
        mqueue.send(self.ours, 0, b"real")
        assert mqueue.receive(self.ours, self.size) == (0, b"real")
        return self.waiting()[-1]


@pytest.fixture(params=[os.O_RDWR, os.O_RDONLY, os.O_WRONLY])
def stopped(request: pytest.FixtureRequest) -> Iterator[Stopped]:
    name = f"torpor-test-told.{os.getpid()}".encode()
    ours = mqueue.open_queue(name, os.O_RDWR | os.O_NONBLOCK | os.O_CREAT | os.O_EXCL, 0o600, (3, 64))
    theirs = mqueue.open_queue(name, request.param)
    mqueue.unlink(name)
    signal.pthread_sigmask(signal.SIG_BLOCK, [SIGNAL])
    pid = os.fork()
    if pid == 0:
        while True:
            time.sleep(1)
    try:
        fcntl.flock(ours, fcntl.LOCK_EX)
        with freeze(lambda: [pid]) as frozen:
            yield Stopped(frozen.processes[pid], ours, theirs)
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [SIGNAL])
        os.kill(pid, 9)
        os.waitpid(pid, 0)
        os.close(ours)
        os.close(theirs)


def test_it_is_told_and_asks_again(stopped: Stopped) -> None:
    stopped.ask()
    before = proc.descriptors(stopped.process.pid)
    ends = fcntl.fcntl(stopped.number, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDWR
    answers = stopped.by_signal(ends)
    assert answers["take"].outs[0][told.VALUE :][:8] == VALUE.to_bytes(8, "little")
    assert answers["ask"].value == 0 and stopped.asks()
    assert not stopped.waiting() and not mqueue.attributes(stopped.ours).now
    assert list(proc.descriptors(stopped.process.pid)) == list(before)
    assert stopped.value() == VALUE


def test_nothing_is_done_without_us(stopped: Stopped) -> None:
    stopped.ask()
    fcntl.flock(stopped.ours, fcntl.LOCK_UN)
    answers = stopped.by_signal(ends=False)
    assert all(answers[name].value == LEFT_OUT for name in ("early", "open", "send", "take", "ask", "back", "mask"))
    fcntl.flock(stopped.ours, fcntl.LOCK_EX | fcntl.LOCK_NB)
    assert stopped.asks() and stopped.value() == VALUE


def test_a_signal_that_came_before(stopped: Stopped) -> None:
    stopped.ask()
    stopped.foreign(5)
    answers = stopped.by_signal(ends=False)
    assert answers["early"].value == SIGNAL
    assert all(answers[name].value == LEFT_OUT for name in ("open", "send", "take", "ask"))
    assert stopped.asks() and stopped.waiting() == [5] and stopped.value() == VALUE


def test_a_signal_that_comes_in_between(stopped: Stopped) -> None:
    stopped.ask()
    stopped.foreign(6)
    mqueue.send(stopped.ours, 0, b"")  # in place of the empty one
    mqueue.receive(stopped.ours, stopped.size)
    assert stopped.waiting() == [6, VALUE]
    answers = stopped.taking()
    assert (answers["ask"].value, answers["back"].value) == (LEFT_OUT, 0)
    assert stopped.waiting() == [VALUE, 6]
    answers = stopped.taking()
    assert (answers["ask"].value, answers["back"].value) == (0, LEFT_OUT)
    assert stopped.asks() and stopped.waiting() == [6] and stopped.value() == VALUE


def test_the_socket_is_found(stopped: Stopped) -> None:
    """Two sockets of three have something to do with it; the last one nobody has any more."""
    process = stopped.process
    sockets = [process.run([call(41, 16, 3, 0)])[0].value for _ in range(3)]
    cookie = bytes(range(31)) + b"\0"
    for number in sockets[1:]:
        process.run([call(NR.mq_notify, stopped.number, told.sigevent(number, mqueue.THREAD, In(cookie)))])
        if number == sockets[2]:
            process.run([call(NR.close, number)])
        answers = stopped.run(told.by_socket(stopped.number, sockets))
        came = {one: answers[f"take {one}"].outs[0] for one in sockets if answers[f"take {one}"].value == told.COOKIE}
        asked = mqueue.notification(stopped.ours)
        assert asked is not None
        if number == sockets[2]:
            assert not came and asked.kind == mqueue.NONE
            continue
        assert came == {number: cookie[:31] + b"\2"} and asked.kind == mqueue.THREAD
        process.run([call(NR.mq_notify, stopped.number, 0), call(NR.recvfrom, number, Out(32), 32, 0, 0, 0)])
