"""How memory is marked, looked up while other things are done."""

from __future__ import annotations

import mmap
import os
import subprocess
from collections.abc import Iterator

import pytest

from torpor.checkpoint import beforehand
from torpor.checkpoint.beforehand import Meanwhile, flags


@pytest.fixture
def sleeper() -> Iterator[int]:
    with subprocess.Popen(["sleep", "100"]) as process:
        yield process.pid
        process.kill()


def test_it_finds_what_is_there(sleeper: int) -> None:
    with mmap.mmap(-1, 1 << 20) as memory:
        memory.madvise(mmap.MADV_DONTFORK)
        found = Meanwhile([os.getpid(), sleeper]).found([os.getpid(), sleeper])
    assert any("dc" in marks.flags for marks in found[os.getpid()].values())
    assert found[sleeper] == flags([sleeper], {})[sleeper] != {}


def test_a_process_that_came_later_is_looked_at_then(sleeper: int, monkeypatch: pytest.MonkeyPatch) -> None:
    first = Meanwhile([os.getpid()])
    first.found([])
    looked: list[int] = []
    real = beforehand.capture.flags_of
    monkeypatch.setattr(beforehand.capture, "flags_of", lambda pid: looked.append(pid) or real(pid))
    assert first.found([os.getpid(), sleeper]).keys() == {os.getpid(), sleeper}
    assert looked == [sleeper]


def test_a_process_that_is_gone_has_none() -> None:
    with subprocess.Popen(["true"]) as process:
        process.wait()
    assert Meanwhile([process.pid]).found([process.pid]) == {process.pid: {}}
