"""torpor verify"""

from __future__ import annotations

import argparse

from torpor.cli.options import add_store, store

HELP = """Look whether a checkpoint, or every one, is whole: its root and manifest are read, and all it needs has to be
there. With --deep every chunk is read and compared with its name. Of a whole store the index is looked at too,
and with --deep the tables that packs have of themselves: no checkpoint needs them. Exit status 1: something
is damaged."""
EXAMPLE = """  torpor verify
  torpor verify train@3 --deep"""


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", nargs="?", metavar="CHECKPOINT")
    parser.add_argument("--deep", action="store_true", help="read everything")
    add_store(parser)


def command(options: argparse.Namespace) -> int:
    from torpor.cli.text import complain, plural, say, size
    from torpor.image.seal import Opening
    from torpor.model.errors import Damaged, TorporError
    from torpor.store import open_store

    opened = open_store(store(options) or None)
    found = [opened.resolve(options.checkpoint)] if options.checkpoint else opened.list()
    bad = 0
    for info in found:
        name = f"{info.job}@{info.number}"
        try:
            if info.damaged:
                raise Damaged(info.damaged)
            for part in (None, *info.parts):
                load = opened.load(info.job, info.number, Opening(untrusted=True), part)
                try:
                    load.look()
                    for ref in load.refs if options.deep else ():
                        load.get(ref)
                finally:
                    load.close()
            say(f"{name} is whole ({size(info.bytes_total)}{', all of it read' if options.deep else ''})")
        except TorporError as error:
            bad += 1
            complain(f"{name}: {error}")
    beside = [] if options.checkpoint else opened.damage_beside(options.deep)
    for damage in beside:
        complain(damage)
    if not found:
        say("no checkpoints")
    if bad:
        complain(f"{plural(bad, 'checkpoint')} of {len(found)} cannot be restarted")
    return 1 if bad or beside else 0
