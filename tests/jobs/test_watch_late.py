"""`torpor watch`: a job that runs already is watched from then on, and does not notice. The programs are those of
test_watch.py: they check the result of each call."""

from __future__ import annotations

import os
import signal

import harness
import pytest
from test_watch import again, command, entry, services
from toolchain import needs


def watch(bench: harness.Bench, job: harness.Running, *options: str) -> harness.Said:
    """Watch a job; an ordinary user has to say that set-user-ID may lose its meaning."""
    words = ["watch", job.name, *options]
    if bench.account.uid:
        refused = bench.torpor(*words)
        assert refused.status == 1 and "--no-new-privs" in refused.err
        assert bench.torpor("inspect", job.name, "--services", "--store", bench.store).status == 2
        words.append("--no-new-privs")
    return bench.must(*words)


def start(bench: harness.Bench, kind: str) -> harness.Running:
    bench.policy()  # the programs ask for addresses that they are not connected to later
    job = bench.run(command(kind, bench))
    job.ready()
    return job


@pytest.mark.diagonal
@pytest.mark.parametrize("kind", ["c", pytest.param("python", marks=pytest.mark.exam)])
def test_from_its_middle_on(bench: harness.Bench, kind: str) -> None:
    """The ledger begins now, says so, goes along over two restarts, and outlives its holder."""
    job = start(bench, kind)
    assert "1 process watched from now on" in watch(bench, job).out
    said = bench.torpor("watch", job.name, "--no-new-privs")
    assert said.status == 2 and "watched already" in said.err
    where = again(bench, job)
    shown = bench.must("inspect", job.name, "--services", "--store", bench.store)
    assert "what it asked for before is not known" in shown.out
    holder = entry(bench, job.name)["holder"][0]
    os.kill(holder, signal.SIGKILL)
    harness.until(lambda: entry(bench, job.name)["holder"][0] != holder, "another holder")
    again(bench, job, 1, where)
    for _ in range(2):
        kept = services(bench, job.name)[where]["calls"]
        bench.checkpoint(job)
        bench.kill()
        job = bench.restart(job.name, detach=True)
        again(bench, job, 1, where)
        assert services(bench, job.name)[where]["calls"] > kept
    assert "what it asked for before is not known" in bench.must("inspect", job.name, "--services").out
    job.verified()
    bench.gone("after the watched job has ended")


@pytest.mark.exam
def test_names_that_were_given(bench: harness.Bench) -> None:
    """They are shown, of the running job and of its checkpoints, and a restart has them too."""
    bench.policy()
    job = bench.run(command("python", bench), flags=["--watch", "--service", "bench=127.0.0.1"])
    job.ready()
    where = again(bench, job, 1)
    assert services(bench, job.name)[where]["name"] == "bench"
    name = f"{job.name}@{bench.checkpoint(job)['number']}"
    bench.kill()
    assert services(bench, name)[where]["name"] == "bench"
    job = bench.restart(name, "--service", "other=" + where.split()[1], detach=True)
    assert services(bench, job.name)[where]["name"] == "other"
    job.verified()


@pytest.mark.diagonal
def test_every_process_and_thread_of_it(bench: harness.Bench) -> None:
    """Each process has a listener of its own; a holder that dies leaves all of them to the next."""
    needs("gcc")
    words = ["sh", "-c", f"{' '.join(command('c', bench))} & {' '.join(command('python', bench))} & wait"]
    job = bench.run(words)
    harness.until(lambda: job.output().count("READY") == 2, "both are ready")
    assert "3 processes watched" in watch(bench, job).out
    harness.until(lambda: len({each["pid"] for each in services(bench, job.name).values()}) == 2, "both have asked")
    before = {where: each["calls"] for where, each in services(bench, job.name).items()}
    holder = entry(bench, job.name)["holder"][0]
    os.kill(holder, signal.SIGKILL)
    harness.until(lambda: entry(bench, job.name)["holder"][0] != holder, "another holder")
    asked = lambda: services(bench, job.name)  # noqa: E731
    harness.until(lambda: sum(asked()[one]["calls"] > calls for one, calls in before.items()) >= 2, "both go on")
    bench.tell()
    assert job.finish() == 0 and job.output().count("OK") == 2, job.trace()
    bench.gone("after the watched job has ended")


MOMENTS = [0.05, *(pytest.param(moment, marks=pytest.mark.exam) for moment in (0.0, 0.02, 0.08, 0.12))]


@pytest.mark.diagonal
@pytest.mark.parametrize("moment", MOMENTS)
def test_killed_in_the_middle_of_it(bench: harness.Bench, moment: float) -> None:
    """The supervisor dies while it puts filters on: no call of the job fails, or hangs."""
    import time

    job = start(bench, "c")
    supervisor = entry(bench, job.name)["supervisor"][0]
    asking = bench.popen([*bench.account.torpor, "watch", job.name, "--no-new-privs"])
    base = harness.text_of_proc(f"/proc/{supervisor}/stat")
    harness.until(lambda: harness.text_of_proc(f"/proc/{supervisor}/stat") != base, "it has begun")
    time.sleep(moment)
    os.kill(supervisor, signal.SIGKILL)
    assert asking.wait(60) is not None
    bench.tell()
    harness.until(lambda: "OK" in job.output().splitlines(), "the job verifies itself")
    bench.gone("after the job has ended")
