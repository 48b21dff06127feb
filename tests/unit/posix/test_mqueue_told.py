"""A process is told of a message in secret (posix/mqueue_told.py): the real calls, made in a stopped child, also when
something comes in between."""

from __future__ import annotations

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
from torpor.posix.turnover import Script
from torpor.tracee.call import LEFT_OUT, Answer, In, Out, call
from torpor.tracee.freeze import freeze
from torpor.tracee.process import Process

VALUE = 0xFEDCBA9876543210
SIGNAL = signal.SIGRTMIN + 6
OWN = 999
"""The number under which the child has a descriptor of the queue for both directions; nobody else's, also in a test run
that has many open."""


class Stopped(NamedTuple):
    """A stopped child that has asked to be told by SIGNAL, which it blocks. ours: our descriptor of the queue.
    number: its own."""

    process: Process
    ours: int
    number: int
    size: int = 64

    def ask(self) -> None:
        event = told.sigevent(SIGNAL, mqueue.SIGNAL, value=VALUE)
        self.process.run([call(NR.mq_notify, self.number, event)])

    def run(self, script: Script) -> list[Answer]:
        script.label("end")
        script.add(NR.getpid)
        return self.process.run(script.calls, check=False)

    def by_signal(self, waiting: int = 0, foreign: bool = False) -> tuple[told.BySignal, list[Answer]]:
        """waiting: the signals that are said to wait. foreign: another one comes behind the last look."""
        calls, script = told.BySignal(self.process.vpid, self.number, SIGNAL, self.size, waiting), Script()
        calls.look(script, "let")
        if foreign:
            script.add(NR.rt_sigqueueinfo, self.process.vpid, SIGNAL, In(self.info(7)))
        calls.make(script, OWN, "let")
        script.label("let")
        calls.let(script)
        return calls, self.run(script)

    def info(self, value: int) -> bytes:
        return struct.pack("=iii4xiiQ", SIGNAL, 0, -1, os.getpid(), os.getuid(), value).ljust(siginfo.SIZE, b"\0")

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
        os.dup2(ours, OWN)
        while True:
            time.sleep(1)
    try:
        while not os.path.exists(f"/proc/{pid}/fd/{OWN}"):
            time.sleep(0.001)
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
    calls, answers = stopped.by_signal()
    assert calls.value(answers) == VALUE and not calls.others(answers)
    assert stopped.asks() and not stopped.waiting() and not mqueue.attributes(stopped.ours).now
    assert list(proc.descriptors(stopped.process.pid)) == [number for number in before if number != OWN]
    assert stopped.value() == VALUE


@pytest.mark.parametrize("number", [SIGNAL, 1])
def test_nothing_is_done_if_a_signal_came_before(stopped: Stopped, number: int) -> None:
    """It came behind our look from outside: it is said that another one waits."""
    stopped.ask()
    calls, answers = stopped.by_signal(waiting=1 << number - 1)
    assert calls.value(answers) is None and not calls.others(answers)
    assert sum(answer.value != LEFT_OUT for answer in answers) <= 6
    assert stopped.asks() and stopped.value() == VALUE and OWN in proc.descriptors(stopped.process.pid)


def test_another_signal_that_comes_in_between_keeps_its_place(stopped: Stopped) -> None:
    stopped.ask()
    calls, answers = stopped.by_signal(foreign=True)
    assert calls.value(answers) == VALUE and calls.others(answers)
    assert stopped.waiting() == [7] and stopped.asks() and stopped.value() == VALUE


def test_a_program_that_is_not_told_any_more(stopped: Stopped) -> None:
    """As after execve, or if another signal has taken the place."""
    calls, answers = stopped.by_signal()
    assert calls.value(answers) is None and not stopped.waiting()


def test_the_socket_is_found(stopped: Stopped) -> None:
    """Two sockets of three have something to do with it; the last one nobody has any more."""
    process = stopped.process
    sockets = [process.run([call(41, 16, 3, 0)])[0].value for _ in range(3)]
    cookie = bytes(range(31)) + b"\0"
    for number in sockets[1:]:
        process.run([call(NR.mq_notify, stopped.number, told.sigevent(number, mqueue.THREAD, In(cookie)))])
        if number == sockets[2]:
            process.run([call(NR.close, number)])
        script = Script()
        takes = told.by_socket(stopped.number, sockets, script)
        answers = stopped.run(script)
        came = {one: answers[at].outs[0] for one, at in takes.items() if answers[at].value == told.COOKIE}
        asked = mqueue.notification(stopped.ours)
        assert asked is not None
        if number == sockets[2]:
            assert not came and asked.kind == mqueue.NONE
            continue
        assert came == {number: cookie[:31] + b"\2"} and asked.kind == mqueue.THREAD
        process.run([call(NR.mq_notify, stopped.number, 0), call(NR.recvfrom, number, Out(32), 32, 0, 0, 0)])
