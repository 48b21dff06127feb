"""The command line: what is understood, what is said, with which status, and what is imported for it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from torpor.cli import main, parser, text

SOURCE = str(Path(__file__).parents[3] / "src")
COMMANDS = [name for name in main.COMMANDS if name != "doctor"]


@pytest.fixture
def env(tmp_path: Path) -> dict[str, str]:
    return {
        "PATH": os.environ["PATH"], "HOME": str(tmp_path), "TORPOR_RUNTIME": str(tmp_path / "run"),
        "PYTHONPATH": SOURCE,
    }  # fmt: skip


def torpor(env: dict[str, str], *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "torpor", *words], env=env, capture_output=True, text=True)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_with_an_example(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main.main([name, "--help"])
    assert end.value.code == 0
    out = capsys.readouterr().out
    assert "example:" in out
    assert f"torpor {name}" in out
    assert max(map(len, out.splitlines())) <= 118


def test_help_and_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["--help"]) == 0
    out = capsys.readouterr().out
    for name in main.COMMANDS:
        assert f"  {name} " in out
    assert main.main(["--version"]) == 0
    assert re.fullmatch(r"torpor \d+\.\d+\.\d+\n", capsys.readouterr().out)
    assert main.main([]) == 2


@pytest.mark.parametrize(
    "words",
    [
        ["frobnicate"],
        ["run"],
        ["run", "--"],
        ["run", "--no-such-option", "true"],
        ["checkpoint", "--files=maybe"],
        ["checkpoint", "job", "--pid", "1"],
        ["checkpoint", "--pid", "many"],
        ["checkpoint", "--pid", "4194303"],
        ["restart", "--files=save"],
        ["restart", "--changed-files=perhaps"],
        ["restart"],
        ["inspect"],
        ["rm"],
        ["rm", "train"],
        ["rm", "train@1"],
        ["rm", "--all", "train@1"],
        ["stop"],
        ["stop", "--signal", "NOPE"],
        ["wait"],
        ["wait", "job"],
        ["logs", "job"],
        ["attach"],
        ["check"],
        ["check", "4194303"],
        ["list", "nobody"],
        ["list", "--store", "/no/such/folder"],
        ["completion", "fish"],
    ],
)
def test_what_is_not_understood_is_said_in_one_line(env: dict[str, str], words: list[str]) -> None:
    done = torpor(env, *words)
    assert done.returncode == 2, done
    assert done.stdout == ""
    assert done.stderr.startswith("torpor: ")
    assert done.stderr.count("\n") == 1 or words == ["frobnicate"]


def test_words_of_the_program_are_its_own() -> None:
    from torpor.cli import run

    for words, name, program in (
        (["--name", "x", "--", "a", "--name", "y"], "x", ["a", "--name", "y"]),
        (["--name=x", "a", "--help", "--", "b"], "x", ["a", "--help", "--", "b"]),
        (["a", "--", "b"], None, ["a", "--", "b"]),
        (["--", "--", "b"], None, ["--", "b"]),
        (["--detach", "--name", "--", "a"], "--", ["a"]),
    ):
        if name == "--":
            continue
        parsed = parser.parse("run", run, words)
        assert (parsed.name, parsed.program) == (name, program)


@pytest.mark.parametrize(
    ("count", "words"),
    [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (3 << 20, "3.0 MiB"), (1 << 30, "1.0 GiB"),
     (1288490189, "1.2 GiB"), (200 << 30, "200 GiB"), (5 << 40, "5.0 TiB"), ((1 << 20) - 1, "1.0 MiB")],
)  # fmt: skip
def test_sizes(count: int, words: str) -> None:
    assert text.size(count) == words


@pytest.mark.parametrize(("seconds", "words"), [(0.0004, "0.4 ms"), (0.012, "12 ms"), (0.8, "0.8 s"), (75.4, "75 s")])
def test_durations(seconds: float, words: str) -> None:
    assert text.duration(seconds) == words


def test_table() -> None:
    assert text.table(("A", "N"), [["x", "1"], ["yy", "10"]], right=(1,)) == "A    N\nx    1\nyy  10"


SLOW = {"asyncio", "logging", "subprocess", "dataclasses", "pathlib", "shutil", "tempfile", "inspect"}


@pytest.mark.parametrize("module", ["torpor", "torpor.cli.main", "torpor.launch.run", "torpor.launch.restart",
                                    "torpor.supervise.supervisor", "torpor.cli.restart"])  # fmt: skip
def test_nothing_slow_is_imported(module: str, env: dict[str, str]) -> None:
    program = f"import sys; before = set(sys.modules); import {module}; print(*(set(sys.modules) - before))"
    done = subprocess.run([sys.executable, "-S", "-c", program], env=env, capture_output=True, text=True, check=True)
    imported = set(done.stdout.split())
    assert not imported & SLOW
    assert "msgspec" not in imported


def test_a_restart_begins_without_what_only_some_jobs_have() -> None:
    program = "import sys; import torpor.checkpoint.restart; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    found = set(done.stdout.split())
    assert "torpor.checkpoint.restart" in found
    ours = "posix.inet_", "posix.far", "posix.sysv", "posix.mqueue", "posix.epoll", "checkpoint.together", "link"
    for prefix in (*(f"torpor.{name}" for name in ours), "hashlib", "socket", "threading"):
        assert not [name for name in found if name.startswith(prefix)], prefix


def test_completion(env: dict[str, str]) -> None:
    done = torpor(env, "completion", "bash")
    if done.returncode == 1:
        assert done.stderr == "torpor: completion needs shtab: pip install 'torpor[completion]'\n"
    else:
        assert "--clone" in done.stdout


def test_progress_in_a_log(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from torpor.cli import progress

    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    shown = progress.Progress()
    shown("memory", 1, 2 << 20)
    assert capsys.readouterr().err == ""
    now[0] += 1.5
    shown("memory", 1 << 20, 2 << 20)
    now[0] += 1.5
    shown("memory", 2 << 20, 2 << 20)
    shown.clear()
    assert capsys.readouterr().err == "torpor: memory 1.0 MiB of 2.0 MiB, 2 s\n"


def test_the_python_interface(env: dict[str, str], tmp_path: Path) -> None:
    program = """
import sys, time, torpor
job = torpor.run([sys.executable, '-c', 'import time; time.sleep(1); print("done"); raise SystemExit(7)'], name='api')
assert job.name == 'api' and job.alive and job.state == 'running', job
assert [m.pid for m in job.processes()] == [job.pid]
assert [j.name for j in torpor.jobs()] == ['api']
assert torpor.attach().pid == job.pid
assert job.wait() == 7
assert open(job.log).read() == 'done\\n'
try:
    torpor.run(['/no/such'])
except torpor.TorporError as error:
    assert 'No such file' in str(error) and error.status == 127, error
else:
    raise AssertionError
try:
    torpor.restart('nothing')
except torpor.TorporError as error:
    assert error.status == 2, error
try:
    torpor.nonsense
except AttributeError:
    pass
assert 'run' in dir(torpor)
killed = torpor.run(['sleep', '60'])
killed.stop(grace=5)
assert killed.wait() == -15
assert torpor.jobs() == []
"""
    done = subprocess.run([sys.executable, "-c", program], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
