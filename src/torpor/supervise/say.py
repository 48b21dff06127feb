"""What a supervisor has to say to whoever started it."""

from __future__ import annotations

import os


def say(line: str) -> None:
    """One line on standard error, if there is one."""
    try:
        os.write(2, line.encode("utf-8", "surrogateescape") + b"\n")
    except OSError:
        pass
