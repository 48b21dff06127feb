"""`torpor rsh` in the middle of its work is saved and restarted like anything else of a job."""

from __future__ import annotations

import pytest
from harness import Bench, script


@pytest.mark.diagonal
def test_a_command_on_another_host_is_part_of_the_job(bench: Bench, via: str) -> None:
    """Streams in both directions, full of data; both ends and both doors are in the job."""
    bench.cycle([bench.account.python, script("through_door.py"), bench.go], via)
