"""A restarted job in a terminal: it is in front, stops and continues with the command that stands for it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from conftest import TORPOR, Screen, until  # type: ignore[import-not-found]

PROGRAM = """
trap 'echo got int' INT
echo ready
while :; do
    read x && echo "line $x"
    [ "$x" = end ] && exit 6
done
"""


@pytest.fixture
def saved(shell: Screen, env: dict[str, str], tmp_path: Path) -> Screen:
    """A shell in whose terminal a job was saved and stopped."""
    (tmp_path / "prog").write_text(PROGRAM)
    shell.send("torpor run --name j -- bash prog\n")
    shell.expect("ready")
    shell.send("one\n")
    shell.expect("line one")
    done = subprocess.run([*TORPOR, "checkpoint", "j", "--stop"], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    shell.expect(r"torpor: saved as j@1 and stopped \(torpor restart j@1\)")
    shell.send("echo status $?\n")
    shell.expect("status 75")
    return shell


def jobs(env: dict[str, str]) -> list[dict[str, object]]:
    found: list[dict[str, object]] = json.loads(
        subprocess.run([*TORPOR, "jobs", "--json"], env=env, capture_output=True, text=True).stdout
    )
    return found


def wait_until_running(env: dict[str, str]) -> None:
    """Until the only job is there and has been let go (before that it is registered, and held by its tracer)."""

    def runs() -> bool:
        for job in jobs(env):
            try:
                with open(f"/proc/{job['pid']}/stat") as stat:
                    if stat.read().rpartition(")")[2].split()[0] in "SR":
                        return True
            except FileNotFoundError:
                continue  # there is a name, and no process yet
        return False

    until(runs, "the job runs", 30)


def test_reads_and_exits(saved: Screen, env: dict[str, str]) -> None:
    saved.send("torpor restart j\n")
    wait_until_running(env)
    saved.send("two\n")
    saved.expect("line two")
    saved.send("end\n")
    saved.expect("line end")
    saved.send("echo status $?\n")
    saved.expect("status 6")


def test_control_c_and_control_z(saved: Screen, env: dict[str, str]) -> None:
    saved.send("torpor restart j\n")
    wait_until_running(env)
    saved.send("\x03")
    saved.expect("got int")
    saved.send("\x1a")
    saved.expect("Stopped")
    (job,) = jobs(env)
    assert job["state"] == "stopped"
    again = subprocess.run([*TORPOR, "checkpoint", "j"], env=env, capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    saved.send("fg\n")
    saved.send("three\n")
    saved.expect("line three")
    saved.send("\x1a")
    saved.expect("Stopped")
    saved.send("bg\n")
    saved.expect(r" &\r\n\$ ")
    saved.stopped()  # it reads, and is in the background
    saved.send("\n")
    saved.expect("Stopped")
    saved.send("fg\n")
    saved.send("end\n")
    saved.expect("line end")
    saved.send("echo status $?\n")
    saved.expect("status 6")


def test_death_by_signal_gives_the_terminal_back(saved: Screen, env: dict[str, str]) -> None:
    saved.send("stty -a | md5sum\n")
    before = saved.expect(r"([0-9a-f]{32})").group(1)
    saved.send("torpor restart j\n")
    wait_until_running(env)
    (job,) = jobs(env)
    os.kill(int(str(job["pid"])), signal.SIGKILL)
    saved.expect("Killed")
    saved.send("echo status $?; stty -a | md5sum\n")
    saved.expect("status 137")
    assert saved.expect(r"([0-9a-f]{32})").group(1) == before


def test_second_generation(saved: Screen, env: dict[str, str]) -> None:
    saved.send("torpor restart j\n")
    wait_until_running(env)
    saved.send("two\n")
    saved.expect("line two")
    subprocess.run([*TORPOR, "checkpoint", "j", "--stop"], env=env, check=True, capture_output=True)
    saved.expect(r"saved as j@2 and stopped")
    saved.send("torpor restart\n")
    wait_until_running(env)
    saved.send("three\n")
    saved.expect("line three")
    saved.send("end\n")
    saved.expect("line end")
    saved.send("echo status $?\n")
    saved.expect("status 6")


def test_streams_from_files(saved: Screen, tmp_path: Path) -> None:
    (tmp_path / "in").write_text("a\nend\n")
    saved.send("torpor restart j --stdin in --stdout out --stderr out; echo status $?\n")
    saved.expect("status 6")
    assert (tmp_path / "out").read_text() == "line a\nline end\n"
    saved.send("torpor restart j < in | cat > out2; echo status ${PIPESTATUS[0]}\n")
    saved.expect("status 6")
    assert (tmp_path / "out2").read_text() == "line a\nline end\n"


def test_detached_restart_and_clone(
    env: dict[str, str], torpor: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    loop = "i=0; while :; do echo $((i++)); sleep 0.1; done"
    assert torpor("run", "--detach", "--name", "loop", "--", "bash", "-c", loop).returncode == 0
    assert torpor("checkpoint").returncode == 0
    refused = torpor("restart")
    assert refused.returncode == 1
    assert "still running" in refused.stderr
    assert "--clone" in refused.stderr
    clone = torpor("restart", "--clone", "--detach")
    assert clone.returncode == 0, clone.stderr
    assert clone.stdout.startswith("restarted loop-2 in ")
    assert [job["name"] for job in jobs(env)] == ["loop", "loop-2"]
    (pair,) = {(job["pid_inside"], job["pid_inside"] == job["pid"]) for job in jobs(env) if job["name"] == "loop-2"}
    assert pair[1] is False
    assert torpor("stop", "loop").returncode == 0
    again = torpor("restart", "--detach", "--json", "loop")
    assert json.loads(again.stdout)["name"] == "loop"
    for job in jobs(env):
        os.kill(int(str(job["supervisor"])), signal.SIGKILL)
    for name in ("loop", "loop-2"):
        direct = torpor("checkpoint", name)
        assert direct.returncode == 0, direct.stderr
        assert "saved without it" in direct.stderr


def test_missing_and_damaged(torpor: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path) -> None:
    assert torpor("restart").returncode == 2
    assert torpor("restart", "no@1").returncode == 2
    assert torpor("restart", "no@x").returncode == 2
    torpor("run", "--detach", "--name", "s", "sleep", "60")
    assert torpor("checkpoint", "--stop").returncode == 0
    (root,) = (tmp_path / "state/torpor/store/roots/s").iterdir()
    data = root.read_bytes()
    root.chmod(0o600)
    root.write_bytes(data[: len(data) // 2])
    done = torpor("restart")
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "truncated" in done.stderr
    assert "truncated" in torpor("list").stdout
    assert torpor("jobs").stdout == "no job is running\n"
