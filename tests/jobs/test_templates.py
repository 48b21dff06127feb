"""The templates in examples/ for services and containers; that for Slurm is tested in test_slurm.py."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import time

import accounts
import harness
import pytest
from harness import Bench, Running, until
from test_batch import errors, expected, log, numbers, program, running
from test_slurm import _command as command_folder

EXAMPLES = os.path.join(accounts.ROOT, "examples")
UNIT = "torpor-job@.service"


def unit() -> dict[str, str]:
    """The settings of the unit file."""
    found: dict[str, str] = {}
    for line in harness.text(os.path.join(EXAMPLES, UNIT)).splitlines():
        key, equals, value = line.partition("=")
        if equals and not line.startswith(("#", ";")):
            assert key not in found, "set twice"
            found[key] = value
    return found


def understood(bench: Bench, *units: str) -> None:
    """systemd itself understands these unit files of examples/: the last one, which may name the others."""
    if shutil.which("systemd-analyze") is None:
        pytest.skip("no systemd-analyze")
    for unit in units:
        path = os.path.join(bench.folder, unit.replace("@", "@count"))
        shutil.copyfile(os.path.join(EXAMPLES, unit), path)
        os.chmod(path, 0o644)
    env = {**bench.env, "SYSTEMD_LOG_LEVEL": "info", "XDG_RUNTIME_DIR": bench.home}
    process = bench.popen(
        ["systemd-analyze", "--user", "--man=no", "--generators=no", "verify", path], env=env,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    said = process.communicate(timeout=harness.PATIENCE)[0].decode()
    # Of other units on this machine it may say what it likes.
    assert units[0].partition("@")[0] not in said, said
    assert process.returncode == 0, said


def test_the_unit_is_understood(user_bench: Bench) -> None:
    understood(user_bench, UNIT)


def test_the_unit_by_hand(user_bench: Bench) -> None:
    """What systemd does with it: the command, TERM to the main process alone, the command again."""
    bench, settings = user_bench, unit()
    assert (settings["KillMode"], settings["SuccessExitStatus"]) == ("mixed", "75")
    os.makedirs(f"{bench.home}/bin")
    with open(f"{bench.home}/bin/count", "w") as f:
        f.write(f"#!/bin/sh\nexec {shlex.join(program(bench))}\n")
    os.chmod(f"{bench.home}/bin/count", 0o755)
    words = shlex.split(settings["ExecStart"].replace("%i", "count").replace("%h", bench.home))
    env = {**bench.env, "PATH": f"{command_folder(bench)}:{bench.env['PATH']}", "TORPOR_STORE": bench.store}
    for life in range(3):
        job = _started(bench, words, env, "count")
        if life == 0:
            job.ready()
        until(lambda: running(bench, "count"), "the service runs")
        if life < 2:
            assert job.popen is not None
            job.popen.terminate()
            assert job.finish() == 75, job.trace()
            assert numbers(bench, "count") == list(range(1, life + 2))
    bench.tell()
    assert job.finish() == 0
    assert "\n".join(job.output().splitlines()[-2:]) == expected(bench), job.trace()


def _started(bench: Bench, words: list[str], env: dict[str, str], name: str) -> Running:
    out = bench.output_file()
    with open(out, "ab") as f, open(out + ".err", "ab") as e:
        process = bench.popen(words, stdout=f, stderr=e, env=env, start_new_session=True)
    return Running(bench, process, out, name, "template")


@pytest.mark.parametrize("kind", ["root", "user"])
def test_a_container(kind: str, request: pytest.FixtureRequest) -> None:
    """As PID 1 of a PID namespace with 30 seconds of notice. The last container but one is killed without any; what it
    leaves in its runtime folder is in nobody's way."""
    bench: Bench = request.getfixturevalue(f"{kind}_bench")
    state = os.path.join(bench.folder, "state")
    os.makedirs(state)
    os.chown(state, bench.account.uid, bench.account.gid)
    env = {
        **bench.env, "PATH": f"{command_folder(bench)}:{bench.env['PATH']}", "STATE": state, "EVERY": "0.3s",
        "TORPOR_RUNTIME": os.path.join(bench.folder, "runtime"), "TORPOR_STORE": bench.store, "JOB": "boxed",
    }  # fmt: skip
    entry = os.path.join(bench.folder, "entrypoint.sh")
    shutil.copyfile(os.path.join(EXAMPLES, "container-entrypoint.sh"), entry)
    os.chmod(entry, 0o755)
    box = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"]
    if kind == "user":
        box[1:1] = ["--user", "--map-root-user"]
        if subprocess.run([*box, "true"], capture_output=True, **bench.account.popen_options()).returncode:  # type: ignore[call-overload]
            pytest.skip("no user namespaces")
    newest = 0
    for life in ("stop", "stop", "kill", "last"):
        job = _started(bench, [*box, entry, *program(bench)], env, "boxed")
        until(lambda: (job.popen and job.popen.poll() is not None) or _newest(bench) > newest, "it is being saved")  # noqa: B023
        first = _first(job)
        if life == "stop":
            asked = time.monotonic()
            os.kill(first, signal.SIGTERM)
            assert job.finish() == 75, job.trace()
            assert time.monotonic() - asked < 30
            assert "torpor: saved as boxed@" in errors(job)
        elif life == "kill":
            os.kill(first, signal.SIGKILL)
            assert job.finish() != 0
        newest = _newest(bench)
    bench.tell()
    assert job.finish() == 0, job.trace()
    assert "\n".join(job.output().splitlines()[-2:]) == expected(bench), job.trace()
    assert log(bench) == []  # it is in the state folder
    assert os.path.getsize(os.path.join(state, "log.jsonl")) > 0


def _newest(bench: Bench) -> int:
    folder = os.path.join(bench.store, "roots", "boxed")
    return max((int(n) for n in os.listdir(folder) if n.isdigit()), default=0) if os.path.isdir(folder) else 0


def _first(job: Running) -> int:
    """PID 1 of the container, by its number outside."""
    assert job.popen is not None
    return int(until(lambda: harness.children(job.popen.pid), "the container runs")[0])  # type: ignore[union-attr]
