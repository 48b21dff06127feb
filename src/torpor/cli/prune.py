"""torpor prune"""

from __future__ import annotations

import argparse

from torpor.cli.options import add_store, store
from torpor.model.errors import UsageError

HELP = """Remove old checkpoints of JOB, or of every job, and delete what no checkpoint needs, also what saves that
were killed have left. Without --keep-last and --keep-every no checkpoint is removed. Damaged ones are left to rm.
Saves may go on meanwhile."""
EXAMPLE = """  torpor prune --keep-last 3 --keep-every 6h
  torpor prune train --keep-last 1
  torpor prune"""


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("job", nargs="?", metavar="JOB")
    parser.add_argument("--keep-last", type=int, metavar="N", help="the N newest of each job stay (at least one)")
    parser.add_argument("--keep-every", metavar="TIME", help="so does one in each span of this length (6h, 1d)")
    add_store(parser)


def command(options: argparse.Namespace) -> int:
    from torpor.cli.text import plural, say, size
    from torpor.model.duration import parse
    from torpor.store import open_store
    from torpor.store.retention import surplus
    from torpor.supervise import removal

    every = parse(options.keep_every) if options.keep_every else 0.0
    last = options.keep_last
    if last is not None and last < 1:
        raise UsageError("prune: --keep-last is at least 1")
    opened = open_store(store(options) or None)
    saved: dict[str, list[tuple[int, float]]] = {}
    for info in opened.list(options.job):
        if not info.damaged:
            saved.setdefault(info.job, []).append((info.number, info.time))
    for job, found in saved.items():
        for number in surplus(found, last or 1, every) if last is not None or every else []:
            removal.remove(opened, job, number, "prune")
            say(f"removed {job}@{number}")
    packs, count = removal.collect(opened, "prune")
    say(f"freed {size(count)} ({plural(packs, 'pack')})")
    return 0
