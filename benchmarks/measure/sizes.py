"""Jobs of given sizes (cases.py), saved and restarted: pause, save and restart beside the limits, and beside a CRIU."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import TypedDict

from measure import table
from measure.cases import Case
from measure.limits import Limits
from measure.ours import Figures, Torpor
from measure.peer import Peer


class Result(TypedDict):
    """A case: medians, and the rounds that they are of. trouble: what went wrong in a round, which then is left out."""

    case: str
    torpor: Figures
    limits: Figures
    peer: Figures
    rounds: dict[str, list[Figures]]
    trouble: list[str]


def measure(case: Case, words: list[str], rounds: int, ours: Torpor, limits: Limits, peer: Peer | None) -> Result:
    """All rounds of a case."""
    mine: list[Figures] = []
    limit: list[Figures] = []
    theirs: list[Figures] = []
    trouble: list[str] = []
    for number in range(rounds):
        print(f"{case.name}: round {number + 1} of {rounds}", file=sys.stderr, flush=True)
        figures = {"python": limits.python()}
        if case.bytes:
            figures["memcpy"] = limits.memcpy(case.bytes)
            figures["dd"] = limits.dd(case.bytes)
        limit.append(figures)
        for who, out in ((ours, mine), (peer, theirs)):
            if who is None:
                continue
            try:
                out.append(who.round(case, words))
            except (RuntimeError, OSError, TimeoutError) as error:
                trouble.append(f"{type(who).__name__.lower()}: {error}")
                print(f"  {trouble[-1]}", file=sys.stderr, flush=True)
    return {
        "case": case.name,
        "torpor": table.medians(mine),
        "limits": table.medians(limit),
        "peer": table.medians(theirs),
        "rounds": {"torpor": mine, "limits": limit, "peer": theirs},
        "trouble": trouble,
    }


def pause_aim(case: Case, pause: float | None, fork: float | None) -> str:
    """What the pause of a case should be, as `table.aim` says it; '' for nothing."""
    if case.fork:
        return table.aim(f"{case.fork}x", table.quotient(pause, fork), case.fork)
    return table.aim(f"{case.pause * 1e3:.0f} ms", pause, case.pause) if case.pause else ""


def restart_aim(case: Case, restart: float | None) -> str:
    """The same of the restart."""
    return table.aim(f"{case.restart * 1e3:.0f} ms", restart, case.restart) if case.restart else ""


def report(results: Sequence[Result], cases: Mapping[str, Case], peer: str) -> str:
    """The tables. cases: by name. peer: its version, '' without one."""
    seconds, ratio, size = table.seconds, table.ratio, table.size
    ours, limits, theirs = [], [], []
    for result in results:
        name, limit, other = result["case"], result["limits"], result["peer"]
        case, get = cases[name], result["torpor"].get
        fork = get("fork") if case.threads == 1 else None  # a fork copies one thread only: nothing to compare with
        ours.append([
            name,
            seconds(get("pause")), ratio(get("pause"), fork), pause_aim(case, get("pause"), fork),
            seconds(get("save")), ratio(get("save"), limit.get("dd")),
            seconds(get("restart")), restart_aim(case, get("restart")),
            ratio(get("restart"), limit.get("memcpy")), ratio(get("restart"), limit.get("python")),
            size(get("image")), ratio(get("image"), get("memory")),
        ])  # fmt: skip
        limits.append([
            name, seconds(fork), seconds(limit.get("memcpy")), seconds(limit.get("dd")), seconds(limit.get("python")),
        ])  # fmt: skip
        theirs.append([
            name,
            seconds(other.get("pause")), ratio(get("pause"), other.get("pause")),
            seconds(other.get("save")), seconds(other.get("save_and_sync")),
            ratio(get("save"), other.get("save_and_sync")),
            seconds(other.get("restart")), ratio(get("restart"), other.get("restart")),
            size(other.get("image")), ratio(get("image"), other.get("image")),
        ])  # fmt: skip
    head = ("case", "pause", "/fork", "aim", "save", "/dd", "restart", "aim", "/memcpy", "/python", "image", "/memory")
    parts = [
        "torpor",
        table.columns(head, ours),
        "",
        "limits, measured in the same run (memcpy and dd: for as many bytes as the case has; forks of all processes)",
        table.columns(("case", "bare forks", "memcpy", "dd conv=fsync", "python start"), limits),
        "",
    ]
    if peer:
        beside = ("case", "pause", "ours/", "save", "+ sync", "ours/", "restart", "ours/", "image", "ours/")
        parts += [f"peer: CRIU {peer}", table.columns(beside, theirs)]
    else:
        parts += ["peer: none (PEER_CRIU=/path/to/criu, version 4, as root)"]
    return "\n".join(parts)
