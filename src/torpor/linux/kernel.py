"""Which kernel this is."""

from __future__ import annotations

import os

OLDEST = (5, 14)
"""The oldest that is aimed at."""


def version(release: str = "") -> tuple[int, int]:
    """(major, minor) of a release such as '6.18.44-fc' (default: the running kernel's)."""
    numbers = []
    for word in (release or os.uname().release).split(".")[:2]:
        digits = len(word) - len(word.lstrip("0123456789"))
        numbers.append(int(word[:digits] or 0))
    return numbers[0], numbers[1] if len(numbers) > 1 else 0


def probe() -> tuple[bool, str]:
    """Is it new enough, and the architecture one that is known?"""
    name = os.uname()
    if name.machine != "x86_64":
        return False, f"{name.machine} is not supported; x86_64 is"
    if version(name.release) < OLDEST:
        return False, f"this is Linux {name.release}; use {OLDEST[0]}.{OLDEST[1]} or newer"
    return True, f"Linux {name.release}, {name.machine}"
