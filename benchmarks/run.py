"""`make bench`: how long a job stands still, and how long it takes to save and to restart it.

Every figure is the median of several rounds; beside it stand limits of this machine that were measured in the same
rounds, what is aimed at (`ok`: reached, `no`: not), and a CRIU if PEER_CRIU names one. A round: start the program, save
it into an empty store, kill everything, restart it. pause: the longest time in which the program did not get to run,
seen by itself. save: the whole command. restart: from the start of the command to the first instruction of the
restarted program. The store has just been written, so it is in the page cache. Cases with programs of their own are
measured first; measure/ has a module for each, which says what it measures.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from types import ModuleType
from typing import Any

from measure import clones, fill, lost, rate, second, sizes, steady, track
from measure.apart import Apart
from measure.cases import CASES, QUICK, compiled, no_room, program
from measure.limits import Limits
from measure.machine import machine
from measure.ours import Torpor
from measure.peer import Peer

RESULTS = os.path.join(os.path.dirname(os.path.abspath(__file__)), "results")
APART: dict[str, tuple[str, ModuleType]] = {
    "steady": ("calls", steady),
    "wear": ("wear", lost),
    "track": ("wear", track),
    "rate": ("grow", rate),
    "second": ("share", second),
    "fill": ("hold", fill),
    "clone": ("hold", clones),
}
"""Cases with programs of their own (programs/), and the modules that `run` and `report` them."""
LARGE = ("second", "fill")
"""Those that --quick leaves out."""


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="example:\n  make bench ARGS='--quick'\n  make bench ARGS='--case steady --case 50processes'\n"
        "  make bench PEER_CRIU=/opt/criu/sbin/criu",
    )
    parser.add_argument("--quick", action="store_true", help="3 rounds, without the 4 GiB")
    parser.add_argument("--rounds", type=int, help="rounds for each case (default: 5)")
    parser.add_argument(
        "--case", action="append", choices=[*(case.name for case in CASES), *APART], help="only this one"
    )
    parser.add_argument("--folder", help="where stores are made (default: /var/tmp); it should be on a real disk")
    parser.add_argument("--peer", default=os.environ.get("PEER_CRIU", ""), help="a CRIU 4.x (default: $PEER_CRIU)")
    return parser.parse_args()


def beside(wanted: list[str], to: Apart) -> dict[str, Any]:
    """The results of those cases that have programs of their own."""
    found: dict[str, Any] = {}
    for name, (source, module) in APART.items():
        if name not in wanted:
            continue
        own = compiled(source, to.folder)
        try:
            results = module.run(to._replace(program=own)) if own else []
        except (RuntimeError, OSError, TimeoutError) as error:
            print(f"{name}: left out, {error}", file=sys.stderr)
            continue
        if results:
            found[name] = results
    return found


def main() -> int:
    given = options()
    rounds = given.rounds or (3 if given.quick else 5)
    quick = [*QUICK, *(name for name in APART if name not in LARGE)]
    wanted = given.case or (quick if given.quick else [*(case.name for case in CASES), *APART])
    folder = tempfile.mkdtemp(prefix="torpor-bench-", dir=given.folder or "/var/tmp")
    about = machine()
    results = []
    try:
        words = program(folder)
        ours, limits = Torpor(folder), Limits(folder)
        peer = Peer(given.peer, folder) if given.peer else None
        apart = beside(wanted, Apart(rounds, ours, limits, folder, ""))
        for case in CASES:
            if case.name not in wanted:
                continue
            reason = no_room(case, folder)
            if reason:
                print(f"{case.name}: left out, {reason}", file=sys.stderr)
                continue
            results.append(sizes.measure(case, words, rounds, ours, limits, peer))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    about["load_after"] = os.getloadavg()
    version = peer.version if peer else ""
    print(
        f"\n{about['cpu']}, {about['cpus']} CPUs, Linux {about['kernel']}, Python {about['python']}, "
        f"{'root' if not about['user'] else 'ordinary user'}; medians of {rounds}; "
        f"program: {os.path.basename(words[-1])}; load {os.getloadavg()[0]:.1f}\n"
    )
    tables = [sizes.report(results, {case.name: case for case in CASES}, version)] if results else []
    tables += [APART[name][1].report(found) for name, found in apart.items()]
    print("\n\n".join(tables))
    os.makedirs(RESULTS, exist_ok=True)
    path = os.path.join(RESULTS, time.strftime("%Y%m%d-%H%M%S.json"))
    with open(path, "w", encoding="utf-8") as file:
        json.dump({"machine": about, "rounds": rounds, "peer": version, "results": results, **apart}, file, indent=1)
    print(f"\nwritten to {os.path.relpath(path)}")
    everything = [*results, *(result for found in apart.values() for result in found)]
    return 1 if any(result["trouble"] for result in everything) else 0


if __name__ == "__main__":
    sys.exit(main())
