"""Time lost by a program that rewrites all of its memory (programs/wear.c) while it is saved: the pause, and the
processor time that its rounds took more than before, until they take what they took. Beside it, what a plain fork costs
the same program, with a child that holds the memory for as long.

Processor time, since on a machine with few processors the save itself takes some away from the program."""

from __future__ import annotations

import os
import signal
import statistics
import subprocess
import time
from collections.abc import Callable
from typing import NamedTuple

from measure import look
from measure.ours import Figures, Torpor

PATIENCE = 60.0
SETTLED = 1.1
"""A round that takes no more than so many times what one took before is as before."""


class Round(NamedTuple):
    """before, after: nanoseconds since 1970. used: processor time, nanoseconds."""

    before: int
    after: int
    used: int


def rounds(path: str) -> list[Round]:
    """What the program has told of its rounds."""
    return [Round(*map(int, words[1:])) for words in look.lines(path) if words[0] == "pass"]


def lost(found: list[Round], began: int, ended: int) -> float:
    """Seconds. began, ended: when the save (or the fork) began and was over, nanoseconds since 1970."""
    usual = statistics.median(one.used for one in found if one.after < began)
    later = [one for one in found if one.after >= began]
    over = next((at for at, one in enumerate(later) if one.before > ended and one.used < SETTLED * usual), len(later))
    return sum(one.used - usual for one in later[:over]) / 1e9


def measure(ours: Torpor, program: str, mib: int, huge: bool) -> Figures:
    """One round: by a checkpoint, and by a plain fork that holds the memory for as long. Raises RuntimeError,
    TimeoutError."""
    words = [program, str(mib), *(["huge"] if huge else [])]
    path = f"{ours.folder}/passes"
    with open(path, "w", encoding="ascii") as out:
        job = subprocess.Popen(words, stdout=out, stdin=subprocess.DEVNULL, start_new_session=True)
    try:
        _await(path, lambda found: len(found) >= 5)
        began = time.time_ns()
        saved = ours("checkpoint", "--pid", str(job.pid), "--name", ours.name, "--compress", "none", "--json")
        ended = time.time_ns()
        figures = {"save": (ended - began) / 1e9, "pause": saved["pause_seconds"]}
        figures["lost"] = figures["pause"] + lost(_after(path, ended), began, ended)
        began = time.time_ns()
        os.kill(job.pid, signal.SIGUSR1)
        time.sleep(figures["save"])
        os.kill(job.pid, signal.SIGUSR2)
        ended = time.time_ns()
        figures["lost_fork"] = lost(_after(path, ended), began, ended)
        return figures
    finally:
        os.killpg(job.pid, signal.SIGKILL)
        job.wait()


def _after(path: str, ended: int) -> list[Round]:
    """The rounds until some time after the end."""
    return _await(path, lambda found: len([one for one in found if one.before > ended]) >= 5)


def _await(path: str, enough: Callable[[list[Round]], bool]) -> list[Round]:
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        found = rounds(path)
        if enough(found):
            return found
        time.sleep(0.02)
    raise TimeoutError("the program does not go on")
