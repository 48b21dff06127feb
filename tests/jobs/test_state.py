"""Every service: what a program had, it still has, after going on and after two restarts."""

from __future__ import annotations

import catalogue
import harness
import pytest


@pytest.mark.parametrize("program", catalogue.parameters(catalogue.STATE))
def test_two_generations(program: catalogue.Program, via: str, bench: harness.Bench) -> None:
    bench.cycle(program.command(bench.go), via, rewind=program.rewind)


@pytest.mark.parametrize("program", catalogue.parameters([p for p in catalogue.STATE if not p.rewind]))
def test_going_on(program: catalogue.Program, via: str, bench: harness.Bench) -> None:
    bench.goes_on(program.command(bench.go), via)
