"""How figures are shown: medians, ratios, aims, columns. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median

Rounds = Sequence[Mapping[str, float]]


def medians(rounds: Rounds) -> dict[str, float]:
    """The median of each figure over the rounds that have it."""
    keys = {key: None for figures in rounds for key in figures}
    return {key: median(figures[key] for figures in rounds if key in figures) for key in keys}


def seconds(value: float | None) -> str:
    """`85 us`, `12.3 ms`, `1.24 s`; '-' for none."""
    if value is None:
        return "-"
    if value < 1e-3:
        return f"{value * 1e6:.0f} us"
    return f"{value * 1e3:.1f} ms" if value < 0.1 else f"{value * 1e3:.0f} ms" if value < 1 else f"{value:.2f} s"


def nanoseconds(value: float | None) -> str:
    """`71.3 ns`, of seconds; '-' for none."""
    return "-" if value is None else f"{value * 1e9:.1f} ns"


def size(value: float | None) -> str:
    """`93 KiB`, `64.3 MiB`, `1.00 GiB`; '-' for none."""
    if value is None:
        return "-"
    if value < 1 << 20:
        return f"{value / 1024:.0f} KiB"
    return f"{value / (1 << 20):.1f} MiB" if value < 1 << 30 else f"{value / (1 << 30):.2f} GiB"


def quotient(value: float | None, to: float | None) -> float | None:
    """None where either is missing or there is nothing to compare with."""
    return None if value is None or not to else value / to


def times(value: float | None) -> str:
    """`1.7x`; '-' for none."""
    return "-" if value is None else f"{value:.3g}x"


def ratio(value: float | None, to: float | None) -> str:
    """`1.7x`; '-' where either is missing or there is nothing to compare with."""
    return times(quotient(value, to))


def aim(said: str, value: float | None, most: float = 0.0, least: float = 0.0) -> str:
    """`1.3x ok` or `1.3x no`: what is aimed at, and whether a value is not above `most` (not below `least`). The aim
    alone where there is no value."""
    if value is None:
        return said
    return f"{said} {'ok' if (value >= least if least else value <= most) else 'no'}"


def columns(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns, all but the first to the right."""
    widths = [max(len(row[at]) for row in (head, *rows)) for at in range(len(head))]
    out = []
    for row in (head, *rows):
        cells = [
            cell.ljust(width) if not at else cell.rjust(width) for at, (cell, width) in enumerate(zip(row, widths))
        ]
        out.append("  ".join(cells).rstrip())
    return "\n".join(out)
