"""A picture of how something grows: lines in a logarithmic frame, as SVG. Pure."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple
from xml.sax.saxutils import escape

WIDTH, HEIGHT = 420, 300
LEFT, RIGHT, TOP, BOTTOM = 62, 14, 30, 44


class Line(NamedTuple):
    """Points (x, y), both above 0."""

    name: str
    colour: str
    points: Sequence[tuple[float, float]]


def frame(
    title: str, below: str, lines: Sequence[Line], said: Callable[[float], str], left: int = 0, limit: float = 0.0
) -> str:
    """One frame, `left` pixels from the left: a `<g>`. below: what x is. said: how a y is written. limit: a level that
    is drawn as well."""
    xs = [x for line in lines for x, _ in line.points]
    ys = [y for line in lines for _, y in line.points] + ([limit] if limit else [])
    x_from, x_to = math.log10(min(xs)), math.log10(max(xs))
    y_from, y_to = math.floor(math.log10(min(ys))), math.ceil(math.log10(max(ys)))
    y_to = max(y_to, y_from + 1)

    def x_at(x: float) -> float:
        share = (math.log10(x) - x_from) / (x_to - x_from) if x_to > x_from else 0.5
        return round(LEFT + share * (WIDTH - LEFT - RIGHT), 1)

    def y_at(y: float) -> float:
        return round(HEIGHT - BOTTOM - (math.log10(y) - y_from) / (y_to - y_from) * (HEIGHT - TOP - BOTTOM), 1)

    out = [f'<g transform="translate({left} 0)">', _text(WIDTH / 2, 16, title, weight="bold")]
    for power in range(y_from, y_to + 1):
        y = y_at(10.0**power)
        out.append(f'<path d="M{LEFT} {y}H{WIDTH - RIGHT}" stroke="#ddd"/>')
        out.append(_text(LEFT - 6, y + 4, said(10.0**power), "end"))
    for x in sorted(set(xs)):
        out.append(f'<path d="M{x_at(x)} {HEIGHT - BOTTOM}v4" stroke="#888"/>')
        out.append(_text(x_at(x), HEIGHT - BOTTOM + 16, f"{x:,.0f}"))
    out.append(_text(WIDTH / 2, HEIGHT - 8, below))
    if limit:
        out.append(
            f'<path d="M{LEFT} {y_at(limit)}H{WIDTH - RIGHT}" stroke="#c33" stroke-dasharray="5 4"/>'
            + _text(LEFT + 4, y_at(limit) - 4, said(limit), "start", "#c33")
        )
    for at, line in enumerate(lines):
        path = " ".join(f"{x_at(x)},{y_at(y)}" for x, y in line.points)
        out.append(f'<polyline points="{path}" fill="none" stroke="{line.colour}" stroke-width="2"/>')
        out += [f'<circle cx="{x_at(x)}" cy="{y_at(y)}" r="2.5" fill="{line.colour}"/>' for x, y in line.points]
        out.append(_text(LEFT + 8, TOP + 12 + 15 * at, line.name, "start", line.colour))
    return "\n".join([*out, "</g>"])


def picture(frames: Sequence[str]) -> str:
    """Frames beside each other."""
    width = WIDTH * len(frames)
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {HEIGHT}" width="{width}" height="{HEIGHT}"'
    style = ' font-family="sans-serif" font-size="11"'
    return "\n".join([f"{head}{style}>", '<rect width="100%" height="100%" fill="#fff"/>', *frames, "</svg>", ""])


def _text(x: float, y: float, text: str, anchor: str = "middle", colour: str = "#333", weight: str = "normal") -> str:
    where = f'x="{x}" y="{y}" text-anchor="{anchor}"'
    return f'<text {where} fill="{colour}" font-weight="{weight}">{escape(text)}</text>'
