"""Numbers without processes: pidwalk and clone.feign."""

from __future__ import annotations

import os
import time

import pytest

from torpor.linux import clone, pidwalk, proc


def test_distance() -> None:
    end = 32768
    assert pidwalk.distance(1000, 1001, end) == 1
    assert pidwalk.distance(end - 1, 300, end) == 1
    assert pidwalk.distance(1001, 1000, end) == end - 1001 + 700
    assert pidwalk.distance(1001, 299, end) >= pidwalk.NEVER
    assert pidwalk.distance(10, 20, end) == 10
    assert pidwalk.distance(10, end, end) >= pidwalk.NEVER


def test_feigning_leaves_nothing_but_a_number() -> None:
    made = os.fork()
    if made == 0:  # a process that nobody's orphans come to
        status = 1
        try:
            at = pidwalk.last()
            for _ in range(5):
                clone.feign()
            assert pidwalk.distance(at, pidwalk.last(), pidwalk.highest()) >= 5
            assert proc.children(os.getpid()) == []
            with pytest.raises(ChildProcessError):
                os.waitpid(-1, os.WNOHANG)
            status = 0
        finally:
            os._exit(status)
    assert os.waitpid(made, 0)[1] == 0


def test_walking_to_a_number() -> None:
    """Others take numbers as well: some of the attempts come out right."""
    end = time.monotonic() + 100
    while time.monotonic() < end:
        wanted = pidwalk.last() + 150
        if wanted >= pidwalk.highest() - 10:
            wanted = pidwalk.RESERVED + 150
        walker = pidwalk.Walker(pidwalk.in_use(), time.monotonic() + 20)
        if not walker.walk(wanted):
            continue
        made = os.fork()
        if made == 0:
            os._exit(0)
        os.waitpid(made, 0)
        if made == wanted:
            return
    pytest.fail("no number was met")


def test_a_deadline_is_kept() -> None:
    walker = pidwalk.Walker((), time.monotonic() - 1)
    with pytest.raises(TimeoutError):
        walker.walk(max(pidwalk.last() - 500, pidwalk.RESERVED))


def test_numbers_in_use() -> None:
    used = pidwalk.in_use()
    assert used[os.getpid()] == os.getpid()
    assert os.getsid(0) in used or os.getsid(0) == 0
    assert pidwalk.last() > 0
