"""How numbers, times and tables are written for people."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence


def size(count: int) -> str:
    """Bytes: `512 B`, `3.1 MiB`, `1.2 GiB`."""
    if count < 1024:
        return f"{count} B"
    value = float(count)
    for unit in ("KiB", "MiB", "GiB", "TiB"):
        value /= 1024
        if value < 1023.95 or unit == "TiB":
            break
    return f"{value:.1f} {unit}" if value < 99.95 else f"{value:.0f} {unit}"


def duration(seconds: float) -> str:
    """A measured time: `12 ms`, `0.8 s`, `75 s`."""
    if seconds < 0.1:
        return f"{seconds * 1000:.0f} ms" if seconds >= 0.001 else f"{seconds * 1000:.1f} ms"
    return f"{seconds:.1f} s" if seconds < 60 else f"{seconds:.0f} s"


def moment(when: float) -> str:
    """A point in time, local: `2026-05-01 14:03:59`; '-' for none."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(when)) if when else "-"


def table(head: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[int] = ()) -> str:
    """Columns lined up; `right`: numbers of the columns set to the right."""
    widths = [max(len(row[column]) for row in (head, *rows)) for column in range(len(head))]
    lines = []
    for row in (head, *rows):
        cells = [
            cell.rjust(width) if column in right else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths))
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def plural(count: int, word: str, many: str = "") -> str:
    """`1 process`, `3 processes`."""
    return f"{count} {word if count == 1 else many or word + 's'}"


def say(line: str) -> None:
    """A line on standard output. Names that are not UTF-8 are written as the bytes they are."""
    out = sys.stdout
    if out is None:
        return
    try:
        out.write(f"{line}\n")
    except UnicodeEncodeError:
        out.flush()
        out.buffer.write(line.encode("utf-8", "surrogateescape") + b"\n")


def say_json(value: object) -> None:
    """A value as JSON on standard output."""
    import json

    say(json.dumps(value, indent=2))


def complain(line: str) -> None:
    """A line on standard error, with our name in front."""
    err = sys.stderr
    if err is not None:
        try:
            err.write(f"torpor: {line}\n")
        except UnicodeEncodeError:
            err.buffer.write(f"torpor: {line}\n".encode("utf-8", "surrogateescape"))
