"""How far a save or a restart is: a line that is written over on a terminal, now and then a line in a log."""

from __future__ import annotations

import os
import sys
import time

from torpor.cli.text import complain, size

AFTER = 1.0
"""Seconds before anything is said: most saves are over by then."""
ON_TERMINAL = 0.1
IN_LOG = 10.0
BAR = 24


class Progress:
    """Called with (phase, bytes done, bytes in all); `clear` before anything else is printed."""

    def __init__(self) -> None:
        self._start = time.monotonic()
        self._next = self._start + AFTER
        self._shown = False
        try:
            self._terminal = sys.stderr is not None and sys.stderr.isatty()
        except ValueError:
            self._terminal = False

    def __call__(self, phase: str, done: int, total: int) -> None:
        now = time.monotonic()
        if now < self._next:
            return
        self._next = now + (ON_TERMINAL if self._terminal else IN_LOG)
        if not self._terminal:
            amount = f" {size(done)} of {size(total)}" if total else ""
            complain(f"{phase}{amount}, {now - self._start:.0f} s")
            return
        line = f"{phase} {self._bar(done, total)} {now - self._start:.0f} s"
        try:
            width = os.get_terminal_size(sys.stderr.fileno()).columns
        except OSError:
            width = 80
        sys.stderr.write(f"\r\x1b[K{line[: width - 1]}")
        sys.stderr.flush()
        self._shown = True

    def clear(self) -> None:
        """Take the line away."""
        if self._shown:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()
            self._shown = False

    @staticmethod
    def _bar(done: int, total: int) -> str:
        if not total:
            return "..."
        part = min(1.0, done / total)
        full = int(part * BAR)
        return f"[{'#' * full}{'.' * (BAR - full)}] {part * 100:3.0f} %  {size(done)} of {size(total)}"
