"""Connections that wait on another host to be accepted, with data in them: both hosts look into them together."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator

import pytest
from test_parts import await_lines, restarted, saved

PROGRAM = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "programs", "far_backlog.py")
NAMES = ("client", "server")


@contextlib.contextmanager
def programs(folder: str, outputs: dict[str, str], address: str) -> Iterator[dict[str, subprocess.Popen[bytes]]]:
    """Both ends, up to the moment at which all waits."""
    found: dict[str, subprocess.Popen[bytes]] = {}
    try:
        for name, output in outputs.items():
            with open(output, "w") as out:
                words = [sys.executable, PROGRAM, name, address, f"{folder}/port", f"{folder}/go"]
                found[name] = subprocess.Popen(
                    words, stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True
                )
        for output in outputs.values():
            await_lines(output, 1, "READY")
        yield found
    finally:
        for program in found.values():
            with contextlib.suppress(ProcessLookupError):
                os.killpg(program.pid, 9)
            program.wait()


def lines(path: str) -> list[str]:
    with open(path) as file:
        return file.read().splitlines()


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_what_waits_there_is_saved(address: str) -> None:
    """The job goes on as if nothing had been, after two checkpoints."""
    with tempfile.TemporaryDirectory(prefix="torpor-far-backlog-", dir="/var/tmp") as folder:
        outputs = {name: f"{folder}/{name}.out" for name in NAMES}
        with programs(folder, outputs, address) as running:
            pids = {name: program.pid for name, program in running.items()}
            for number in (1, 2):
                saved(f"{folder}/store", number, pids)
            open(f"{folder}/go", "w").close()
            for name in NAMES:
                await_lines(outputs[name], 1, "OK")
                assert "SAME" in lines(outputs[name])
            order = next(line for line in lines(outputs["server"]) if line.startswith("ORDER")).split()[1:]
        assert order[0] == "before" and order[-1] == "behind", order
        assert order[1:-1] == [
            "few", "none", "much", "half", "end", "urgent", "first", "deaf", "shared", "bound", "alone",
        ]  # fmt: skip


def test_and_it_comes_back_twice() -> None:
    with tempfile.TemporaryDirectory(prefix="torpor-far-backlog-", dir="/var/tmp") as folder:
        store = f"{folder}/store"
        outputs = {name: f"{folder}/{name}.out" for name in NAMES}
        with programs(folder, outputs, "127.0.0.1") as running:
            saved(store, 1, {name: program.pid for name, program in running.items()}, stop=True)
        with restarted(store, 1, outputs) as pids:
            saved(store, 2, pids)
            saved(store, 3, pids, stop=True)
        with restarted(store, 3, outputs):
            open(f"{folder}/go", "w").close()
            for name in NAMES:
                await_lines(outputs[name], 1, "OK")
