"""Whole jobs whose checkpoints are on several disks, in a tier, and on an object store."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator

import catalogue
import harness
import pytest

sys.path.insert(0, os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "unit", "store"))

import objectserver

PROGRAM = next(program for program in catalogue.STATE if program.label == "threads")


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[objectserver.Server]:
    with objectserver.of_session(tmp_path_factory) as server:
        yield server


def cycle(bench: harness.Bench, via: str) -> None:
    bench.env["TORPOR_STORE"] = bench.store
    bench.cycle(PROGRAM.command(bench.go), via, rewind=PROGRAM.rewind)
    assert "would start" in bench.must("drill").out


@pytest.mark.diagonal
def test_stripe(bench: harness.Bench, via: str) -> None:
    folder = bench.store
    bench.store = f"stripe:{folder}1,{folder}2"
    cycle(bench, via)
    assert os.path.exists(f"{folder}2/member")
    bench.must("verify", "--store", bench.store, "--deep")


@pytest.mark.diagonal
def test_tier(bench: harness.Bench, via: str) -> None:
    folder = bench.store
    bench.store = f"tier:{folder}fast,{folder}slow"
    cycle(bench, via)
    bench.must("list", "--store", bench.store)
    harness.until(
        lambda: all(each["drained"] for each in bench.must("list", "--store", bench.store, "--json").json()),
        "everything is drained",
    )
    slow = bench.must("list", "--store", f"{folder}slow", "--json").json()
    assert len(slow) == 2
    bench.must("verify", "--store", f"{folder}slow", "--deep")


@pytest.mark.diagonal
def test_object_store(bench: harness.Bench, via: str, s3: objectserver.Server) -> None:
    bench.env.update(s3.environment)
    bench.store = f"s3://torpor/{bench.tag}"
    cycle(bench, via)
    bench.must("verify", "--store", bench.store, "--deep")
