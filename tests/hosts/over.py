"""A job over the hosts of a bed, as a user starts it: `torpor run --hosts`, `torpor restart --hosts`."""

from __future__ import annotations

import os
import subprocess
import sys
import time

from bed import Bed, Host

TORPOR = os.path.join(os.path.dirname(sys.executable), "torpor")


def keys(made: Bed) -> dict[str, str]:
    """One user, who has the same keys on all hosts."""
    return {"XDG_CONFIG_HOME": f"{made.folder}/config"}


def said(made: Bed) -> str:
    """What the commands have said on standard error."""
    return text(f"{made.folder}/err")


def start(made: Bed, host: Host, *words: str) -> subprocess.Popen[bytes]:
    """A torpor command that goes on."""
    with open(f"{made.folder}/err", "ab") as err:
        process: subprocess.Popen[bytes] = host.popen(
            [TORPOR, *words], keys(made), stdin=subprocess.DEVNULL, stderr=err
        )
    return process


def text(path: str) -> str:
    try:
        with open(path, errors="replace") as file:
            return file.read()
    except (FileNotFoundError, ProcessLookupError):
        return ""


def until(path: str, word: str, made: Bed, seconds: float = 60) -> None:
    """Until a file has that word."""
    deadline = time.monotonic() + seconds
    while word not in text(path):
        assert time.monotonic() < deadline, f"{path}: {text(path)[-2000:]}\n{said(made)}"
        time.sleep(0.02)


def running(made: Bed, job: subprocess.Popen[bytes], host: Host, word: str) -> None:
    """Until the job runs there."""
    deadline = time.monotonic() + 60
    while word not in host.run([TORPOR, "jobs"]):
        assert job.poll() is None and time.monotonic() < deadline, said(made)
        time.sleep(0.1)
