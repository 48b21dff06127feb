"""torpor list"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from torpor.cli.options import add_json, add_store, store

if TYPE_CHECKING:
    from torpor.store import RootInfo

HELP = """List the checkpoints, of one job or of all. NEW is what a checkpoint added to the store; SIZE is
what it would take alone. TIER (of a tier:FAST,SLOW): `drained` is on both, `waiting` only on the fast one yet.
By whom it says it is signed is shown where that is nobody you trust; a restart verifies it. How many processes
there are in an encrypted one is not shown."""
EXAMPLE = """  torpor list
  torpor list train --json"""


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("job", nargs="?", metavar="JOB")
    add_store(parser)
    add_json(parser)


def remark(info: RootInfo) -> str:
    """What is special about a checkpoint, '' if nothing is."""
    from torpor.image import keys

    if info.damaged:
        return f"damaged: {info.damaged}"
    words = ["not signed"] if not info.signer else []
    if info.signer and not keys.trusted(bytes.fromhex(info.signer)):
        words.append(f"signed by {info.signer[:16]}")
    if info.recipients:
        mine = keys.own()
        ours = mine is not None and mine.public.box.hex() in info.recipients
        words.append("encrypted" if ours else "encrypted, not to you")
    return ", ".join(words)


def command(options: argparse.Namespace) -> int:
    from torpor.cli.text import complain, moment, say, say_json, size, table
    from torpor.model.errors import NotFound
    from torpor.store import behind, open_store

    opened = open_store(store(options) or None)
    found = opened.list(options.job)
    waiting = opened.waiting()
    if waiting:
        behind.start(opened.location)
        if why := behind.trouble(opened.location):
            complain(f"{opened.location}: could not be drained, is tried again: {why}")

    def state(job: str, number: int) -> str:
        return "waiting" if waiting and (job, number) in waiting else "drained"

    if options.json:
        say_json(
            [
                {
                    **info._asdict(),
                    "parts": [part.name for part in info.parts],
                    **({} if waiting is None else {"drained": (info.job, info.number) not in waiting}),
                }
                for info in found
            ]
        )
        return 0
    if not found:
        if options.job:
            raise NotFound(f"no checkpoint of {options.job}")
        say("no checkpoints")
        return 0
    rows = [
        [
            f"{info.job}@{info.number}",
            moment(info.time),
            size(info.bytes_total) if not info.damaged else "-",
            size(info.bytes_new) if not info.damaged else "-",
            str(info.label.get("processes", "-")),
            *(() if waiting is None else (state(info.job, info.number),)),
            remark(info),
        ]
        for info in found
    ]
    tier = () if waiting is None else ("TIER",)
    say(table(("CHECKPOINT", "TIME", "SIZE", "NEW", "PROCESSES", *tier, ""), rows, right=(2, 3, 4)))
    return 0
