"""What outlives a job that ran detached: its log, and how it ended.

In `${XDG_STATE_HOME:-~/.local/state}/torpor/jobs/NAME/`, files 0600: a log may hold anything the program
said.
"""

from __future__ import annotations

import os
import time
from typing import Any

from torpor.named_tuple import NamedTuple
from torpor.supervise import as_json


class Ended(NamedTuple):
    """How a detached job ended. status: its wait status; time: seconds since the epoch."""

    status: int
    time: float


def base() -> str:
    """torpor's state folder; it need not exist."""
    given = os.environ.get("XDG_STATE_HOME", "")
    if not given.startswith("/"):
        home = os.path.expanduser("~")
        given = f"{home}/.local/state" if home.startswith("/") else f"/tmp/torpor-{os.geteuid()}/.state"
    return f"{given}/torpor"


def folder(name: str) -> str:
    """The state folder of a job; it need not exist."""
    return f"{base()}/jobs/{name}"


def provided(name: str) -> str:
    """The folder for files that a restart makes for a job (checkpoint/copies.py); it need not exist."""
    return f"{folder(name)}/provided"


def remove_provided(name: str) -> None:
    """The job has ended: so has the use of the files that were made for it, of which every checkpoint has copies."""
    where = provided(name)
    try:
        for digest in os.listdir(where):
            if os.path.isdir(f"{where}/{digest}"):
                for file in os.listdir(f"{where}/{digest}"):
                    os.unlink(f"{where}/{digest}/{file}")
                os.rmdir(f"{where}/{digest}")
            else:
                os.unlink(f"{where}/{digest}")  # left behind by a restart that was killed
        os.rmdir(where)
        os.rmdir(folder(name))  # unless there is a log in it
    except OSError:
        pass


def open_log(name: str, fresh: bool) -> tuple[int, str]:
    """A descriptor of the job's log, to be written at its end, and the log's path.

    fresh: a new program; the log of an earlier job of that name is kept as `log.1`. Raises OSError.
    """
    where = folder(name)
    os.makedirs(where, 0o700, exist_ok=True)
    path = f"{where}/log"
    if fresh and os.path.exists(path):
        os.rename(path, f"{path}.1")
    try:
        os.unlink(f"{where}/ended.json")
    except FileNotFoundError:
        pass
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
    return os.open(path, flags, 0o600), path


def record_end(name: str, status: int) -> None:
    """Write down how the job ended, for a `wait` that comes later."""
    where = f"{folder(name)}/ended.json"
    try:
        os.makedirs(folder(name), 0o700, exist_ok=True)
        fd = os.open(where, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    except OSError:
        return
    try:
        os.write(fd, as_json.encoded({"status": status, "time": time.time()}))
    except OSError:
        pass
    finally:
        os.close(fd)


def ended(name: str) -> Ended | None:
    """How the last job of that name ended that was detached, or had crashed before; None if there was none, or nobody
    knows."""
    try:
        with open(f"{folder(name)}/ended.json", "rb") as file:
            plain: dict[str, Any] = as_json.decoded(file.read())
        return Ended(int(plain["status"]), float(plain["time"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def remove(name: str) -> None:
    """Delete the log and what else there is of a job that is over."""
    remove_provided(name)
    where = folder(name)
    try:
        for part in os.listdir(where):
            os.unlink(f"{where}/{part}")
        os.rmdir(where)
    except OSError:
        pass
