"""A job under a real Slurm: saved before its limit, requeued, resumed; its result is that of an undisturbed run."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator

import accounts
import harness
import pytest
from harness import Bench, Failed, until
from slurm import Slurm, missing
from test_batch import expected, log, numbers, program, running

TEMPLATE = os.path.join(accounts.ROOT, "examples", "slurm.sbatch")
EXEC = """\
#!/bin/sh
#SBATCH --signal=B:TERM@180 --requeue --open-mode=append
# Where the site has RequeueExit=75, torpor may take the shell's place.
exec torpor run --name "job-$SLURM_JOB_ID" --resume-or-start --on-signal TERM=checkpoint-stop --deadline 5m -- "$@"
"""


@pytest.fixture(scope="module")
def slurm() -> Iterator[Slurm]:
    if why := missing():
        pytest.skip(why)
    folder = tempfile.mkdtemp(prefix="torpor-slurm-", dir="/var/tmp")
    daemons = Slurm(folder)
    try:
        daemons.start()
        yield daemons
    finally:
        daemons.stop()
        shutil.rmtree(folder, ignore_errors=True)


def submit(slurm: Slurm, bench: Bench, script: str, *options: str) -> tuple[str, str]:
    """Submit the computation; the job's number, and its output file."""
    out = bench.output_file()
    env = {**bench.env, "TORPOR_STORE": bench.store}
    env["PATH"] = f"{_command(bench)}:{env['PATH']}"
    words = [*options, "--output", out, script, *program(bench)]
    return slurm.submit(bench.account, bench.folder, env, *words), out


def _command(bench: Bench) -> str:
    """A folder that has `torpor` in it, as the account can run it."""
    folder = os.path.join(bench.folder, "bin")
    os.makedirs(folder, exist_ok=True)
    with open(os.path.join(folder, "torpor"), "w") as f:
        f.write(f'#!/bin/sh\nexec {" ".join(bench.account.torpor)} "$@"\n')
    os.chmod(os.path.join(folder, "torpor"), 0o755)
    return folder


def script(bench: Bench, how: str) -> str:
    path = os.path.join(bench.folder, "script")
    if how == "template":
        shutil.copyfile(TEMPLATE, path)
    else:
        with open(path, "w") as f:
            f.write(EXEC)
    os.chmod(path, 0o644)
    return path


def state(slurm: Slurm, job: str) -> str:
    return slurm.show(job).get("JobState", "")


def await_life(slurm: Slurm, bench: Bench, job: str, out: str, restarts: int, patience: float = 60) -> None:
    """Until the job runs for the (restarts + 1)-th time, and its supervisor listens."""

    def look() -> bool:
        seen = slurm.show(job)
        if seen.get("JobState") in ("COMPLETED", "FAILED", "TIMEOUT", "CANCELLED"):
            raise Failed(f"ended too early: {seen}")
        runs = seen.get("JobState") == "RUNNING" and seen.get("Restarts") == str(restarts)
        return runs and running(bench, f"job-{job}") and "READY" in harness.text(out)

    try:
        until(look, f"life {restarts + 1} of job {job}", patience)
    except Failed as error:
        raise Failed(f"{error}\n{slurm.show(job)}\n--- output\n{harness.text(out)}\n{slurm.logs()}") from None


def verify(slurm: Slurm, bench: Bench, job: str, out: str, lives: int) -> None:
    """Let it finish."""
    bench.tell()
    until(lambda: state(slurm, job) in ("COMPLETED", "FAILED"), "the end of the job")
    seen = harness.text(out)
    assert state(slurm, job) == "COMPLETED", f"{seen}\n{slurm.logs()}"
    assert slurm.show(job)["Restarts"] == str(lives - 1)
    result = expected(bench).splitlines()
    assert [line for line in seen.splitlines() if line in result] == result, seen
    assert seen.count("READY") == 1
    saved = [line["checkpoint"] for line in log(bench) if line.get("why") == "signal TERM"]
    assert saved == [f"job-{job}@{number}" for number in range(1, lives)]
    assert all(line["outcome"] == "done" for line in log(bench))


@contextlib.contextmanager
def cancelled(slurm: Slurm, job: str) -> Iterator[None]:
    """Nothing of the job is left, whatever happens."""
    try:
        yield
    finally:
        slurm.ask("scancel", "--signal=KILL", "--full", job)
        slurm.ask("scancel", job)


@pytest.mark.parametrize("how", ["template", "exit-status"])
def test_three_times_requeued(how: str, slurm: Slurm, bench: Bench) -> None:
    """The signal comes when we say so, otherwise as at a time limit: to the batch shell alone."""
    if (how == "exit-status") != (bench.account.label == "root"):
        pytest.skip("one way for each account is enough; the other two are in make exam")
    _requeued(how, slurm, bench)


@pytest.mark.exam
@pytest.mark.parametrize("how", ["template", "exit-status"])
def test_three_times_requeued_the_other_way(how: str, slurm: Slurm, bench: Bench) -> None:
    _requeued(how, slurm, bench)


def _requeued(how: str, slurm: Slurm, bench: Bench) -> None:
    job, out = submit(slurm, bench, script(bench, how))
    with cancelled(slurm, job):
        for restarts in range(3):
            await_life(slurm, bench, job, out, restarts)
            slurm.ask("scancel", "--batch", "--signal=TERM", job)
            until(lambda number=restarts + 1: number in numbers(bench, f"job-{job}"), "it is saved")  # type: ignore[misc]
        await_life(slurm, bench, job, out, 3)
        verify(slurm, bench, job, out, 4)
        if how == "template":
            until(lambda: numbers(bench, f"job-{job}") == [], "what was saved is removed at the end")


@pytest.mark.exam
def test_time_limits(slurm: Slurm, user_bench: Bench) -> None:
    """Slurm's own limit and its own signal, three times. The shortest limit is a minute; Slurm looks every 30 s."""
    bench = user_bench
    job, out = submit(slurm, bench, script(bench, "template"), "--time=1", "--signal=B:TERM@20")
    with cancelled(slurm, job):
        for restarts in range(4):
            await_life(slurm, bench, job, out, restarts, 150)
        verify(slurm, bench, job, out, 4)


TASKS = """\
#!/bin/sh
#SBATCH --ntasks=2 --overcommit
srun --ntasks=2 --overcommit torpor run --name tasks --hosts 127.0.0.1 --job-file job -- sh -c '
    n=0
    while ! [ -e "$0" ]; do n=$((n+1)); echo $n; sleep 0.05; done > count.$SLURM_PROCID
    exit 0' "$1"
echo "ended with $?"
"""
AGAIN = """\
#!/bin/sh
torpor restart tasks --hosts 127.0.0.1
echo "ended with $?"
"""


@pytest.mark.exam
def test_tasks_of_srun_are_one_job(slurm: Slurm, bench: Bench) -> None:
    """Whoever comes first begins it, the other joins. They are saved and stopped together, and come back together."""

    def submitted(text: str) -> str:
        path, out = os.path.join(bench.folder, "tasks"), bench.output_file()
        with open(path, "w") as f:
            f.write(text)
        env = {**bench.env, "TORPOR_STORE": bench.store, "PATH": f"{_command(bench)}:{bench.env['PATH']}"}
        slurm.submit(bench.account, bench.folder, env, "--output", out, path, bench.go)
        return out

    def grow(out: str) -> None:
        for n in range(2):
            path = f"{bench.folder}/count.{n}"
            before = len(harness.text(path))
            until(lambda: len(harness.text(path)) > before + 20 or "ended" in harness.text(out), "it counts")  # noqa: B023
        assert "ended" not in harness.text(out), f"{harness.text(out)}\n{slurm.logs()}"

    out = submitted(TASKS)
    grow(out)
    said = bench.must("checkpoint", "tasks", "--stop")
    assert said.out.startswith("saved tasks@"), said
    until(lambda: "ended with 75" in harness.text(out), "both have ended, and say why")
    out = submitted(AGAIN)
    grow(out)
    bench.tell()
    until(lambda: "ended with 0" in harness.text(out), "both have ended")
    for n in range(2):
        lines = harness.text(f"{bench.folder}/count.{n}").split()
        assert lines == [str(n + 1) for n in range(len(lines))]
