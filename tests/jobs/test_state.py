"""Every service: what a program had, it still has, after going on and after two restarts."""

from __future__ import annotations

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


@pytest.mark.diagonal
@pytest.mark.parametrize("program", catalogue.parameters(catalogue.PING_PONG))
def test_no_wake_up_is_lost(program: catalogue.Program, bench: harness.Bench) -> None:
    """Ten checkpoints while two processes wake each other thousands of times a second, then two restarts."""
    job = bench.run(program.command(bench.go))
    job.ready()
    for _ in range(9):
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
