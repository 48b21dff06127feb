"""What the drivers of real servers share: they are the first process of a job, start server and client as children,
say READY once both are in the middle of it, and judge by the results.

Not a program by itself. A driver ends when a file (GO) appears; everything it has started is in its job.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any, NoReturn

PATIENCE = 100.0
_started: list[subprocess.Popen[bytes]] = []


def say(line: str) -> None:
    """A whole line in one write."""
    os.write(1, line.encode() + b"\n")


def fail(why: str) -> NoReturn:
    """From any thread: the verdict, and the end of everything."""
    say(f"FAIL: {why}")
    for child in _started:
        with contextlib.suppress(OSError):
            child.kill()
    os._exit(1)


def told(go: str) -> bool:
    return os.path.exists(go)


def until(condition: Callable[[], Any], what: str, patience: float = PATIENCE) -> Any:
    """Poll until true; the value."""
    end = time.monotonic() + patience
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > end:
            fail(f"not within {patience:g} s: {what}")
        time.sleep(0.005)


def free_port() -> int:
    """A port of 127.0.0.1 that nobody has now."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def start(*command: str, **options: Any) -> subprocess.Popen[bytes]:
    """A child of ours."""
    options.setdefault("stdin", subprocess.DEVNULL)
    child = subprocess.Popen(command, **options)
    _started.append(child)
    return child


def end(child: subprocess.Popen[bytes], number: int = signal.SIGTERM) -> int:
    """Tell a child to end; its status."""
    child.send_signal(number)
    try:
        return child.wait(PATIENCE)
    except subprocess.TimeoutExpired:
        fail(f"{child.args!r} does not end")


def connected(address: Any) -> socket.socket:
    """A connection to a server that may be just starting."""

    def attempt() -> socket.socket | None:
        one = socket.socket(socket.AF_UNIX if isinstance(address, str) else socket.AF_INET)
        try:
            one.connect(address)
        except OSError:
            one.close()
            return None
        return one

    found: socket.socket = until(attempt, f"a server at {address!r}")
    return found


def well(child: subprocess.Popen[bytes]) -> None:
    """It must still run: a server that has ended would be noticed late otherwise."""
    if child.poll() is not None:
        fail(f"{child.args!r} has ended with {child.returncode}")


def ok() -> NoReturn:
    say("OK")
    sys.exit(0)
