"""Medians, ratios, and the table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

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


def size(value: float | None) -> str:
    """`93 KiB`, `64.3 MiB`, `1.00 GiB`; '-' for none."""
    if value is None:
        return "-"
    if value < 1 << 20:
        return f"{value / 1024:.0f} KiB"
    return f"{value / (1 << 20):.1f} MiB" if value < 1 << 30 else f"{value / (1 << 30):.2f} GiB"


def ratio(value: float | None, to: float | None) -> str:
    """`1.7x`; '-' where either is missing or there is nothing to compare with."""
    if value is None or not to:
        return "-"
    return f"{value / to:.3g}x"


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


def report(results: Sequence[Mapping[str, object]], peer: str) -> str:
    """The tables. results: for each case its name, the medians `torpor`, `limits` and, with a peer, `peer`."""
    ours, limits, theirs = [], [], []
    for result in results:
        name = str(result["case"])
        mine: Mapping[str, float] = result["torpor"]  # type: ignore[assignment]
        limit: Mapping[str, float] = result["limits"]  # type: ignore[assignment]
        other: Mapping[str, float] = result.get("peer") or {}  # type: ignore[assignment]
        get = mine.get
        ours.append([
            name,
            seconds(get("pause")), ratio(get("pause"), get("fork")),
            seconds(get("save")), ratio(get("save"), limit.get("dd")),
            seconds(get("restart")), ratio(get("restart"), limit.get("memcpy")),
            ratio(get("restart"), limit.get("python")),
            size(get("image")), ratio(get("image"), get("memory")),
        ])  # fmt: skip
        limits.append([
            name, seconds(get("fork")), seconds(limit.get("memcpy")), seconds(limit.get("dd")),
            seconds(limit.get("python")),
        ])  # fmt: skip
        theirs.append([
            name,
            seconds(other.get("pause")), ratio(get("pause"), other.get("pause")),
            seconds(other.get("save")), seconds(other.get("save_and_sync")),
            ratio(get("save"), other.get("save_and_sync")),
            seconds(other.get("restart")), ratio(get("restart"), other.get("restart")),
            size(other.get("image")), ratio(get("image"), other.get("image")),
        ])  # fmt: skip
    parts = [
        "torpor",
        columns(("case", "pause", "/fork", "save", "/dd", "restart", "/memcpy", "/python", "image", "/memory"), ours),
        "",
        "limits, measured in the same run (memcpy and dd: for as many bytes as the case has)",
        columns(("case", "fork of it", "memcpy", "dd conv=fsync", "python start"), limits),
        "",
    ]
    if peer:
        head = ("case", "pause", "ours/", "save", "+ sync", "ours/", "restart", "ours/", "image", "ours/")
        parts += [f"peer: CRIU {peer}", columns(head, theirs)]
    else:
        parts += ["peer: none (PEER_CRIU=/path/to/criu, version 4, as root)"]
    return "\n".join(parts)


def lost(worn: Sequence[Mapping[str, Any]], mib: int) -> str:
    """The table of time lost. worn: for each case its name, and the medians; '' without any. mib: of the program."""
    if not worn:
        return ""
    rows = []
    for one in worn:
        get = one["medians"].get
        rows.append([
            one["case"], seconds(get("pause")), seconds(get("save")), seconds(get("lost")), seconds(get("lost_fork")),
            ratio(get("lost"), get("lost_fork")),
        ])  # fmt: skip
    head = [f"rewrites {mib} MiB", "pause", "save", "time lost", "by a plain fork", "ratio"]
    return columns(head, rows)


def rates(found: Sequence[Mapping[str, Any]], mib: int) -> str:
    """The table of save rates; '' without any. mib: that are saved."""
    if not found:
        return ""
    rows = []
    for one in found:
        get = one["medians"].get
        stages = [get("read"), get("hash"), get("write")]
        rows.append([
            one["case"], *map(seconds, stages), seconds(get("save")), seconds(get("save_cpu")),
            ratio(get("save"), sum(stages)), seconds(get("dd")), ratio(get("save"), get("dd")),
        ])  # fmt: skip
    head = [f"saves {mib} MiB", "read", "hash", "write", "save", "CPU", "/stages", "dd", "/dd"]
    return columns(head, rows)


def second(found: Sequence[Mapping[str, Any]], mib: int) -> str:
    """The table of second checkpoints; '' without any. mib: of the program."""
    if not found:
        return ""
    rows = []
    for one in found:
        get = one["medians"].get
        rows.append([
            one["case"], seconds(get("first")),
            *(
                cell
                for name in ("row", "scattered")
                for cell in (seconds(get(name)), size(get(f"{name}_bytes")), f"{get(f'{name}_ratio', 0):.2f}x")
            ),
        ])  # fmt: skip
    head = [f"1 % of {mib} MiB", "first", "in a row", "new", "/written", "scattered", "new", "/touched"]
    return columns(head, rows)


def steady(found: Sequence[Mapping[str, Any]]) -> str:
    """The table of system calls; '' without any."""
    if not found:
        return ""
    get = found[0]["medians"].get
    rows = [
        ["getppid", f"{get('native') * 1e9:.1f} ns", f"{get('run') * 1e9:.1f} ns", ratio(get("run"), get("native"))]
    ]
    return columns(["a system call", "by itself", "under torpor run", "ratio"], rows)
