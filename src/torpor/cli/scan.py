"""torpor scan"""

from __future__ import annotations

import argparse

from torpor.cli.options import add_json, add_store, add_untrusted, store

HELP = """Look for secrets in a checkpoint: private keys, tokens, passwords, in memory, environment and saved files.
Says which process has them, where and how many; never what they are.

Exit status: 0 nothing was found, 3 something was, 1 it could not be read, 2 there is no such checkpoint. What is
found was found by its looks: there may be more."""
EXAMPLE = """  torpor scan train
  torpor scan train@3 --json"""


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", nargs="?", metavar="CHECKPOINT", help="NAME, NAME@3, NAME@-1")
    parser.add_argument("--part", default="", metavar="PART", help="of a job over hosts: one host's part only")
    add_untrusted(parser)
    add_store(parser)
    add_json(parser)


def command(options: argparse.Namespace) -> int:
    from torpor.cli.progress import Progress
    from torpor.cli.text import plural, say, say_json, table
    from torpor.launch.scan import scan

    progress = Progress()
    try:
        name, found = scan(
            options.checkpoint, store(options) or None, options.untrusted, options.part,
            lambda done, _: progress(f"looking, {plural(done, 'chunk')}", 0, 0),
        )  # fmt: skip
    finally:
        progress.clear()
    if options.json:
        say_json({"name": name, "found": [{"part": part, **finding._asdict()} for part, finding in found]})
        return 3 if found else 0
    if not found:
        say(f"{name}: nothing was found that looks like a secret")
        return 0
    rows = [
        [
            f"{part}: {each.pid}" if part else str(each.pid or "-"),
            each.comm or "-",
            each.region,
            each.kind,
            str(each.times),
        ]
        for part, each in found
    ]
    say(f"{name} holds what looks like secrets:")
    say(table(("PID", "NAME", "WHERE", "KIND", "COUNT"), rows, right=(4,)))
    return 3
