"""The save of a child of our own, before the first one of a job."""

from __future__ import annotations

import contextlib
import gc
import os
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest

from torpor.checkpoint import practice
from torpor.linux import proc


def test_it_comes_to_its_end_and_leaves_nothing_behind() -> None:
    failures: list[BaseException] = []

    def go() -> None:
        try:
            practice.practise()
        except BaseException as error:
            failures.append(error)

    gc.collect()  # what other tests have left open is closed now, and not meanwhile
    before = proc.children(os.getpid()), proc.descriptors(os.getpid())
    thread = threading.Thread(target=go)
    thread.start()
    thread.join()
    assert not failures
    assert (proc.children(os.getpid()), proc.descriptors(os.getpid())) == before


def test_only_once_and_under_the_guard(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []

    @contextlib.contextmanager
    def guard() -> Iterator[None]:
        done.append("held")
        yield
        done.append("let go")

    def fail() -> None:
        done.append("practised")
        raise OSError("no more processes")

    monkeypatch.setattr(practice, "_practised", False)
    monkeypatch.setattr(practice, "practise", fail)
    for _ in range(2):
        practice.once(guard())
    assert done[:2] == ["held", "practised"] and done.count("practised") == 1


def test_the_child_dies_with_who_practises() -> None:
    program = "import os; from torpor.checkpoint import practice; print(practice._child(), flush=True); os._exit(0)"
    done = subprocess.run([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, check=True)
    pid = int(done.stdout)
    for _ in range(1000):
        try:
            if proc.state(pid) in "ZX":
                return
        except OSError:
            return
        threading.Event().wait(0.01)
    raise AssertionError(f"process {pid} lives on")
