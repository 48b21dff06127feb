"""What `make bench` makes of what it has measured."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))
sys.path.insert(0, os.path.join(ROOT, "benchmarks"))

from measure import rate, sizes, steady, table, wear  # noqa: E402
from measure.apart import Result  # noqa: E402
from measure.cases import CASES, compiled  # noqa: E402


def result(case: str, **medians: float) -> Result:
    return {"case": case, "medians": medians, "rounds": [], "trouble": []}


def test_an_aim_says_whether_it_is_reached() -> None:
    assert table.aim("1.3x", 1.3, 1.3) == "1.3x ok"
    assert table.aim("1.3x", 1.31, 1.3) == "1.3x no"
    assert table.aim("0.8x", 0.8, least=0.8) == "0.8x ok"
    assert table.aim("0.8x", 0.79, least=0.8) == "0.8x no"
    assert table.aim("0.8x", None, 0.8) == "0.8x"


def test_the_pause_of_many_processes_is_compared_with_forks_of_all_and_that_of_many_threads_with_none() -> None:
    cases = {case.name: case for case in CASES}
    lines = {}
    for name in ("50processes", "100threads"):
        one: sizes.Result = {
            "case": name,
            "torpor": {"pause": 0.030, "fork": 0.020},
            "limits": {},
            "peer": {},
            "rounds": {},
            "trouble": [],
        }
        lines[name] = sizes.report([one], cases, "").splitlines()[2].split()
    assert lines["50processes"][:6] == ["50processes", "30.0", "ms", "1.5x", "1.5x", "ok"]
    assert lines["100threads"][:7] == ["100threads", "30.0", "ms", "-", "15", "ms", "no"]
    assert cases["50processes"].bytes == 50 * 20 << 20


def test_two_processors_are_compared_with_one_of_the_same_store() -> None:
    stages = {"read": 0.3, "hash": 0.3, "write": 0.4, "dd": 1.0}
    lines = rate.report([
        result("disk, 1 CPU", save=1.2, **stages), result("disk, 2 CPU", save=0.6, **stages),
        result("memory, 1 CPU", save=1.3, **stages), result("memory, 2 CPU", save=1.0, **stages),
    ]).splitlines()  # fmt: skip
    assert "1.2x  1.25x ok" in lines[1] and lines[1].endswith("1.2x  1.11x no")
    assert "2x  1.7x ok" in lines[2] and lines[2].endswith("0.6x  1.11x ok")
    assert "1.3x  1.25x no" in lines[3]
    assert "1.3x  1.7x no" in lines[4]


def test_a_watched_call_may_take_longer_and_another_may_not() -> None:
    names = {"--watch=none": 101e-9, "": 102e-9, "--watch": 114e-9}
    figures = {f"torpor run {flag}".strip(): call for flag, call in names.items()}
    lines = steady.report([result("steady", **{steady.NATIVE: 100e-9, steady.FLOOR: 130e-9}, **figures)]).splitlines()
    assert lines[2].endswith("1.01x ok") and lines[3].endswith("1.01x no") and lines[4].endswith("15 ns ok")


def test_lost_is_what_rounds_take_more_until_they_are_as_before() -> None:
    used = [900, 100, 100, 100, 150, 180, 130, 100, 170]
    found = [wear.Round(at * 1000, at * 1000 + 999, one * 10**6) for at, one in enumerate(used)]
    assert wear.usual(found, 4000) == 100 * 10**6
    assert wear.lost(found, 4000, 5500) == pytest.approx(0.160)


def told(program: list[str], *words: str) -> tuple[int, str]:
    """What its forks cost, and the line after that."""
    with subprocess.Popen([*program, *words], stdout=subprocess.PIPE, text=True, start_new_session=True) as job:
        assert job.stdout is not None
        name, costs = job.stdout.readline().split()
        line = job.stdout.readline()
        os.killpg(job.pid, signal.SIGKILL)
    assert name == "fork"
    return int(costs), line


def test_a_hold_tells_what_forks_of_all_of_its_processes_cost(tmp_path: Path) -> None:
    built = compiled("hold", str(tmp_path))
    for program in ([built] if built else [], [sys.executable, f"{ROOT}/benchmarks/programs/hold.py"]):
        if program:
            one, ready = told(program, "1", "1", "1")
            many, too = told(program, "1", "2", "30", "huge")
            assert ready == too == "ready\n"
            assert many > 4 * one
