"""Calls that are tied together within a batch: what one returns goes to another, and calls that depend on it are left
out. Laid out (pure), and carried out by the real code in a process of our own (as a stub)."""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Iterator

import pytest

from torpor.linux.arch.x86_64 import NR
from torpor.linux.arch.x86_64_code import ROW
from torpor.tracee.batch import Batch, split
from torpor.tracee.call import LEFT_OUT, RESULT, Call, Common, In, Out, Word, call, copy
from torpor.tracee.freeze import freeze
from torpor.tracee.process import Process

BAD = call(NR.close, 12345, accept=(errno.EBADF,))
GOOD = call(NR.getpid)


@pytest.fixture
def stopped() -> Iterator[Process]:
    """A child that is stopped."""
    pid = os.fork()
    if pid == 0:
        while True:
            os.sched_yield()
    try:
        with freeze(lambda: [pid]) as frozen:
            yield frozen.processes[pid]
    finally:
        os.kill(pid, 9)
        os.waitpid(pid, 0)


def at(name: str, one: Call, failed: str = "", done: str = "") -> Call:
    return one._replace(name=name, if_failed=failed, if_done=done)


END = at("end", GOOD)


@pytest.mark.parametrize(
    ("calls", "made"),
    [
        ([at("", BAD, failed="end"), GOOD, END], "101"),
        ([at("", GOOD, failed="end"), GOOD, END], "111"),
        ([at("", BAD, done="end"), GOOD, END], "111"),
        ([at("", GOOD, done="end"), GOOD, END], "101"),
        ([at("", GOOD, failed="two", done="end"), GOOD, at("two", GOOD), END], "1001"),
        ([at("", BAD, failed="two", done="end"), GOOD, at("two", GOOD), END], "1011"),
        ([at("", BAD, failed="next", done="end"), at("next", GOOD), END], "111"),
        ([GOOD, at("", BAD, failed="two"), GOOD, at("two", GOOD, done="end"), GOOD, END, BAD], "1101011"),
    ],
)
def test_calls_are_left_out(calls: list[Call], made: str, stopped: Process) -> None:
    answers = stopped.run(calls, check=False)
    assert "".join("0" if answer.value == LEFT_OUT else "1" for answer in answers) == made
    for one, answer in zip(calls, answers):
        if answer.value != LEFT_OUT:
            assert answer.value == (stopped.pid if one.nr == NR.getpid else -errno.EBADF)


def test_what_one_returns_goes_to_another(stopped: Process) -> None:
    """A pipe is made, written to and read from: the numbers of its ends are known to nobody before."""
    pid = stopped.vpid
    answers = stopped.run(
        [
            call(293, Common("ends", 8), 0),
            copy(pid, (Word("read", 0), Common("ends", 8), 4), (Word("write", 0), Common("ends", 8, 4), 4)),
            at("write", call(NR.write, 0, In(b"hello"), 5)),
            at("read", call(NR.read, 0, Out(8), 8)),
            copy(pid, (Common("told", 8), Word("read", RESULT), 8)),
            copy(pid, (Word("close", 0), Word("read", 0), 8), (Word("close too", 0), Word("write", 0), 8)),
            at("close", call(NR.close, 0)),
            at("close too", call(NR.close, 0)),
        ]
    )
    ends = struct.unpack("<ii", answers[0].outs[0])
    assert answers[3].value == 5 and answers[3].outs[0] == b"hello\0\0\0"
    assert answers[4].outs[0] == (5).to_bytes(8, "little")
    assert not any(os.path.exists(f"/proc/{stopped.pid}/fd/{end}") for end in ends)


def test_addresses() -> None:
    room = Common("room", 24)
    one = at("one", call(1, room, Common("room", 24, 8)))
    batch = Batch(0x1000, [one, at("two", call(2, Word("one", 1), Word("two", RESULT), Out(8)))])
    first, second = (struct.unpack_from("<7Qq", batch.image, ROW * i) for i in range(2))
    assert first[1] == 0x1000 + 2 * ROW and first[2] == first[1] + 8
    assert second[1:3] == (0x1000 + 16, 0x1000 + ROW + 56)
    assert second[3] == first[1] + 32
    assert [answer.value for answer in batch.answers(batch.image)] == [LEFT_OUT] * 2
    assert [len(out) for out in batch.answers(batch.image)[0].outs] == [24, 24]


def test_what_makes_no_sense_is_refused() -> None:
    with pytest.raises(ValueError):
        Batch(0, [END, at("", GOOD, failed="end")])
    with pytest.raises(ValueError):
        Batch(0, [at("", GOOD, done="nowhere"), END])
    with pytest.raises(KeyError):
        Batch(0, [call(1, Word("nowhere", 0))])
    with pytest.raises(ValueError):
        Batch(0, [call(1, Common("room", 8)), call(1, Common("room", 16))])
    with pytest.raises(ValueError):
        list(split([at("", GOOD, failed="end"), call(1, Out(500)), at("end", call(1, Out(500)))], 1000))
    assert len(list(split([GOOD, call(1, Out(500)), call(1, Out(500))], 1000))) == 2


def test_many_calls_are_cut_in_one_pass() -> None:
    looks = 0

    class Counted(list[Call]):
        def __iter__(self) -> Iterator[Call]:
            nonlocal looks
            looks += 1
            return super().__iter__()

    assert len(list(split(Counted([call(1, Out(500))] * 3000), 1000))) == 3000
    assert looks == 2
