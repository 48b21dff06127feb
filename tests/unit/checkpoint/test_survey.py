"""What stands in the way of a job that is running while it is looked at."""

from __future__ import annotations

import os
from pathlib import Path

from torpor.checkpoint.survey import Survey


def hidden(folder: Path) -> int:
    """A file that is refused: it has another name, which cannot be found."""
    (folder / "elsewhere").mkdir()
    fd = os.open(folder / "file", os.O_RDWR | os.O_CREAT)
    os.link(folder / "file", folder / "elsewhere" / "file")
    os.unlink(folder / "file")
    return fd


def refusals(survey: Survey) -> list[str]:
    return [str(one) for one in survey.refusals() if "another name" in str(one)]


def test_what_is_closed_or_replaced_meanwhile_is_no_obstacle(tmp_path: Path) -> None:
    fd = hidden(tmp_path)
    survey = Survey([os.getpid()], [])
    assert len(refusals(survey)) == 1
    other = os.open(tmp_path / "new", os.O_RDWR | os.O_CREAT)
    os.dup2(other, fd)
    assert refusals(survey) == []
    os.close(other)
    os.close(fd)
    assert refusals(survey) == []
