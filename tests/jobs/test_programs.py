"""The test programs themselves: undisturbed each says OK, and each of its checks can fail.

A check that cannot fail would make every other test of it worthless.
"""

from __future__ import annotations

import shutil
import subprocess

import catalogue
import harness
import pytest

ALL = [
    *catalogue.STATE,
    *catalogue.TERMINALS,
    *catalogue.INTERRUPTED,
    *catalogue.GOING_ON,
    *catalogue.PING_PONG,
    *catalogue.SERVED,
    *catalogue.BACKLOG,
]
pytestmark = pytest.mark.skipif(not shutil.which("gcc"), reason="needs gcc")


def _run(command: list[str], bench: harness.Bench) -> tuple[int, str]:
    bench.tell()
    bench.env["TORPOR_TEST_SPAN"] = "0.3"
    out = bench.output_file()
    with open(out, "wb") as f:
        process = bench.popen(command, stdout=f, stderr=subprocess.STDOUT, start_new_session=True)
        try:
            status = process.wait(60)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"does not end: {harness.text(out)}") from None
    return status, harness.text(out)


@pytest.mark.parametrize("program", catalogue.parameters(ALL))
def test_undisturbed_it_is_ok(program: catalogue.Program, user_bench: harness.Bench) -> None:
    status, said = _run(program.command(user_bench.go), user_bench)
    if status == 77:
        pytest.skip(said.strip().splitlines()[-1])
    assert (status, said.splitlines()[-1]) == (0, "OK"), said
    user_bench.gone("after the program has ended")


@pytest.mark.parametrize(
    ("program", "wrong"),
    [
        pytest.param(p, n, id=f"{p.label}-{n}", marks=[pytest.mark.skip(p.skip)] if p.skip else [])
        for p in ALL
        for n in range(1, p.wrong + 1)
    ],
)
def test_it_notices_what_is_wrong(program: catalogue.Program, wrong: int, user_bench: harness.Bench) -> None:
    status, said = _run(program.command(user_bench.go, wrong), user_bench)
    if status == 77:
        pytest.skip(said.strip().splitlines()[-1])
    assert status == 1, said
    assert "FAIL: " in said
    assert "OK" not in said.splitlines()
