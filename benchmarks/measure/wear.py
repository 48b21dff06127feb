"""What a program that rewrites all of its memory, round after round, tells of itself (programs/wear.c)."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import NamedTuple

from measure import look

PATIENCE = 60.0
SETTLED = 1.1
"""A round that takes no more than so many times what one took before is as before."""


class Round(NamedTuple):
    """before, after: nanoseconds since 1970. used: processor time, nanoseconds."""

    before: int
    after: int
    used: int


def rounds(path: str) -> list[Round]:
    """What the program has told of its rounds."""
    return [Round(*map(int, words[1:])) for words in look.lines(path) if words[0] == "pass"]


def usual(found: list[Round], began: int) -> float:
    """Processor time of a round before `began`, nanoseconds: the median, without the first, in which memory is made."""
    return statistics.median([one.used for one in found if one.after < began][1:])


def lost(found: list[Round], began: int, ended: int) -> float:
    """Seconds. began, ended: when the save (or the fork) began and was over, nanoseconds since 1970."""
    before = usual(found, began)
    later = [one for one in found if one.after >= began]
    over = next((at for at, one in enumerate(later) if one.before > ended and one.used < SETTLED * before), len(later))
    return sum(one.used - before for one in later[:over]) / 1e9


def begun(path: str) -> list[Round]:
    """The rounds, as soon as there are enough of them to know what one takes. Raises TimeoutError."""
    return _until(path, lambda found: len(found) >= 5)


def after(path: str, ended: int) -> list[Round]:
    """The rounds until some time after the end. Raises TimeoutError."""
    return _until(path, lambda found: len([one for one in found if one.before > ended]) >= 5)


def _until(path: str, enough: Callable[[list[Round]], bool]) -> list[Round]:
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        found = rounds(path)
        if enough(found):
            return found
        time.sleep(0.02)
    raise TimeoutError("the program does not go on")
