"""torpor copy"""

from __future__ import annotations

import argparse

from torpor.cli.options import add_store, store

HELP = """Copy a checkpoint to another store (a location as for --store). What is there already does not travel. Its
name, number and signature stay. A store that does not exist yet is made, with the same key for names of chunks; one
that was made on its own has another key and takes only encrypted checkpoints."""
EXAMPLE = """  torpor copy train@3 s3://bucket/checkpoints
  torpor copy train /mnt/backup/store --store /scratch/store"""


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", metavar="CHECKPOINT")
    parser.add_argument("target", metavar="STORE")
    add_store(parser)


def command(options: argparse.Namespace) -> int:
    from torpor.cli.text import say, size
    from torpor.model.errors import Damaged
    from torpor.store import behind, open_store
    from torpor.supervise import removal

    opened = open_store(store(options) or None)
    info = opened.resolve(options.checkpoint)
    if info.damaged:
        raise Damaged(info.damaged)
    target = open_store(options.target)
    count = removal.copy(opened, info.job, info.number, target)
    behind.start(target.location)
    name = f"{info.job}@{info.number}"
    say(
        f"{name} is in {target.location} already"
        if count < 0
        else f"copied {name}, {size(count)}, to {target.location}"
    )
    return 0
