"""The log of what was done."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from torpor.model.errors import CheckpointFailed, Refusal, Refused
from torpor.supervise import audit

SOURCE = str(Path(__file__).parents[3] / "src")
WRITER = """
import sys
from torpor.supervise import audit
for n in range(300):
    audit.record('checkpoint', job=f'writer-{sys.argv[1]}', number=n, padding='x' * (n % 7) * 100)
"""


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TORPOR_LOG", str(tmp_path / "deep" / "er" / "log"))
    monkeypatch.setattr(audit, "_complained", False)
    return tmp_path / "deep" / "er" / "log"


def test_what_a_line_says(log: Path) -> None:
    audit.record("checkpoint", job="a", checkpoint="a@1", seconds=0.5, bytes_new=0, why="", stopped=False)
    audit.record("checkpoint", Refused([Refusal(7, "p", "a GPU", "take it out")]), job="a")
    audit.record("restart", CheckpointFailed("two\nlines"), job="a")
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert len(lines) == 3
    first = lines[0]
    assert {"time", "event", "outcome", "user", "uid", "host", "pid"} <= set(first)
    assert (first["checkpoint"], first["seconds"], first["bytes_new"], first["stopped"]) == ("a@1", 0.5, 0, False)
    assert "why" not in first
    assert first["uid"] == os.geteuid()
    assert first["host"] == os.uname().nodename
    assert [line["outcome"] for line in lines] == ["done", "refused", "failed"]
    assert "a GPU" in lines[1]["reason"]
    assert stat.S_IMODE(log.stat().st_mode) == 0o600


def test_many_writers_at_once(log: Path) -> None:
    env = {**os.environ, "PYTHONPATH": SOURCE}
    writers = [subprocess.Popen([sys.executable, "-c", WRITER, str(number)], env=env) for number in range(4)]
    assert [writer.wait() for writer in writers] == [0, 0, 0, 0]
    seen: dict[str, list[int]] = {}
    for line in log.read_text().splitlines():
        told = json.loads(line)
        seen.setdefault(told["job"], []).append(told["number"])
    assert seen == {f"writer-{number}": list(range(300)) for number in range(4)}


def test_a_log_that_cannot_be_written_is_said_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(audit, "_complained", False)
    monkeypatch.setenv("TORPOR_LOG", str(tmp_path))  # a folder
    for _ in range(3):
        audit.record("checkpoint", job="a")
    assert capfd.readouterr().err == f"torpor: the log {tmp_path} cannot be written: Is a directory\n"


def test_a_full_disk(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(audit, "_complained", False)
    monkeypatch.setenv("TORPOR_LOG", "/dev/full")
    audit.record("checkpoint", job="a")
    assert "No space left" in capfd.readouterr().err


def test_where_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TORPOR_LOG", raising=False)
    monkeypatch.setenv("XDG_STATE_HOME", "/state")
    assert audit.path() == "/state/torpor/log.jsonl"
