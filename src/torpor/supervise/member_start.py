"""Starts the member process of a part (member.py)."""

from __future__ import annotations

import os
import signal
import socket

from torpor.image.keys import FILE
from torpor.model import ourselves

_FD = 3


def command() -> tuple[str, ...]:
    """A command line that has our own Python run it."""
    return tuple(ourselves.command(f"from torpor.supervise.member import main; main({_FD})"))


def start(argv: tuple[str, ...]) -> tuple[int, socket.socket]:
    """Start it in a session of its own, with nothing to read or write but a socket; its pid and our end. Raises
    OSError."""
    ours, theirs = socket.socketpair()
    null = [(os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDWR, 0), *((os.POSIX_SPAWN_DUP2, 0, n) for n in (1, 2))]
    try:
        pid = os.posix_spawn(
            argv[0], argv, os.environ, file_actions=[*null, (os.POSIX_SPAWN_DUP2, theirs.fileno(), _FD)],
            setsid=True, setsigmask=[], setsigdef=[signal.SIGPIPE, signal.SIGINT, signal.SIGTERM],
        )  # fmt: skip
    except BaseException:
        ours.close()
        raise
    finally:
        theirs.close()
    return pid, ours


def keep_key(text: str, folder: str) -> None:
    """Have us and the member process sign with this key, but not the job: it got its environment before, or gets it
    without. Raises OSError."""
    path = f"{folder}/key"
    if os.environ.get(FILE) == path and os.path.exists(path):
        return
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    with os.fdopen(fd, "w") as file:
        file.write(text)
    os.environ[FILE] = path
