"""Copies a growing log to standard output."""

from __future__ import annotations

import os
import sys
import time

PAUSE_SECONDS = 0.1


class Follower:
    """The log at `path`, from its beginning, or from its end."""

    def __init__(self, path: str, at_end: bool = False) -> None:
        self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        if at_end:
            os.lseek(self._fd, 0, os.SEEK_END)

    def __enter__(self) -> Follower:
        return self

    def __exit__(self, *exc: object) -> None:
        os.close(self._fd)

    def copy(self) -> None:
        """What has been written since the last time. Raises BrokenPipeError if nobody reads."""
        sys.stdout.flush()
        while data := os.read(self._fd, 1 << 16):
            while data:
                data = data[os.write(1, data) :]

    def pause(self) -> None:
        time.sleep(PAUSE_SECONDS)
