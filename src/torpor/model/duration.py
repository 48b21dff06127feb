"""Lengths of time as people write them: `90s`, `10m`, `1h30m`."""

from __future__ import annotations

from torpor.model.errors import UsageError

_UNITS = {"d": 86400.0, "h": 3600.0, "m": 60.0, "s": 1.0}


def parse(text: str) -> float:
    """Seconds of `10m`, `90s`, `1h30m`, `1.5h`, `2d`, or of a plain number of seconds. Raises UsageError.

    Units are d, h, m and s, each once at most, from the largest to the smallest; only the last number may have a
    fraction.
    """
    total, number, left, fraction = 0.0, "", list(_UNITS), False
    for letter in text if text.isascii() else "?":
        if letter.isdigit() or (letter == "." and "." not in number):
            number += letter
            continue
        if letter not in left or not _counts(number) or fraction:
            raise _wrong(text)
        total += float(number) * _UNITS[letter]
        fraction, number = "." in number, ""
        left = left[left.index(letter) + 1 :]
    if not number and total == 0.0 and len(left) == len(_UNITS):
        raise _wrong(text)
    if number:
        if len(left) < len(_UNITS) or not _counts(number):  # `1h30`: minutes or seconds?
            raise _wrong(text)
        total = float(number)
    return total


def short(seconds: float) -> str:
    """A length of time for a message: `0.4 s`, `12 s`, `2m05s`, `1h30m`."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 120:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02}s"
    return f"{whole // 3600}h{whole % 3600 // 60:02}m"


def _counts(number: str) -> bool:
    return number.strip(".") != "" and not number.startswith(".")


def _wrong(text: str) -> UsageError:
    return UsageError(f"{text!r} is not a length of time; use 90s, 10m, 1h30m")
