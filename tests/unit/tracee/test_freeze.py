"""Stopping a tree: processes that end meanwhile."""

from __future__ import annotations

import os
import time

import pytest

from torpor.tracee import freeze as module
from torpor.tracee.freeze import freeze


def test_a_process_that_is_killed_and_reaped_while_it_is_being_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    pid = os.fork()
    if pid == 0:
        while True:
            time.sleep(1)
    seize = module._seize

    def seize_and_kill(process: int, tid: int) -> bool:
        done = seize(process, tid)
        os.kill(pid, 9)
        return done

    monkeypatch.setattr(module, "_seize", seize_and_kill)
    with freeze(lambda: [pid] if os.path.exists(f"/proc/{pid}") else []) as frozen:
        assert not frozen.processes and not frozen.zombies
