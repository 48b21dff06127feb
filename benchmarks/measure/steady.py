"""What it costs a program that does nothing but system calls (programs/calls.c) to be a job, between checkpoints."""

from __future__ import annotations

import subprocess

from measure.ours import Figures, Torpor

THOUSANDS = "3000"
"""Calls of a round."""


def measure(ours: Torpor, program: str) -> Figures:
    """One round: seconds for a call, by itself and under `torpor run`. Raises RuntimeError."""
    words = [program, "getppid", THOUSANDS]
    return {"native": _call(words, ours), "run": _call([*ours.words, "run", "--name", ours.name, "--", *words], ours)}


def _call(words: list[str], ours: Torpor) -> float:
    done = subprocess.run(words, env=ours.env, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{words[0]}: {done.stderr.strip()[-400:]}")
    return float(done.stdout.split()[0]) / 1e6
