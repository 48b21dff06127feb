"""Interrupted system calls: no EINTR, no lost wake-up, no shortened sleep because a program was checkpointed."""

from __future__ import annotations

import catalogue
import harness
import pytest


@pytest.mark.diagonal
@pytest.mark.parametrize("program", catalogue.parameters(catalogue.INTERRUPTED))
def test_call_goes_on_and_comes_back(program: catalogue.Program, via: str, bench: harness.Bench) -> None:
    bench.cycle(program.command(bench.go), via)


@pytest.mark.parametrize("program", catalogue.parameters(catalogue.GOING_ON))
def test_call_goes_on_after_a_refusal(program: catalogue.Program, via: str, bench: harness.Bench) -> None:
    """The service may be refused (that has to be said in one line) or saved: the call is undisturbed either way."""
    job = bench.run(program.command(bench.go), via)
    job.ready()
    which = job.which()
    for _ in range(3):
        said = bench.torpor("checkpoint", *which, "--store", bench.store)
        assert said.status in (0, 1), said
        if said.status:
            assert len(said.err.strip().splitlines()) == 1, said
    job.verified()
    bench.gone("after the job has ended")
