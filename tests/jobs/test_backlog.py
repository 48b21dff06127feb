"""A server under load can be saved at any moment, although connections with data in them always wait to be accepted."""

from __future__ import annotations

import catalogue
import harness
import pytest


def save_and_restart(program: catalogue.Program, bench: harness.Bench) -> None:
    job = bench.run(program.command(bench.go), "run")
    job.ready()
    for _ in range(10):
        saved = bench.checkpoint(job)
    bench.kill()
    again = bench.restart(f"{job.name}@{saved['number']}", detach=True)
    saved = bench.checkpoint(again)
    bench.kill()
    bench.restart(f"{job.name}@{saved['number']}").verified()
    bench.gone("after the restarted job has ended")


@pytest.mark.parametrize("program", catalogue.parameters(catalogue.SERVED[:1]))
def test_every_checkpoint_of_a_busy_server_succeeds(program: catalogue.Program, user_bench: harness.Bench) -> None:
    save_and_restart(program, user_bench)


@pytest.mark.parametrize("program", catalogue.parameters(catalogue.SERVED[1:]))
def test_the_same_as_root(program: catalogue.Program, root_bench: harness.Bench) -> None:
    save_and_restart(program, root_bench)
