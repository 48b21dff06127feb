"""Hooks: commands around checkpoints and restarts, kept in the job and over restarts."""

from __future__ import annotations

import os
import re
import shlex

import harness
import pytest


def note(bench: harness.Bench, event: str) -> list[str]:
    """A hook that writes down what it was told and where it is."""
    path = os.path.join(bench.folder, "told")
    words = "$TORPOR_EVENT,$TORPOR_JOB,$TORPOR_CHECKPOINT,$TORPOR_WHY,$TORPOR_OUTCOME,$PWD"
    return ["--on", event, f'echo "{words}" >> {shlex.quote(path)}']


def told(bench: harness.Bench) -> list[str]:
    path = os.path.join(bench.folder, "told")
    lines = harness.text(path).splitlines()
    if os.path.exists(path):
        os.unlink(path)
    return lines


def start(bench: harness.Bench, *flags: str) -> harness.Running:
    job = bench.run([harness.build("tree.c"), bench.go, "0"], flags=flags)
    job.ready()
    return job


@pytest.mark.diagonal
def test_hooks_stay_with_the_job(bench: harness.Bench) -> None:
    flags = [word for event in ("pre-checkpoint", "post-checkpoint", "pre-restart", "post-restart")
             for word in note(bench, event)]  # fmt: skip
    job = start(bench, *flags)
    name = job.name
    for generation in (1, 2):
        bench.checkpoint(job)
        saved = f"{name}@{generation}"
        assert told(bench) == [
            f"pre-checkpoint,{name},,command,,/",
            f"post-checkpoint,{name},{saved},command,done,/",
        ]
        bench.kill()
        job = bench.restart(saved, detach=True)
        lines = harness.until(lambda: (seen := harness.text(f"{bench.folder}/told")).count("\n") == 2 and seen, "hooks")
        assert lines.splitlines() == [f"pre-restart,{name},{saved},command,,/", f"post-restart,{name},{saved},,,/"]
        told(bench)
    (listed,) = [one for one in bench.must("jobs", "--json").json() if one["name"] == name]
    assert listed["upkeep"].count("--on") == 4
    bench.must("attach", name, "--on", "post-checkpoint", "")
    harness.until(lambda: bench.torpor("checkpoint", name, "--store", bench.store).status == 0, "the hook is over")
    assert [line.partition(",")[0] for line in told(bench)] == ["pre-checkpoint"]
    job.verified()
    bench.gone("after the job has ended")


@pytest.mark.diagonal
def test_a_hook_that_fails_stops_it(bench: harness.Bench) -> None:
    job = start(bench)
    said = bench.torpor("checkpoint", job.name, "--store", bench.store, "--on", "pre-checkpoint", "exit 3",
                        *note(bench, "post-checkpoint"))  # fmt: skip
    assert said.status == 1 and "pre-checkpoint hook ended with status 3: exit 3" in said.err
    assert told(bench) == [f"post-checkpoint,{job.name},,command,failed,/"]
    assert not os.path.exists(bench.store)
    name = f"{job.name}@{bench.checkpoint(job, '--on', 'post-checkpoint', 'exit 4')['number']}"
    assert "post-checkpoint hook ended with status 4" in bench.history[-1]
    bench.kill()
    said = bench.torpor("restart", name, "--store", bench.store, "--detach", "--on", "pre-restart", "kill -9 $$")
    assert said.status == 1 and "pre-restart hook was ended by signal 9" in said.err
    assert job.name not in [one["name"] for one in bench.must("jobs", "--json").json()]
    bench.restart(name, detach=True).verified()


@pytest.mark.exam
def test_a_hook_has_its_time_and_leaves_nothing(bench: harness.Bench) -> None:
    """Neither itself, nor what it started; and the job is not stopped meanwhile."""
    job = start(bench)
    bench.env["TORPOR_HOOK_LIMIT"] = "1s"
    name = bench.new_name()
    other = bench.run([harness.build("tree.c"), bench.go + "2", "0"], name=name)
    other.ready()
    said = bench.torpor("checkpoint", name, "--store", bench.store, "--on", "pre-checkpoint", "sleep 611 & sleep 612")
    assert said.status == 1 and re.search("hook took longer than 1.0 s and was ended: sleep 611", said.err), said.err
    bench.must("checkpoint", name, "--store", bench.store, "--on", "pre-checkpoint", "sleep 613 & :")
    left = [pid for pid in harness.tagged(bench.tag) if "sleep 61" in harness.describe([pid])]
    assert left == [], harness.describe(left)
    job.verified()


@pytest.mark.diagonal
def test_what_makes_no_sense(bench: harness.Bench) -> None:
    said = bench.torpor("run", "--on", "lunch", "true", "--", "true")
    assert said.status == 2 and "no such event" in said.err
