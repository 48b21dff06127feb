"""What `--track` costs a program that rewrites all of its memory (programs/wear.c), in processor time: of a round
between checkpoints, and what rounds take more after a checkpoint, until they are as before.

The latter twice. The program goes on while it is saved: it has a page fault for every page, since a copy of it shares
its memory, and in that the kernel notes that the page is written. Or it is stopped (SIGSTOP) until it is saved, so that
nobody shares its memory any more when it goes on.
"""

from __future__ import annotations

import os
import signal
import statistics
import time
from collections.abc import Sequence

from measure import table, wear
from measure.apart import Apart, Result
from measure.ours import Figures, Torpor

MIB = 1024
"""That the program rewrites."""
WAYS = {"without": "--no-track", "with": "--track"}


def run(to: Apart) -> list[Result]:
    """One result, with figures for both ways."""
    return [to.repeat("track", measure, to.ours, to.program)]


def measure(ours: Torpor, program: str) -> Figures:
    """One round: seconds of processor time, both ways in turns. Raises RuntimeError, TimeoutError."""
    figures: Figures = {}
    for name, flag in WAYS.items():
        try:
            started = ours.start(ours.name, [program, str(MIB)], flag)
            wear.begun(started["log"])
            _saved(ours, started["log"])  # what is noted since a moment ago only is not believed yet
            figures[f"{name}_going"], _ = _saved(ours, started["log"])
            os.kill(started["pid"], signal.SIGSTOP)
            figures[f"{name}_stopped"], later = _saved(ours, started["log"], started["pid"])
            figures[f"{name}_round"] = statistics.median([one.used for one in later][-3:]) / 1e9
        finally:
            ours.kill()
            ours.forget()
    return figures


def _saved(ours: Torpor, log: str, stopped: int = 0) -> tuple[float, list[wear.Round]]:
    """Save the job, let go on what was stopped: seconds that its rounds took more, and those after it."""
    began = time.time_ns()
    ours("checkpoint", ours.name, "--compress", "none", "--json")
    ended = time.time_ns()
    if stopped:
        os.kill(stopped, signal.SIGCONT)
    found = wear.after(log, ended)
    return wear.lost(found, began, ended), [one for one in found if one.before > ended]


def report(results: Sequence[Result]) -> str:
    """The table."""
    get = results[0]["medians"].get
    rows = []
    for name in WAYS:
        row = [f"{name} --track"]
        for what in ("round", "going", "stopped"):
            figure, without = get(f"{name}_{what}"), get(f"without_{what}")
            row += [table.seconds(figure), table.ratio(figure, without)]
        rows.append(row)
    head = [f"rewrites {MIB} MiB", "a round", "ratio", "lost, saved meanwhile", "ratio", "stopped meanwhile", "ratio"]
    return table.columns(head, rows)
