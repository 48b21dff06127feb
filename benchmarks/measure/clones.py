"""Copies of one saved job (`torpor restart --clone --count`), beside one of them alone."""

from __future__ import annotations

import time
from collections.abc import Sequence

from measure import look, table
from measure.apart import Apart, Result
from measure.cases import Case
from measure.ours import Figures, Torpor

MIB = 256
COUNT = 8


def run(to: Apart) -> list[Result]:
    """One checkpoint, restarted in every round."""
    ours = to.ours
    try:
        ours.start(ours.name, [to.program, *Case("", MIB).words()])
        ours("checkpoint", ours.name, "--compress", "none", "--json")
        ours.kill()
        return [to.repeat("clone", measure, ours, keep=True)]
    finally:
        ours.kill()
        ours.forget()


def measure(ours: Torpor) -> Figures:
    """One round: seconds until one copy, and until the last of all, runs. Raises RuntimeError, TimeoutError."""
    return {"one": _copies(ours, 1), "all": _copies(ours, COUNT)}


def report(results: Sequence[Result]) -> str:
    """The table."""
    get = results[0]["medians"].get
    row = [f"{MIB} MiB", table.seconds(get("one")), table.seconds(get("all")), table.ratio(get("all"), get("one"))]
    return table.columns(["restart --clone", "one", f"{COUNT} copies", "ratio"], [row])


def _copies(ours: Torpor, count: int) -> float:
    began = time.time_ns()
    try:
        copies = ours("restart", ours.name, "--clone", "--count", str(count), "--json")
        return (max(look.first_instruction(copy["log"], began) for copy in copies) - began) / 1e9
    finally:
        ours.kill()
