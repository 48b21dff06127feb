"""Time lost by a program that rewrites all of its memory while it is saved: the pause, and the processor time that its
rounds took more than before, until they take what they took. Beside it, what a plain fork costs the same program, with
a child that holds the memory for as long.

Processor time, since on a machine with few processors the save itself takes some away from the program."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Sequence

from measure import table, wear
from measure.apart import Apart, Result
from measure.ours import Figures, Torpor

MIB = 512
"""That the program rewrites."""
HALF = 0.5
"""Aim: the most that may be lost, to what a plain fork costs."""


def run(to: Apart) -> list[Result]:
    """With small pages and with huge ones."""
    return [
        to.repeat(name, measure, to.ours, to.program, huge)
        for name, huge in (("4K pages", False), ("huge pages", True))
    ]


def measure(ours: Torpor, program: str, huge: bool) -> Figures:
    """One round: by a checkpoint, and by a plain fork that holds the memory for as long. Raises RuntimeError,
    TimeoutError."""
    words = [program, str(MIB), *(["huge"] if huge else [])]
    path = f"{ours.folder}/passes"
    with open(path, "w", encoding="ascii") as out:
        job = subprocess.Popen(words, stdout=out, stdin=subprocess.DEVNULL, start_new_session=True)
    try:
        wear.begun(path)
        began = time.time_ns()
        saved = ours("checkpoint", "--pid", str(job.pid), "--name", ours.name, "--compress", "none", "--json")
        ended = time.time_ns()
        figures = {"save": (ended - began) / 1e9, "pause": saved["pause_seconds"]}
        figures["lost"] = figures["pause"] + wear.lost(wear.after(path, ended), began, ended)
        began = time.time_ns()
        os.kill(job.pid, signal.SIGUSR1)
        time.sleep(figures["save"])
        os.kill(job.pid, signal.SIGUSR2)
        ended = time.time_ns()
        figures["lost_fork"] = wear.lost(wear.after(path, ended), began, ended)
        return figures
    finally:
        os.killpg(job.pid, signal.SIGKILL)
        job.wait()


def report(results: Sequence[Result]) -> str:
    """The table."""
    rows = []
    for one in results:
        get = one["medians"].get
        share = table.quotient(get("lost"), get("lost_fork"))
        rows.append([
            one["case"], *(table.seconds(get(name)) for name in ("pause", "save", "lost", "lost_fork")),
            table.times(share), table.aim(f"{HALF}x", share, HALF),
        ])  # fmt: skip
    head = [f"rewrites {MIB} MiB", "pause", "save", "time lost", "by a plain fork", "ratio", "aim"]
    return table.columns(head, rows)
