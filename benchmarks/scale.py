"""How coordination grows with the number of hosts: the real coordinator against simulated hosts, in one process.

A row is one checkpoint. Hosts need no time for what they are told (but to store, see --store), so the times of the
phases are what coordination costs. The assumptions about the network are in measure/hosts.py.
"""

from __future__ import annotations

import argparse

from measure import table
from measure.hosts import Figures, checkpoint

HOSTS = (64, 256, 1024, 2047, 4096, 10000)
BUDGET = 0.01 * 11 * 60


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hosts", type=int, action="append", help=f"how many (default: {', '.join(map(str, HOSTS))})")
    parser.add_argument(
        "--ends", type=int, default=128, help="ends of connections to other hosts, on each (default: 128)"
    )
    parser.add_argument("--store", type=float, default=0.0, help="seconds a host needs to store (default: 0)")
    return parser.parse_args()


PHASES = ("survey", "freeze", "settle", "capture", "resume", "store", "commit")


def row(figures: Figures) -> str:
    """One line of the table."""
    cells = [f"{figures.hosts:,}", f"{figures.hosts * figures.ends:,}"]
    cells += [table.seconds(figures.phases[phase]) for phase in PHASES]
    cells += [table.seconds(figures.pause), table.seconds(sum(figures.phases.values())), table.seconds(figures.cpu)]
    cells += [
        f"{figures.received:,}",
        f"{figures.delivered:,}",
        table.size(figures.bytes_in),
        table.size(figures.record),
    ]
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    given = options()
    heads = ("hosts", "ends", *PHASES, "pause", "in all", "CPU", "received", "delivered", "bytes in", "record")
    print("| " + " | ".join(heads) + " |")
    print("|" + "---|" * len(heads))
    for hosts in given.hosts or HOSTS:
        figures = checkpoint(hosts, given.ends, given.store)
        print(row(figures), flush=True)
        if hosts == 2047:
            share = sum(figures.phases.values()) / (BUDGET * 100)
            print(f"2,047 hosts: {share:.2%} of 11 minutes", flush=True)


if __name__ == "__main__":
    main()
