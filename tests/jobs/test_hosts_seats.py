"""Seats of a job over hosts: held once, by the host of the first part, for what any of its hosts has used. The licence
server and the licensed programs are those of test_seats.py."""

from __future__ import annotations

import os
import shlex
import signal

import harness
import pytest
from loopback import HOSTS, Over
from test_seats import Licences, checkout, pool, taken, written

pytest.importorskip("nats")
TWO = HOSTS[:2]


@pytest.fixture
def over(bench: harness.Bench) -> Over:
    return Over(bench)


def licensed(over: Over, licences: Licences, *flags: str) -> harness.Running:
    """A licensed program on the second host, and one that only waits for it on the first."""
    words = [over.python, harness.script("licensed.py"), over.bench.go, str(licences.port)]
    job = over.bench.run(["sh", "-c", f"{over.rsh} {TWO[1]} {shlex.quote(shlex.join(words))}; exit 5"],
                         flags=["--hosts", ",".join(TWO), *flags])  # fmt: skip
    job.ready()
    return job


def refused(over: Over, name: str, *words: str) -> str:
    """What is said; nothing is left on any host."""
    said = over.bench.torpor("restart", name, "--store", over.bench.store, "--hosts", ",".join(TWO), *words)
    assert said.status == 1 and said.out == "" and said.err.count("\n") <= 2, said
    for host in TWO:
        assert over.on(host, "jobs").out == "no job is running\n"
    over.bench.gone("after a refused restart")
    return said.err


def stopped(over: Over, *scripts: str) -> bool:
    """Do the job's processes stand still that have these words in their command lines?"""
    found = []
    for pid in harness.tagged(over.bench.tag):
        words = harness.text_of_proc(f"/proc/{pid}/cmdline").split("\0")
        if "torpor" not in " ".join(words[:2]) and any(script in word for word in words for script in scripts):
            found.append(pid)
    return bool(found) and all(harness.state_of(pid) == "T" for pid in found)


@pytest.mark.exam
def test_what_only_another_host_used_needs_its_seat_also_as_root(root_bench: harness.Bench) -> None:
    only_another_host(Over(root_bench))


def test_what_only_another_host_used_needs_its_seat(user_bench: harness.Bench) -> None:
    only_another_host(Over(user_bench))


def only_another_host(over: Over) -> None:
    """(a) of issue 6, over hosts: it asked once at its start, and its licence expired meanwhile."""
    bench, licences = over.bench, Licences(over.bench, 1)
    try:
        job = licensed(over, licences)
        bench.must("checkpoint", job.name, "--stop")
        assert job.finish() == 75, job.trace()
        name, where = f"{job.name}@1", f"127.0.0.1:{licences.port}"
        said = refused(over, name)
        assert where in said and "no policy says what it is" in said, said
        policy = written(bench, "p.toml", checkout(bench, licences))
        licences.expire(True)
        said = refused(over, name, "--policy", policy)
        assert "no seat sim is to be had: the licence has expired" in said, said
        licences.expire(False)
        for generation in (1, 2):
            # The second time the policy is not named: it is sealed into the checkpoint.
            words = ["--policy", policy] if generation == 1 else []
            again = bench.restart(job.name, "--hosts", ",".join(TWO), *words)
            harness.until(lambda: over.on(TWO[1], "jobs").out != "no job is running\n", "it is there")
            assert licences.log()[-1] == f"CHECKOUT {job.name} OK", licences.log()
            if generation == 1:
                bench.must("checkpoint", job.name, "--stop")
                assert again.finish() == 75, again.trace()
                assert licences.log()[-1] == f"BACK {job.name}"
        bench.tell()
        assert again.finish() == 5, again.trace()
        assert licences.log()[-1] == f"BACK {job.name}"
        assert sum(line == f"CHECKOUT {job.name} OK" for line in licences.log()) == 2, licences.log()
        bench.gone("after the job has ended")
    finally:
        licences.close()


@pytest.mark.exam
@pytest.mark.diagonal
def test_a_lost_seat_pauses_all_hosts(over: Over) -> None:
    """Also while the job is saved; and it goes on everywhere once the seat is back."""
    bench, licences = over.bench, Licences(over.bench, 1)
    try:
        text = checkout(bench, licences, 'grace = "1s"\n').replace("at_start = false\n", "")
        policy = written(bench, "p.toml", text)
        job = licensed(over, licences, "--policy", policy)
        assert licences.log()[0] == f"CHECKOUT {job.name} OK"

        def lose() -> None:
            licences.expire(True)
            (holder,) = [
                p for p in harness.tagged(bench.tag) if "checkout.py" in harness.text_of_proc(f"/proc/{p}/cmdline")
            ]
            os.kill(holder, signal.SIGKILL)
            harness.until(lambda: stopped(over, "licensed.py", "exit 5"), "the pause")

        lose()
        assert "is paused until it has its seat sim again" in harness.text(job.out + ".err")
        assert over.on(TWO[1], "checkpoint", job.name).status == 0, job.trace()
        harness.until(lambda: stopped(over, "licensed.py", "exit 5"), "the pause")
        licences.expire(False)
        harness.until(lambda: not stopped(over, "licensed.py"), "the end of the pause")
        bench.must("checkpoint", job.name, "--stop")
        assert job.finish() == 75, job.trace()
        again = bench.restart(job.name, "--hosts", ",".join(TWO))
        harness.until(lambda: over.on(TWO[1], "jobs").out != "no job is running\n", "it is there")
        lose()
        licences.expire(False)
        harness.until(lambda: not stopped(over, "licensed.py"), "the end of the pause")
        bench.tell()
        assert again.finish() == 5, again.trace()
        bench.gone("after the job has ended")
    finally:
        licences.close()


@pytest.mark.exam
@pytest.mark.diagonal
def test_more_jobs_than_seats(over: Over) -> None:
    """(b) of issue 6, over hosts: the next one is told why, waits where it was asked for, before anything is on another
    host, and goes on as soon as the seat is free."""
    bench = over.bench
    policy = pool(bench, 1)
    names = []
    for _ in range(2):
        job = bench.run(["sh", "-c", f"{over.rsh} {TWO[1]} 'echo READY; sleep 1000'"],
                        flags=["--hosts", ",".join(TWO), "--policy", policy])  # fmt: skip
        job.ready()
        assert taken(bench) == [job.name]
        names.append(job.name)
        if len(names) == 2:
            words = ["run", "--store", bench.store, "--hosts", ",".join(TWO), "--policy", policy, "--", "true"]
            said = bench.torpor(*words)
            assert said.status == 1 and "all 1 seats of sims are taken" in said.err, said
        bench.must("checkpoint", job.name, "--stop")
        assert job.finish() == 75, job.trace()
        assert taken(bench) == []
    first = bench.restart(names[0], "--hosts", ",".join(TWO))
    harness.until(lambda: over.on(TWO[1], "jobs").out != "no job is running\n", "it is there")
    assert taken(bench) == [names[0]]
    late = bench.restart(names[1], "--hosts", ",".join(TWO), "--wait", "100s")
    harness.until(lambda: "waiting for a seat sim" in harness.text(late.out + ".err"), "waiting")
    assert [each["name"] for each in over.on(TWO[1], "jobs", "--json").json()] == [names[0]]
    bench.must("stop", names[0])
    first.finish()
    harness.until(lambda: taken(bench) == [names[1]], "the seat of the one that has ended")
    harness.until(lambda: names[1] in over.on(TWO[1], "jobs").out, "it is there")
    bench.must("stop", names[1])
    late.finish()
    bench.gone("after all jobs have ended")
    assert taken(bench) == []


@pytest.mark.exam
@pytest.mark.diagonal
def test_restarted_and_stopped_before_the_first_instruction(over: Over) -> None:
    """On every host; a SIGCONT to any of the supervisors lets all of them go."""
    bench = over.bench
    loop = f"n=0; while ! [ -e {bench.go} ]; do n=$((n+1)); echo $1 $n; sleep 0.02; done"
    job = bench.run(["sh", "-c", f"{over.rsh} {TWO[1]} 'set two; {loop}' & set one; {loop}; wait; exit 6"],
                    flags=["--hosts", ",".join(TWO)])  # fmt: skip
    for each in ("one", "two"):
        job.wait_for(f"^{each} 5$")
    bench.must("checkpoint", job.name, "--stop")
    assert job.finish() == 75
    for host in TWO:
        again = bench.restart(job.name, "--hosts", ",".join(TWO), "--stopped")
        harness.until(lambda: "stands before its first instruction" in harness.text(again.out + ".err"), "it is said")  # noqa: B023
        harness.until(lambda: all(over.on(each, "jobs").out != "no job is running\n" for each in TWO), "it is there")
        assert stopped(over, "set one", "set two") and again.output() == "", again.trace()
        (entry,) = over.on(host, "jobs", "--json").json()
        os.kill(entry["supervisor"], signal.SIGCONT)
        for each in ("one", "two"):
            again.wait_for(f"^{each} ")
        if host == TWO[0]:
            bench.must("stop", job.name)
            again.finish()
            bench.gone("after it was stopped")
    bench.tell()
    assert again.finish() == 6, again.trace()
    bench.gone("after the job has ended")
