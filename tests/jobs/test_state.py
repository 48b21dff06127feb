"""Every service: what a program had, it still has, after going on and after two restarts."""

from __future__ import annotations

import os

import catalogue
import harness
import pytest


@pytest.mark.crosswise
@pytest.mark.parametrize("program", catalogue.parameters(catalogue.STATE))
def test_two_generations(program: catalogue.Program, via: str, bench: harness.Bench) -> None:
    bench.cycle(program.command(bench.go), via, rewind=program.rewind)


@pytest.mark.parametrize("program", catalogue.parameters([p for p in catalogue.STATE if not p.rewind]))
def test_going_on(program: catalogue.Program, via: str, bench: harness.Bench) -> None:
    bench.goes_on(program.command(bench.go), via)


@pytest.mark.parametrize("program", catalogue.parameters(catalogue.ROOT_ONLY))
def test_two_generations_as_root(program: catalogue.Program, via: str, root_bench: harness.Bench) -> None:
    root_bench.cycle(program.command(root_bench.go), via, rewind=program.rewind)


def test_a_member_that_may_not_be_traced_is_refused(via: str, user_bench: harness.Bench) -> None:
    """An ordinary user's process that is not dumpable: one line that names it, and it goes on."""
    job = user_bench.run(catalogue.Program("identity.c", "undumpable").command(user_bench.go), via)
    job.ready()
    which = job.which()
    said = user_bench.torpor("checkpoint", *which, "--store", user_bench.store)
    assert said.status == 1, said
    assert len(said.err.strip().splitlines()) == 1, said
    assert "identity" in said.err or "weird" in said.err, said
    job.verified()


def test_what_others_make_is_not_the_jobs(bench: harness.Bench) -> None:
    """A restarted job sees the processes outside no more: a message queue that one of them has made since, and used, is
    not taken for the job's."""
    job = bench.run(catalogue.Program("guard.c").command(bench.go))
    job.ready()
    saved = bench.checkpoint(job)
    bench.kill()
    again = bench.restart(f"{job.name}@{saved['number']}", detach=True)
    other = bench.run([*catalogue.Program("call_later.c").command(f"{bench.go}.other"), "msgsnd"], "pid")
    other.ready()
    saved = bench.checkpoint(again)
    with open(f"{bench.go}.other", "w"):
        assert other.finish() == 0, other.trace()  # it removes the queue
    bench.kill()
    last = bench.restart(f"{job.name}@{saved['number']}", detach=True)
    (pid,) = [each["pid"] for each in bench.must("jobs", "--json").json() if each["name"] == job.name]
    assert os.readlink(f"/proc/{pid}/ns/ipc") == os.readlink("/proc/self/ns/ipc"), "it has a queue of its own"
    last.verified()


@pytest.mark.diagonal
@pytest.mark.parametrize("program", catalogue.parameters(catalogue.PING_PONG))
def test_no_wake_up_is_lost(program: catalogue.Program, bench: harness.Bench) -> None:
    """Five checkpoints while two processes wake each other thousands of times a second, then two restarts."""
    wake_ups(5, program, bench)


@pytest.mark.exam
@pytest.mark.parametrize("program", catalogue.parameters(catalogue.PING_PONG))
def test_no_wake_up_is_lost_in_many_checkpoints(program: catalogue.Program, bench: harness.Bench) -> None:
    wake_ups(25, program, bench)


def wake_ups(times: int, program: catalogue.Program, bench: harness.Bench) -> None:
    job = bench.run(program.command(bench.go))
    job.ready()
    for _ in range(times - 1):
        bench.checkpoint(job)
    saved = bench.checkpoint(job)
    job.verified()
    bench.untell()
    again = bench.restart(f"{job.name}@{saved['number']}", detach=True)
    saved = bench.checkpoint(again)
    bench.kill()
    last = bench.restart(f"{job.name}@{saved['number']}")
    last.verified()
    bench.gone("after the restarted job has ended")
