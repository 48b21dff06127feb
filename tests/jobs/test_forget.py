"""`--forget`: what is left out of an image by choice is not in it, the rest is, and that is said."""

from __future__ import annotations

import os

import harness
import pytest

SECRET, OTHER = "w3lcome-to-the-m4chine", "plain-and-simple"


def stored(bench: harness.Bench, text: str) -> bool:
    """Is that in the store, which was written without compression?"""
    for folder, _, names in os.walk(bench.store):
        for name in names:
            with open(os.path.join(folder, name), "rb") as f:
                if text.encode() in f.read():
                    return True
    return False


@pytest.mark.diagonal
@pytest.mark.parametrize("how", ["copy", pytest.param("stopped", marks=pytest.mark.exam)])
def test_it_is_not_there(bench: harness.Bench, how: str) -> None:
    bench.env.update(BENCH_SECRET=SECRET, BENCH_OTHER=OTHER)
    if how == "stopped":
        bench.env["TORPOR_WITHOUT"] = "snapshot"
    job = bench.run([harness.build("forgetful.c"), bench.go, "0"], flags=["--forget", "BENCH_S*"])
    del bench.env["BENCH_SECRET"]
    job.ready()
    for generation in range(2):
        said = bench.must("checkpoint", job.name, "--store", bench.store, "--compress", "none", "--forget", "dontdump")
        assert "1 areas that are not for core dumps" in said.err
        assert generation or "the values of BENCH_SECRET" in said.err
        assert not stored(bench, SECRET) and not stored(bench, "marked-77001")
        assert stored(bench, OTHER) and stored(bench, "plain-77002")
        assert "left out: process" in bench.must("inspect", job.name, "--store", bench.store).out
        bench.kill()
        job = bench.restart(job.name, detach=True)
        assert "left out when it was saved" in bench.history[-1]
    job.verified()
    assert f"ENV [] [{OTHER}] AREA [plain-77000] [] [plain-77002]" in job.output()


@pytest.mark.diagonal
def test_the_running_job_keeps_it_and_copies_are_named(bench: harness.Bench) -> None:
    """A program that has copied it elsewhere still has it after a restart: that is said."""
    bench.env.update(BENCH_SECRET=SECRET, BENCH_OTHER=OTHER)
    job = bench.run([harness.build("forgetful.c"), bench.go, "0"])
    job.ready()
    bench.must("checkpoint", job.name, "--store", bench.store, "--forget", "BENCH_SECRET", "--forget", "dontdump")
    job.verified()
    assert f"ENV [{SECRET}] [{OTHER}] AREA [plain-77000] [marked-77001] [plain-77002]" in job.output()
    bench.untell()
    job = bench.run([bench.account.python, harness.script("busy.py"), bench.go, "0"])
    job.ready()
    said = bench.must("checkpoint", job.name, "--store", bench.store, "--forget", "BENCH_SECRET")
    assert "the value of BENCH_SECRET is still in the image" in said.err
