"""How time and memory of torpor itself grow with a job, and with its store: one axis at a time.

Each axis leaves the others at their least. A point is the median of several rounds of: save, kill, restart. Written to
results/growth-AXIS.json, and drawn from there as docs/growth-AXIS.svg. All of it takes some ten minutes, most of it the
largest memory and the thousand checkpoints. Processor time stands beside time, since others may use the machine.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
from typing import Any

from measure import chart, table
from measure.cases import Case, compiled, no_room
from measure.growth import Grown, Shape
from measure.machine import machine
from measure.ours import Torpor

HERE = os.path.dirname(os.path.abspath(__file__))
DOCS = os.path.join(os.path.dirname(HERE), "docs")
AXES = {
    "size": ("MiB of memory", (64, 256, 1024, 4096, 12288)),
    "mappings": ("mappings", (10, 100, 1000, 10000, 30000)),
    "threads": ("threads", (1, 10, 100, 1000)),
    "processes": ("processes", (1, 10, 100, 500)),
    "checkpoints": ("checkpoints in the store", (1, 10, 100, 1000)),
}
MOST_MEMORY = 300 << 20
IDLE = 1.5
"""How much memory has to be free for a job that writes nothing while it is saved, to its own."""
SMALL = {"checkpoints": 4}
"""MiB of memory of a job on an axis that needs some."""


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="example:\n  make growth ARGS='--axis threads --axis size --most 1024'",
    )
    parser.add_argument("--axis", action="append", choices=list(AXES), help="only this one")
    parser.add_argument("--most", type=int, help="no point beyond this")
    parser.add_argument("--rounds", type=int, default=3, help="rounds for each point (default: 3)")
    parser.add_argument("--folder", default="/var/tmp", help="where stores are made (default: /var/tmp)")
    parser.add_argument("--draw", action="store_true", help="only draw what was measured before")
    return parser.parse_args()


def measure(axis: str, most: int | None, rounds: int, grown: Grown, folder: str) -> list[Any]:
    """The points of an axis."""
    found = []
    for at in AXES[axis][1]:
        if most is not None and at > most:
            break
        shape = Shape(size=SMALL.get(axis, 0))._replace(**{axis: at - (axis == "checkpoints")})
        lacking = no_room(Case("", shape.size), folder, IDLE)
        if lacking:
            print(f"{axis} {at}: left out, {lacking}", file=sys.stderr)
            break
        figures = []
        for number in range(rounds):
            print(f"{axis} {at:,}: round {number + 1} of {rounds}", file=sys.stderr, flush=True)
            if axis != "checkpoints":
                grown.forget()
            figures.append(grown.measure(shape))
        found.append({"at": at, "medians": table.medians(figures), "rounds": figures})
    grown.forget()
    return found


def report(axis: str, points: list[Any]) -> str:
    """The table of an axis."""
    rows = []
    for point in points:
        get = point["medians"].get
        rows.append([
            f"{point['at']:,}",
            table.seconds(get("save")), table.seconds(get("save_cpu")), table.seconds(get("pause")),
            table.size(get("save_memory")),
            table.seconds(get("restart")), table.seconds(get("restart_cpu")), table.size(get("restart_memory")),
        ])  # fmt: skip
    return table.columns([AXES[axis][0], "save", "CPU", "pause", "memory", "restart", "CPU", "memory"], rows)


def draw(axis: str, points: list[Any]) -> str:
    """The picture of an axis."""

    def line(name: str, colour: str, key: str) -> chart.Line:
        return chart.Line(name, colour, [(point["at"], point["medians"][key]) for point in points])

    times = [
        line("save", "#1f77b4", "save"),
        line("save: processor time", "#9ec5e8", "save_cpu"),
        line("restart", "#d9730d", "restart"),
        line("restart: processor time", "#f0bd8d", "restart_cpu"),
        line("pause", "#2a9d4e", "pause"),
    ]
    memory = [line("save", "#1f77b4", "save_memory"), line("restart", "#d9730d", "restart_memory")]
    below = AXES[axis][0]
    return chart.picture([
        chart.frame("time", below, times, table.seconds),
        chart.frame("torpor's own memory at most", below, memory, table.size, chart.WIDTH, MOST_MEMORY),
    ])  # fmt: skip


def main() -> int:
    given = options()
    os.makedirs(f"{HERE}/results", exist_ok=True)
    folder = tempfile.mkdtemp(prefix="torpor-growth-", dir=given.folder)
    try:
        program = "" if given.draw else compiled("grow", folder)
        if not given.draw and not program:
            print("growth.py: needs a C compiler", file=sys.stderr)
            return 1
        for axis in given.axis or AXES:
            path = f"{HERE}/results/growth-{axis}.json"
            if not given.draw:
                about = machine()
                points = measure(axis, given.most, given.rounds, Grown(Torpor(folder), program), folder)
                about["load_after"] = os.getloadavg()
                with open(path, "w", encoding="utf-8") as file:
                    json.dump({"machine": about, "rounds": given.rounds, "points": points}, file, indent=1)
            with open(path, encoding="utf-8") as file:
                points = json.load(file)["points"]
            print(f"\n{report(axis, points)}", flush=True)
            with open(f"{DOCS}/growth-{axis}.svg", "w", encoding="utf-8") as file:
                file.write(draw(axis, points))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
