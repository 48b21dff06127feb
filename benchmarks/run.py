"""`make bench`: how long a job stands still, and how long it takes to save and to restart it.

Every figure is the median of several rounds; beside it stand limits of this machine that were measured in the same
rounds, and a CRIU if PEER_CRIU names one. A round: start the program, save it into an empty store, kill everything,
restart it. pause: the longest time in which the program did not get to run, seen by itself. save: the whole command.
restart: from the start of the command to the first instruction of the restarted program. The store has just been
written, so it is in the page cache. Last (first to be measured): time lost, see measure/lost.py.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from measure import lost, rate, second, steady, table
from measure.cases import CASES, QUICK, WEAR, Case, compiled, no_room, program
from measure.limits import Limits
from measure.machine import machine
from measure.ours import Figures, Torpor
from measure.peer import Peer

RESULTS = os.path.join(os.path.dirname(os.path.abspath(__file__)), "results")


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="example:\n  make bench ARGS='--quick'\n  make bench PEER_CRIU=/opt/criu/sbin/criu",
    )
    parser.add_argument("--quick", action="store_true", help="3 rounds, without the 4 GiB")
    parser.add_argument("--rounds", type=int, help="rounds for each case (default: 5)")
    parser.add_argument(
        "--case", action="append", choices=[*(case.name for case in CASES), *APART], help="only this one"
    )
    parser.add_argument("--folder", help="where stores are made (default: /var/tmp); it should be on a real disk")
    parser.add_argument("--peer", default=os.environ.get("PEER_CRIU", ""), help="a CRIU 4.x (default: $PEER_CRIU)")
    return parser.parse_args()


def measure(case: Case, words: list[str], rounds: int, ours: Torpor, limits: Limits, peer: Peer | None) -> Any:
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


class Apart(NamedTuple):
    """For cases with programs of their own: how often, and with what."""

    rounds: int
    ours: Torpor
    limits: Limits
    folder: str
    program: str

    def repeat(self, name: str, one: Callable[..., Figures], *given: object) -> Any:
        """All rounds of something, each with an empty store."""
        found = []
        for number in range(self.rounds):
            print(f"{name}: round {number + 1} of {self.rounds}", file=sys.stderr, flush=True)
            found.append(one(self.ours, self.program, *given))
            shutil.rmtree(f"{self.ours.folder}/store", ignore_errors=True)
        return {"case": name, "medians": table.medians(found), "rounds": found}


def wear(to: Apart) -> list[Any]:
    """Time lost, with small pages and with huge ones."""
    return [to.repeat(name, lost.measure, WEAR, huge) for name, huge in (("4K pages", False), ("huge pages", True))]


def rates(to: Apart) -> list[Any]:
    """How fast a save is, on one processor and on two."""
    return [to.repeat(f"{n} processors", rate.measure, to.limits, n) for n in (1, 2)]


def seconds(to: Apart) -> list[Any]:
    """Second checkpoints."""
    lacking = no_room(Case("", second.SHARE), to.folder)
    if lacking:
        print(f"second: left out, {lacking}", file=sys.stderr)
        return []
    ways = (("tracked", True), ("hashed", False))
    return [to.repeat(name, second.measure, second.SHARE, track) for name, track in ways]


def calls(to: Apart) -> list[Any]:
    """System calls between checkpoints."""
    return [to.repeat("steady", steady.measure)]


APART = {"wear": ("wear", wear), "rate": ("grow", rates), "second": ("share", seconds), "steady": ("calls", calls)}
"""Cases with programs of their own."""


def main() -> int:
    given = options()
    rounds = given.rounds or (3 if given.quick else 5)
    wanted = given.case or [*(QUICK if given.quick else [case.name for case in CASES]), *APART]
    base = given.folder or "/var/tmp"
    folder = tempfile.mkdtemp(prefix="torpor-bench-", dir=base)
    about = machine()
    results = []
    try:
        words = program(folder)
        ours, limits = Torpor(folder), Limits(folder)
        peer = Peer(given.peer, folder) if given.peer else None
        beside = {
            name: run(Apart(rounds, ours, limits, folder, own))
            for name, (source, run) in APART.items()
            if name in wanted and (own := compiled(source, folder))
        }
        for case in CASES:
            if case.name not in wanted:
                continue
            reason = no_room(case, folder)
            if reason:
                print(f"{case.name}: left out, {reason}", file=sys.stderr)
                continue
            results.append(measure(case, words, rounds, ours, limits, peer))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    about["load_after"] = os.getloadavg()
    version = peer.version if peer else ""
    print(
        f"\n{about['cpu']}, {about['cpus']} CPUs, Linux {about['kernel']}, Python {about['python']}, "
        f"{'root' if not about['user'] else 'ordinary user'}; medians of {rounds}; "
        f"program: {os.path.basename(words[-1])}; load {os.getloadavg()[0]:.1f}\n"
    )
    tables = [
        table.report(results, version) if results else "",
        table.lost(beside.get("wear", []), WEAR),
        table.rates(beside.get("rate", []), rate.RATE),
        table.second(beside.get("second", []), second.SHARE),
        table.steady(beside.get("steady", [])),
    ]
    print("\n\n".join(filter(None, tables)))
    os.makedirs(RESULTS, exist_ok=True)
    path = os.path.join(RESULTS, time.strftime("%Y%m%d-%H%M%S.json"))
    with open(path, "w", encoding="utf-8") as file:
        json.dump({"machine": about, "rounds": rounds, "peer": version, "results": results, **beside}, file, indent=1)
    print(f"\nwritten to {os.path.relpath(path)}")
    return 1 if any(result["trouble"] for result in results) else 0


if __name__ == "__main__":
    sys.exit(main())
