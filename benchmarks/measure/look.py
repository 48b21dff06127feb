"""What a measured program tells of itself (programs/hold.c), read from the file it writes to."""

from __future__ import annotations

import os
import subprocess
import time
from typing import NamedTuple

PATIENCE = 180.0


class Gap(NamedTuple):
    """A time in which the program did not run: nanoseconds since 1970."""

    before: int
    after: int

    @property
    def seconds(self) -> float:
        return (self.after - self.before) / 1e9


def lines(path: str) -> list[list[str]]:
    """The whole lines of a file, in words; none if it is not there yet."""
    try:
        with open(path, encoding="ascii", errors="replace") as file:
            text = file.read()
    except FileNotFoundError:
        return []
    return [line.split() for line in text[: text.rfind("\n") + 1].splitlines()]


def ready(path: str) -> None:
    """Wait until the program is ready. Raises TimeoutError."""
    deadline = time.monotonic() + PATIENCE
    while ["ready"] not in lines(path):
        if time.monotonic() > deadline:
            raise TimeoutError("the program did not become ready")
        time.sleep(0.02)


def fork_seconds(path: str) -> float:
    """Wait until the program is ready: what bare forks of all of its processes cost. Raises TimeoutError."""
    ready(path)
    return next(int(words[1]) for words in lines(path) if words[0] == "fork") / 1e9


def gaps(path: str) -> list[Gap]:
    """All gaps so far."""
    return [Gap(int(words[1]), int(words[2])) for words in lines(path) if len(words) == 3 and words[0] == "gap"]


def pause(path: str, began: int, ended: int) -> float:
    """The longest gap in a time (ns since 1970), in seconds; 0 if the program noticed none."""
    time.sleep(0.05)
    return max((gap.seconds for gap in gaps(path) if gap.after >= began and gap.before <= ended), default=0.0)


def first_instruction(path: str, began: int, command: subprocess.Popen[bytes] | None = None) -> int:
    """Wait for a program that was restarted after `began`: when it ran again, ns since 1970. command: that restarts it,
    and stays as long as it runs. Raises TimeoutError, at once if the command has ended."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline and (command is None or command.poll() is None):
        for gap in gaps(path):
            if gap.before <= began < gap.after:
                return gap.after
        time.sleep(0.01)
    raise TimeoutError("the program did not run again")


def empty_file(path: str) -> int:
    """A descriptor of a new file, to be written at its end."""
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC, 0o600)
