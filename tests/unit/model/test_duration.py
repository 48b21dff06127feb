"""Lengths of time as people write them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from torpor.model import duration
from torpor.model.errors import UsageError


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("10m", 600), ("90s", 90), ("1h30m", 5400), ("2d", 172800), ("1.5h", 5400), ("0", 0), ("0s", 0), ("45", 45),
        ("0.25", 0.25), ("1d2h3m4s", 93784), ("1h0.5m", 3630), ("90m", 5400), ("1h5s", 3605),
    ],
)  # fmt: skip
def test_understood(text: str, seconds: float) -> None:
    assert duration.parse(text) == seconds


@pytest.mark.parametrize(
    "text",
    ["", "m", "10x", "1h30", "30m1h", "1m1m", "-5", "-5s", "+5s", "1..5s", ".", ".5s", "5 s", "1.5h30m", "1e3", "nan",
     "inf", "10ms", "\u0661s", "10M", "s10", "1h m"],
)  # fmt: skip
def test_not_understood(text: str) -> None:
    with pytest.raises(UsageError, match="not a length of time"):
        duration.parse(text)


@given(st.integers(0, 99), st.integers(0, 23), st.integers(0, 59), st.integers(0, 59))
def test_any_combination(days: int, hours: int, minutes: int, seconds: int) -> None:
    parts = [(days, "d"), (hours, "h"), (minutes, "m"), (seconds, "s")]
    text = "".join(f"{number}{unit}" for number, unit in parts if number) or "0"
    assert duration.parse(text) == ((days * 24 + hours) * 60 + minutes) * 60 + seconds


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.04, "0.0 s"), (3.21, "3.2 s"), (9.96, "10 s"), (99, "99 s"), (125, "2m05s"), (5400, "1h30m")],
)
def test_told(seconds: float, text: str) -> None:
    assert duration.short(seconds) == text
