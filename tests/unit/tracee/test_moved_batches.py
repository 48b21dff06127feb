"""A batch that was laid out for one place is moved to another."""

from __future__ import annotations

from torpor.linux.arch.x86_64 import NR
from torpor.tracee.batch import Batch, laid_out
from torpor.tracee.call import RESULT, Call, Common, In, Out, Word, call, copy


def calls(size: int = 16) -> list[Call]:
    text = In(b"abc\0")
    return [
        call(NR.getpid, name="first"),
        call(NR.prctl, 15, text, 0, 0, 0),
        call(NR.write, 3, In(bytes(32), ((0, Out(size)), (16, In(bytes(8), ((0, text),))))), 2),
        call(NR.read, 0, Common("room", 64, 8), 8),
        copy(1, (Common("room", 64), Word("first", RESULT), 8)),
        call(NR.clock_gettime, 0, Out(16)),
    ]


def test_it_is_what_it_would_be_if_it_had_been_laid_out_there() -> None:
    here, there = 0x7F0000001040, 0x555500000080
    moved, fresh = Batch(here, calls()).moved(there), Batch(there, calls())
    assert moved.image == fresh.image != Batch(here, calls()).image
    assert moved.address(Word("first", RESULT)) == fresh.address(Word("first", RESULT))
    assert moved.answers(moved.image) == fresh.answers(fresh.image)
    assert moved.moved(here).image == Batch(here, calls()).image


def test_what_was_laid_out_for_one_is_used_for_another() -> None:
    for base in (0x10000, 0x20000, 0x30000, 0x20000, 0x10000):
        for size in (16, 32):
            (batch,) = laid_out(base, 4096, calls(size))
            assert batch.image == Batch(base, calls(size)).image
