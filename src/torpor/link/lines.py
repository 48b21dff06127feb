"""Lines from a pipe or socket that is somebody else's from there on."""

from __future__ import annotations

import os
import select
import time

LONGEST = 16 << 20
"""Bytes of any line of ours: a program's arguments and environment, a name and an address for each host, are in it."""


def line(fd: int, limit: float, longest: int = LONGEST) -> bytes:
    """One line, and not one byte beyond it; `longest` bytes at most, whether or not they end it.

    Raises TimeoutError if it does not come within `limit` seconds, EOFError if the other side ends before it."""
    data = bytearray()
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    until = time.monotonic() + limit
    while not data.endswith(b"\n") and len(data) < longest:
        left = until - time.monotonic()
        if left <= 0 or not poll.poll(left * 1000):
            raise TimeoutError
        byte = os.read(fd, 1)
        if not byte:
            raise EOFError
        data += byte
    return bytes(data)
