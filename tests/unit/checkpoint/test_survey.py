"""What stands in the way of a job that is running while it is looked at."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from torpor.checkpoint.survey import Survey


def hidden(folder: Path) -> int:
    """A file that is refused: it has another name, which cannot be found."""
    (folder / "elsewhere").mkdir()
    fd = os.open(folder / "file", os.O_RDWR | os.O_CREAT)
    os.link(folder / "file", folder / "elsewhere" / "file")
    os.unlink(folder / "file")
    return fd


def refusals(survey: Survey, folder: Path) -> list[str]:
    return [str(one) for one in survey.refusals() if "another name" in str(one) and str(folder) in str(one)]


def test_what_is_closed_or_replaced_meanwhile_is_no_obstacle(tmp_path: Path) -> None:
    fd = hidden(tmp_path)
    survey = Survey([os.getpid()], [])
    assert len(refusals(survey, tmp_path)) == 1
    other = os.open(tmp_path / "new", os.O_RDWR | os.O_CREAT)
    os.dup2(other, fd)
    assert refusals(survey, tmp_path) == []
    os.close(other)
    os.close(fd)
    assert refusals(survey, tmp_path) == []


CHURN = """
import select, socket, sys
instance = select.epoll()
print("ready", flush=True)
while True:
    pairs = [socket.socketpair() for _ in range(8)]
    for pair in pairs:
        for one in pair:
            instance.register(one, select.EPOLLIN)
    for pair in pairs:
        for one in pair:
            one.close()
"""


def test_watches_that_come_and_go_are_no_obstacle() -> None:
    with subprocess.Popen([sys.executable, "-c", CHURN], stdout=subprocess.PIPE) as child:
        try:
            assert child.stdout is not None and child.stdout.readline() == b"ready\n"
            for _ in range(20):
                found = [str(one) for one in Survey([child.pid], []).refusals() if "epoll" in str(one)]
                assert not found
        finally:
            child.kill()
