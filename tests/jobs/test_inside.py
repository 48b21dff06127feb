"""Programs that speak with torpor (docs/inside.md), in Python and by the protocol in C."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import harness
import pytest


def command(kind: str, bench: harness.Bench, mode: str) -> list[str]:
    if kind == "c":
        return [harness.build("inside.c"), bench.go, "0"]
    # The module alone, as a program may have it.
    home = os.path.join(bench.folder, "modules")
    os.makedirs(os.path.join(home, "torpor"), exist_ok=True)
    source = os.path.join(os.path.dirname(harness.PROGRAMS), "..", "src", "torpor", "inside.py")
    shutil.copy(source, os.path.join(home, "torpor", "inside.py"))
    bench.env["PYTHONPATH"] = home
    return [bench.account.python, harness.script("insider.py"), bench.go, mode]


@pytest.mark.diagonal
@pytest.mark.parametrize("kind", ["c", "python"])
def test_it_saves_itself_and_hears_of_restarts(bench: harness.Bench, kind: str) -> None:
    job = bench.run(command(kind, bench, "twice"), flags=["--inside"])
    job.wait_for("^SAVED 3 told 0$")
    name = job.name
    bench.kill()
    for generation in (1, 2):
        job = bench.restart(name, detach=True)
        # Newer ones are made all the time: the one it was restarted from says so, once, and the next ones are saved.
        job.wait_for(rf"^RESTARTED \d+ told {generation}$")
        job.wait_for(rf"^SAVED \d+ told {generation}$")
        if generation == 1:
            bench.kill()
    bench.tell()
    assert job.finish() == 0 and "OK" in job.output().splitlines(), job.trace()
    assert job.output().count("RESTARTED") == 1, job.trace()
    bench.gone("after the job has ended")


@pytest.mark.diagonal
def test_a_stretch_that_is_not_interrupted(bench: harness.Bench) -> None:
    bench.env["TORPOR_HOLD_LIMIT"] = "1s"
    job = bench.run(command("python", bench, "hold"), flags=["--inside"])
    job.ready()
    said = bench.torpor("checkpoint", job.name, "--store", bench.store)
    assert said.status == 1 and "has asked" in said.err and "not to be interrupted" in said.err, said.err
    assert not os.path.exists(os.path.join(bench.store, "roots", job.name))
    waiting = bench.popen([*bench.account.torpor, "checkpoint", job.name, "--store", bench.store])
    bench.tell()
    job.wait_for("^RELEASED$")
    assert waiting.wait(60) == 0
    bench.kill()
    job = bench.restart(job.name, detach=True)
    with open(bench.go + "2", "w"):
        pass
    job.verified()


@pytest.mark.exam
def test_a_clone_is_spoken_to_as_well(bench: harness.Bench) -> None:
    """Each by its own supervisor, at the same time."""
    job = bench.run(command("c", bench, ""), flags=["--inside"])
    job.wait_for("^SAVED 2 told 0$")
    other = bench.restart(job.name, "--clone", "--name", job.name + "-b", detach=True)
    other.wait_for(r"^RESTARTED \d+ told 1$")
    other.wait_for(r"^SAVED \d+ told 1$")
    seen = job.output().count("SAVED")
    harness.until(lambda: job.output().count("SAVED") > seen + 1, "the first one goes on")
    assert "RESTARTED" not in job.output()


@pytest.mark.parametrize("token", ["", "0" * 32])
@pytest.mark.diagonal
def test_a_program_that_is_not_inside(bench: harness.Bench, token: str) -> None:
    words = command("python", bench, "")
    code = "from torpor import inside; inside._PATIENCE = 1; print(inside.present()); inside.checkpoint()"
    env = {**bench.env, **({"TORPOR_INSIDE": token} if token else {})}
    done = bench.popen([words[0], "-c", code], env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    out, err = done.communicate(timeout=60)
    assert done.returncode == 1 and b"NotInside" in err, err
    assert out.decode() == f"{bool(token)}\n"


@pytest.mark.diagonal
def test_nothing_but_the_standard_library(bench: harness.Bench) -> None:
    command("python", bench, "")
    code = "import os, sys; old = set(sys.modules); import torpor.inside; print(sorted(set(sys.modules) - old))"
    done = subprocess.run(
        [sys.executable, "-S", "-c", code], env={"PYTHONPATH": bench.env["PYTHONPATH"]}, capture_output=True, text=True
    )
    assert done.stdout == "['__future__', 'torpor', 'torpor.inside']\n", (done.stdout, done.stderr)
