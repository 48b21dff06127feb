"""The file through which other hosts join a job (`torpor run --job-file FILE`, `--join FILE`).

It lies in a folder that all hosts see, and holds what torpor otherwise tells another host over ssh: the job's secret
and the description of a part (supervise/part.py). Whoever can read it is of the job: it is 0600, and one that is open
to others, or another user's, is not believed. Its path may be on a command line, what is in it never is.

Whoever makes the file, with nothing in it, begins the job; the contents come once others can join, and it goes with the
job.
"""

from __future__ import annotations

import os
import time

import msgspec

from torpor.link import secret as secrets
from torpor.link.secret import Secret
from torpor.model.errors import TorporError
from torpor.supervise import part as parts
from torpor.supervise.part import Part

PAUSE = 0.1
"""Seconds between two looks whether it is there."""


def claim(path: str) -> bool:
    """Make the file; False if it is there already. Raises OSError."""
    try:
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    except FileExistsError:
        return False
    return True


def write(path: str, secret: Secret, part: Part) -> None:
    """Let others join. part: the first one. Raises OSError."""
    guest = msgspec.structs.replace(
        part, part="", first=False, own=True, address="", argv=(), env={}, cwd=b"", checkpoint="", old="", wishes={},
        job_file="",
    )  # fmt: skip
    temporary = f"{path}.new"
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        os.fchmod(fd, 0o600)
        data = secret.line() + parts.line(guest)
        while data:
            data = data[os.write(fd, data) :]
        os.fsync(fd)
    finally:
        os.close(fd)
    os.rename(temporary, path)


def read(path: str, limit: float) -> tuple[Secret, Part]:
    """Wait until the file is there, and others can join; what it says. Raises TorporError."""
    until = time.monotonic() + limit
    why = f"{path}: there is no such file"
    while True:
        try:
            if data := _contents(path):
                break
            why = f"{path}: the job that this file is of has not begun; if nobody is starting it, remove the file"
        except FileNotFoundError:
            pass
        except OSError as error:
            raise TorporError(f"{path}: {error.strerror}") from None
        if time.monotonic() > until:
            raise TorporError(why)
        time.sleep(PAUSE)
    first, _, rest = data.partition(b"\n")
    return secrets.parse(first + b"\n", path), parts.parse(rest)


def _contents(path: str) -> bytes:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    with open(fd, "rb") as file:
        seen = os.fstat(fd)
        if seen.st_uid != os.geteuid() or seen.st_mode & 0o077:
            raise TorporError(f"{path} is open to others: it is to be ours, with mode 0600")
        return file.read()


def remove(path: str) -> None:
    """The job has ended, or has not begun."""
    try:
        os.unlink(path)
    except OSError:
        pass
