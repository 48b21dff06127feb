"""What is left out of msgspec at a restart is there when it is asked for."""

from __future__ import annotations

import subprocess
import sys

import pytest


def _in_new_python(program: str) -> list[str]:
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_a_restart_does_without() -> None:
    program = "import sys; from torpor.cli import lean; lean.bring_msgspec(); print(*sys.modules)"
    found = _in_new_python(program)
    assert "msgspec" in found
    for name in ("platform", "typing_extensions", "textwrap", "msgspec.inspect", "msgspec._json_schema"):
        assert name not in found


@pytest.mark.parametrize(
    "use",
    [
        "assert type(msgspec.inspect.type_info(int)).__name__ == 'IntType'",
        "assert msgspec.json.schema(int) == {'type': 'integer'}",
        "assert msgspec.json.schema_components([int])[0] == ({'type': 'integer'},)",
        "import platform; assert platform.machine() and platform.system() == 'Linux'",
        "import msgspec.inspect as it; assert it.IntType and msgspec.inspect is it",
        "import uuid; u = uuid.uuid4(); assert msgspec.json.decode(msgspec.json.encode(u), type=uuid.UUID) == u",
    ],
)
def test_what_is_left_out_comes_when_it_is_used(use: str) -> None:
    _in_new_python(f"from torpor.cli import lean; lean.bring_msgspec(); import msgspec; {use}")


def test_a_msgspec_that_wants_more_is_imported_as_it_is() -> None:
    program = """
from torpor.cli import lean
lean.setattr = lambda *_: None  # an import from the stand-in fails, as if it had other names
lean.bring_msgspec()
import msgspec
print(msgspec.json.schema(int)["type"], msgspec.inspect.__name__)
"""
    assert _in_new_python(program) == ["integer", "msgspec.inspect"]
