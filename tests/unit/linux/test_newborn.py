"""Processes that were born a moment ago are found by the numbers that they have in their own namespace."""

from __future__ import annotations

import os
import signal

import pytest

from torpor.linux import clone, newborn, proc
from torpor.linux.newborn import Born


def test_with_the_numbers_that_we_see() -> None:
    pid = os.fork()
    if not pid:
        signal.pause()
    try:
        name = proc.comm(pid)
        assert newborn.namespace(pid, proc.status(pid)) is None
        assert newborn.find(0, name, [Born(pid, None)]) == {Born(pid, None): pid}
        assert newborn.find(0, "another", [Born(pid, None)]) == {}
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    assert newborn.find(0, name, [Born(pid, None)]) == {}


def test_in_namespaces_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two processes that have the same number in different namespaces."""
    before, pids = newborn.last(), []
    try:
        for _ in range(2):
            try:
                pid = clone.fork(flags=clone.NEWPID | (clone.NEWUSER if os.geteuid() else 0))
            except OSError as error:
                pytest.skip(f"no PID namespace can be made: {error}")
            if not pid:
                signal.pause()
            pids.append(pid)
        born = [Born(1, newborn.namespace(pid, proc.status(pid))) for pid in pids]
        assert born[0] != born[1]
        assert newborn.find(before, proc.comm(pids[0]), born) == dict(zip(born, pids))
        for number in (before, before - 10, before + (1 << 40)):
            monkeypatch.setattr(newborn, "last", lambda number=number: number)
            assert newborn.find(before, proc.comm(pids[0]), born) == dict(zip(born, pids)), "wherever the counter is"
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
