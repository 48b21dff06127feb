"""What a checkpoint costs when the store has the one before, and the program (programs/share.c) has written a hundredth
of its memory: in a row, or scattered; with writes tracked (`--track`), and without."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Sequence

from measure import look, table
from measure.apart import Apart, Result
from measure.cases import Case, no_room
from measure.ours import Figures, Torpor
from torpor.model.data import CHUNK_SIZE

PAGE = 4096
MIB = 4096
"""Of the program."""
TIMES, BESIDE = 3.0, 0.150
"""Aim: the most that a second checkpoint may take: so many times its share of a first one, and so many seconds."""


def run(to: Apart) -> list[Result]:
    """With writes tracked, and without."""
    lacking = no_room(Case("", MIB), to.folder)
    if lacking:
        raise RuntimeError(lacking)
    ways = (("tracked", True), ("hashed", False))
    return [to.repeat(name, measure, to.ours, to.program, MIB, track) for name, track in ways]


def measure(ours: Torpor, program: str, mib: int, track: bool) -> Figures:
    """One round: seconds of a first checkpoint and of the two, bytes that these brought, what that is to what was
    written (in a row) and to the chunks that were touched (scattered), and the seconds that are aimed at. Raises
    RuntimeError, TimeoutError."""
    started = ours.start(ours.name, [program, str(mib)], *(["--track"] if track else []))
    try:
        figures: Figures = {"first": _save(ours)["seconds"]}
        if track:
            _save(ours)  # the first one after which it is known what was written
        pages = (mib << 8) // 100
        chunks = min(pages, mib << 2)  # a chunk has less than a hundred pages
        for name, number, bytes_touched in (
            ("row", signal.SIGUSR1, pages * PAGE),
            ("scattered", signal.SIGUSR2, chunks * CHUNK_SIZE),
        ):
            wrote = look.lines(started["log"]).count(["wrote"])
            os.kill(started["pid"], number)
            _await(started["log"], ["wrote"], wrote + 1)
            saved = _save(ours)
            figures[name] = saved["seconds"]
            figures[f"{name}_bytes"] = saved["bytes_new"]
            figures[f"{name}_ratio"] = saved["bytes_new"] / bytes_touched
            figures[f"{name}_aim"] = TIMES * figures["first"] * bytes_touched / (mib << 20) + BESIDE
        return figures
    finally:
        ours.kill()


def report(results: Sequence[Result]) -> str:
    """The table."""
    rows = []
    for one in results:
        get = one["medians"].get
        row = [one["case"], table.seconds(get("first"))]
        for name in ("row", "scattered"):
            goal = get(f"{name}_aim")
            row += [
                table.seconds(get(name)), table.aim(table.seconds(goal), get(name), goal or 0.0),
                table.size(get(f"{name}_bytes")), table.times(get(f"{name}_ratio")),
            ]  # fmt: skip
        rows.append(row)
    head = [f"1 % of {MIB} MiB", "first", "in a row", "aim", "new", "/written", "scattered", "aim", "new", "/touched"]
    return table.columns(head, rows)


def _save(ours: Torpor) -> Figures:
    saved: Figures = ours("checkpoint", ours.name, "--compress", "none", "--json")
    return saved


def _await(path: str, line: Sequence[str], times: int) -> None:
    deadline = time.monotonic() + look.PATIENCE
    while look.lines(path).count(list(line)) < times:
        if time.monotonic() > deadline:
            raise TimeoutError(f"the program does not say {line[0]}")
        time.sleep(0.02)
