"""What a checkpoint costs when the store has the one before, and the program (programs/share.c) has written a hundredth
of its memory: in a row, or scattered; with writes tracked (`--track`), and without."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Sequence

from measure import look
from measure.ours import Figures, Torpor
from torpor.model.data import CHUNK_SIZE

PAGE = 4096
SHARE = 4096
"""MiB of the program."""


def measure(ours: Torpor, program: str, mib: int, track: bool) -> Figures:
    """One round: seconds of a first checkpoint and of the two, bytes that these brought, and what that is to what was
    written (in a row) and to the chunks that were touched (scattered). Raises RuntimeError, TimeoutError."""
    flags = ["--track"] if track else []
    started = ours("run", "--detach", "--json", "--name", ours.name, *flags, "--", program, str(mib))
    try:
        _await(started["log"], ["ready"], 1)
        figures: Figures = {"first": _save(ours)["seconds"]}
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
        return figures
    finally:
        ours.kill()


def _save(ours: Torpor) -> Figures:
    saved: Figures = ours("checkpoint", ours.name, "--compress", "none", "--json")
    return saved


def _await(path: str, line: Sequence[str], times: int) -> None:
    deadline = time.monotonic() + look.PATIENCE
    while look.lines(path).count(list(line)) < times:
        if time.monotonic() > deadline:
            raise TimeoutError(f"the program does not say {line[0]}")
        time.sleep(0.02)
