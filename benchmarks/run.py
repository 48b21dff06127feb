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
from typing import Any

from measure import lost, table
from measure.cases import CASES, QUICK, WEAR, Case, compiled, no_room, program
from measure.limits import Limits
from measure.machine import machine
from measure.ours import Figures, Torpor
from measure.peer import Peer

WEAR_CASE = "wear"
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
        "--case", action="append", choices=[*(case.name for case in CASES), WEAR_CASE], help="only this one"
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


def wear(rounds: int, ours: Torpor, folder: str) -> list[Any]:
    """Time lost, with small pages and with huge ones."""
    program = compiled("wear", folder)
    out = []
    for name, huge in (("4K pages", False), ("huge pages", True)) if program else ():
        found = []
        for number in range(rounds):
            print(f"wear, {name}: round {number + 1} of {rounds}", file=sys.stderr, flush=True)
            found.append(lost.measure(ours, program, WEAR, huge))
            shutil.rmtree(f"{folder}/store", ignore_errors=True)
        out.append({"case": name, "medians": table.medians(found), "rounds": found})
    return out


def main() -> int:
    given = options()
    rounds = given.rounds or (3 if given.quick else 5)
    wanted = given.case or [*(QUICK if given.quick else [case.name for case in CASES]), WEAR_CASE]
    base = given.folder or "/var/tmp"
    folder = tempfile.mkdtemp(prefix="torpor-bench-", dir=base)
    about = machine()
    results = []
    try:
        words = program(folder)
        ours, limits = Torpor(folder), Limits(folder)
        peer = Peer(given.peer, folder) if given.peer else None
        worn = wear(rounds, ours, folder) if WEAR_CASE in wanted else []
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
    print("\n\n".join(filter(None, (table.report(results, version) if results else "", table.lost(worn, WEAR)))))
    os.makedirs(RESULTS, exist_ok=True)
    path = os.path.join(RESULTS, time.strftime("%Y%m%d-%H%M%S.json"))
    with open(path, "w", encoding="utf-8") as file:
        json.dump(
            {"machine": about, "rounds": rounds, "peer": version, "results": results, "wear": worn}, file, indent=1
        )
    print(f"\nwritten to {os.path.relpath(path)}")
    return 1 if any(result["trouble"] for result in results) else 0


if __name__ == "__main__":
    sys.exit(main())
