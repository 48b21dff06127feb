"""Connections that wait on another host to be accepted, with data in them: both hosts look into them together."""

from __future__ import annotations

import contextlib
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator

import pytest
from test_parts import Part, await_lines, restarted, saved

from torpor.coordinate.conversations import Settling

PROGRAM = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "programs", "far_backlog.py")
NAMES = ("server", "client")
TIMES = 12


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


@pytest.mark.parametrize("address", ["127.0.0.1", pytest.param("::1", marks=pytest.mark.exam)])
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
            *(["full"] if os.getuid() == 0 else []),
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


def killed_while_they_look(store: str, number: int, pids: dict[str, int], who: str, seconds: float) -> bool:
    """Begin a checkpoint, and kill the torpor of one host so long after both have begun to look into what waits. Did
    that fall into it?"""
    parts = {name: Part(name, "save", str(pid), store, "talk", name, str(number)) for name, pid in pids.items()}
    try:
        settling = Settling()
        for part in parts.values():
            part.did("survey")
            part.go_on()
        for part in parts.values():
            settling.add(part.name, bytes.fromhex(part.did("freeze")["part"]))
        handed = settling.result()
        for part in parts.values():
            part.go_on(handed.get(part.name, b""))
        for part in parts.values():
            part.did("settle")
        for part in parts.values():
            part.go_on()
        until = time.monotonic() + 30
        while b"torpor-turnover-" not in open("/proc/net/unix", "rb").read() and time.monotonic() < until:
            pass
        time.sleep(seconds)  # a moment of it: the subject of this test
        parts[who].process.kill()
        parts[who].process.wait()
        other = next(part for name, part in parts.items() if name != who)
        assert other.process.stdout is not None
        return "failed" in other.process.stdout.readline()
    finally:
        for part in parts.values():
            part.close()


@pytest.mark.exam
@pytest.mark.parametrize("who", NAMES)
def test_one_torpor_is_killed_while_they_look(who: str) -> None:
    chance = random.Random(f"{os.environ.get('TORPOR_TEST_SEED', '1')} {who}")
    with tempfile.TemporaryDirectory(prefix="torpor-far-backlog-", dir="/var/tmp") as folder:
        outputs = {name: f"{folder}/{name}.out" for name in NAMES}
        with programs(folder, outputs, "127.0.0.1") as running:
            pids = {name: program.pid for name, program in running.items()}
            came = sum(
                killed_while_they_look(f"{folder}/store", 1 + n, pids, who, chance.uniform(0, 0.4))
                for n in range(TIMES)
            )
            assert came > TIMES // 3, came
            saved(f"{folder}/store", 100, pids)
            open(f"{folder}/go", "w").close()
            for name in NAMES:
                await_lines(outputs[name], 1, "OK")
                assert "SAME" in lines(outputs[name])
