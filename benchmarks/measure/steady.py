"""What it costs a program that does nothing but system calls (programs/calls.c) to be a job, between checkpoints. It is
watched where that is asked for only.

Beside it the floor of this kernel: the same program under a filter that allows everything. No filter costs less."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence

from measure import table
from measure.apart import Apart, Result
from measure.ours import Figures, Torpor

THOUSANDS = "3000"
"""Calls of a round."""
NATIVE = "by itself"
FLOOR = "under a filter that allows all"
WAYS = {"torpor run --watch=none": ["--watch=none"], "torpor run": [], "torpor run --watch": ["--watch"]}
UNWATCHED = 1.01
"""Aim: the most that a call may take, to what it takes by itself, where nothing is watched."""
WATCHED = 15e-9
"""Aim: the most that it may take longer where something is, seconds."""


def run(to: Apart) -> list[Result]:
    """One result, with a figure for each way."""
    return [to.repeat("steady", measure, to.ours, to.program)]


def measure(ours: Torpor, program: str) -> Figures:
    """One round: seconds for a call, in turns. Raises RuntimeError."""
    words = [program, "getppid", THOUSANDS]
    figures = {NATIVE: _call(words, ours)}
    for name, flags in WAYS.items():
        figures[name] = _call([*ours.words, "run", "--name", ours.name, *flags, "--", *words], ours)
    figures[FLOOR] = _call([*words, "allow"], ours)
    return figures


def report(results: Sequence[Result]) -> str:
    """The table."""
    get = results[0]["medians"].get
    native = get(NATIVE)
    rows = []
    for name in (NATIVE, *WAYS, FLOOR):
        call = get(name)
        more = None if call is None or native is None else call - native
        goal = ""
        if name in WAYS:
            goal = table.aim(f"{UNWATCHED}x", table.quotient(call, native), UNWATCHED)
            if "--watch" in WAYS[name]:
                goal = table.aim(f"{WATCHED * 1e9:.0f} ns", more, WATCHED)
        rows.append([name, table.nanoseconds(call), table.nanoseconds(more), table.ratio(call, native), goal])
    return table.columns(["getppid", "a call", "more", "ratio", "aim"], rows)


def _call(words: list[str], ours: Torpor) -> float:
    done = subprocess.run(words, env=ours.env, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{words[0]}: {done.stderr.strip()[-400:]}")
    return float(done.stdout.split()[0]) / 1e6
