"""The beginning of a command line that has our own Python run a piece of our own code."""

from __future__ import annotations

import os
import sys


def command(code: str) -> list[str]:
    """Have `code` executed, which may use `sys` and import this package; words that are added are `sys.argv[1:]`.

    The package is found by the same path as we were, without touching the environment: a job inherits it. Nothing in
    the current folder is taken for one of its modules (-P).
    """
    home = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    return [sys.executable, "-P", "-c", f"import sys; sys.path.insert(0, {home!r}); {code}"]


COMMAND_LINE = "from torpor.cli.main import main; sys.exit(main())"
"""What `torpor` does with its words."""
