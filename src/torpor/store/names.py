"""How a user names a checkpoint: `NAME` (the newest of the job), `NAME@3`, `NAME@-1` (the newest but one).
Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence

from torpor.model.errors import NotFound, UsageError
from torpor.named_tuple import NamedTuple

_JOB = re.compile(r"[A-Za-z0-9._-]{1,200}")
_NUMBER = re.compile(r"-?[0-9]{1,15}")
SHOWN = 8
"""How many names an error lists."""


class Wanted(NamedTuple):
    job: str
    """'' where none was named."""
    number: str
    """'' for the newest, '3' for the third, '-1' for the newest but one."""


def check_job(job: str) -> str:
    """`job` itself if it can be the name of a job: 1 to 200 of [A-Za-z0-9._-], but not '.' or '..'. Else
    UsageError."""
    if not _JOB.fullmatch(job) or job in (".", ".."):
        raise UsageError(f"{job!r} cannot be the name of a job; use letters, digits, '.', '_' and '-'")
    return job


def parse(name: str | None) -> Wanted:
    """Raises UsageError."""
    job, at, number = (name or "").partition("@")
    if job:
        check_job(job)
    if at and not _NUMBER.fullmatch(number):
        raise UsageError(f"{name!r} is not the name of a checkpoint; use NAME, NAME@3 or NAME@-1")
    return Wanted(job, number)


def pick_job(wanted: Wanted, jobs: Sequence[str], place: str) -> str:
    """The job that is meant, out of those that have checkpoints. Raises NotFound."""
    if not jobs:
        raise NotFound(f"there are no checkpoints in {place}")
    if wanted.job:
        if wanted.job not in jobs:
            raise NotFound(f"no checkpoint of {wanted.job!r} in {place}; there are {some(sorted(jobs))}")
        return wanted.job
    if len(jobs) > 1:
        raise NotFound(f"which job? there are {some(sorted(jobs))} in {place}")
    return jobs[0]


def pick_number(job: str, wanted: str, numbers: Sequence[int]) -> int:
    """The number that is meant, out of those `job` has (at least one). Raises NotFound."""
    numbers = sorted(numbers)
    if not wanted:
        return numbers[-1]
    number = int(wanted)
    if wanted.startswith("-"):
        if -number < len(numbers):
            return numbers[number - 1]
    elif number in numbers:
        return number
    there = some([f"{job}@{n}" for n in reversed(numbers)])
    raise NotFound(f"no checkpoint {job}@{wanted}; there are {there}")


def some(names: Sequence[str]) -> str:
    """A few of them, for people."""
    more = len(names) - SHOWN
    return ", ".join(names[:SHOWN]) + (f" and {more} more" if more > 0 else "")
