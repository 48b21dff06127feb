"""System V semaphores: how adjustments are found out and made again, against a model of semop(2)."""

from __future__ import annotations

import errno
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from torpor.linux.sysvipc import NOWAIT, SEM_MAX, SEM_UNDO
from torpor.posix.sysv_semaphores import adjusting, probe
from torpor.posix.sysv_shm import key_of


def semop(operations: bytes, value: int, adjustment: int) -> tuple[int, int, int]:
    """(errno, value, adjustment) after semop on semaphore 3, as ipc/sem.c does it: all or nothing."""
    now, undo = value, adjustment
    assert len(operations) // 6 <= 32
    for number, change, flags in struct.iter_unpack("<Hhh", operations):
        assert number == 3 and flags & NOWAIT and change
        if now + change < 0:
            return errno.EAGAIN, value, adjustment
        if now + change > SEM_MAX:
            return errno.ERANGE, value, adjustment
        if flags & SEM_UNDO:
            if not -SEM_MAX - 1 <= undo - change <= SEM_MAX:
                return errno.ERANGE, value, adjustment
            undo -= change
        now += change
    return 0, now, undo


VALUES = st.one_of(st.integers(0, SEM_MAX), st.sampled_from([0, 1, 16383, 16384, 16385, SEM_MAX]))
ADJUSTMENTS = st.integers(-SEM_MAX - 1, SEM_MAX)


@given(VALUES, ADJUSTMENTS, st.integers(-SEM_MAX, SEM_MAX))
def test_a_probe_tells_and_changes_nothing(value: int, adjustment: int, bound: int) -> None:
    error, *after = semop(probe(3, value, bound), value, adjustment)
    assert error == (errno.EAGAIN if adjustment >= bound else errno.ERANGE)
    assert after == [value, adjustment]


@given(VALUES, ADJUSTMENTS)
def test_adjusting_leaves_the_value(value: int, adjustment: int) -> None:
    assert semop(adjusting(3, value, adjustment), value, 0) == (0, value, adjustment)


@pytest.mark.parametrize("path, key", [("/SYSV0000002a (deleted)", 42), ("/SYSVffffffff (deleted)", -1)])
def test_key_of_an_area(path: str, key: int) -> None:
    assert key_of(path) == key
