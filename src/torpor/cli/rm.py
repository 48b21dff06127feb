"""torpor rm"""

from __future__ import annotations

import argparse

from torpor.cli.options import add_store, store
from torpor.model.errors import NotFound, UsageError

HELP = """Remove checkpoints: NAME@3 one, NAME@-1 the newest but one, NAME with --all every one of that job.
Numbers are not used again. What no other checkpoint needs is deleted from the store."""
EXAMPLE = """  torpor rm train@3
  torpor rm --all train"""


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", nargs="+", metavar="CHECKPOINT")
    parser.add_argument("--all", action="store_true", help="all checkpoints of the jobs that are named")
    add_store(parser)


def command(options: argparse.Namespace) -> int:
    from torpor.cli.text import plural, say, size
    from torpor.store import open_store
    from torpor.supervise import removal

    opened = open_store(store(options) or None)
    doomed: dict[tuple[str, int], None] = {}
    for name in options.checkpoint:
        if options.all:
            if "@" in name:
                raise UsageError(f"{name}: with --all, name the job")
            found = opened.list(name)
            if not found:
                raise NotFound(f"no checkpoint of {name}")
            doomed.update(((info.job, info.number), None) for info in found)
        elif "@" not in name:
            raise UsageError(f"{name}: which checkpoint? {name}@NUMBER, or --all")
        else:
            info = opened.resolve(name)
            doomed[info.job, info.number] = None
    for job, number in doomed:
        removal.remove(opened, job, number, "command")
        say(f"removed {job}@{number}")
    packs, count = removal.collect(opened, "command")
    if packs:
        say(f"freed {size(count)} ({plural(packs, 'pack')})")
    if options.all:
        from torpor.supervise import registry, state

        for job in {job for job, _ in doomed}:
            if registry.running(job) is None:
                state.remove(job)
    return 0
