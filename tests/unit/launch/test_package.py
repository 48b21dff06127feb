"""What a user finds in the package `torpor`, whatever of it was imported before."""

from __future__ import annotations

import subprocess
import sys

import pytest

import torpor

FUNCTIONS = "attach", "check", "checkpoint", "drill", "jobs", "list_checkpoints", "open_checkpoint", "restart", "run"
LATER = "torpor.checkpoint; import torpor.checkpoint.save"
PROGRAM = """
import torpor
{before}
from torpor import checkpoint
assert checkpoint is torpor.checkpoint
print(*[type(getattr(torpor, name)).__name__ for name in torpor.__all__])
"""


@pytest.mark.parametrize("before", ["", "import torpor.checkpoint.save", LATER])
def test_functions_are_functions(before: str) -> None:
    """One of them has the name of a package of ours."""
    program = PROGRAM.format(before=before)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    found = dict(zip(torpor.__all__, done.stdout.split()))
    assert {name for name, kind in found.items() if kind == "function"} == set(FUNCTIONS)
    assert "module" not in found.values()
