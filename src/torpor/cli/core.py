"""torpor core"""

from __future__ import annotations

import argparse

from torpor.cli.options import add_json, add_store, add_untrusted, store

HELP = """Write a saved process as a core file, which a debugger opens: gdb PROGRAM FILE. Nothing is restarted.

Threads, registers, memory and the list of mapped files are there. What comes unchanged from files (code) is left
to the files, unless the checkpoint has copies of them (--with-files)."""
EXAMPLE = """  torpor core train -o train.core
  torpor core train@3 --pid 4712 -o worker.core"""


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", nargs="?", metavar="CHECKPOINT", help="NAME, NAME@3, NAME@-1")
    parser.add_argument("-o", "--output", required=True, metavar="FILE", help="the core file; it must not exist yet")
    parser.add_argument(
        "--pid", type=int, default=0, help="which process, as the job sees it (torpor inspect; default: the first one)"
    )
    parser.add_argument("--part", default="", metavar="PART", help="of a job over hosts: one host's part of it")
    add_untrusted(parser)
    add_store(parser)
    add_json(parser)


def command(options: argparse.Namespace) -> int:
    from torpor.cli.text import plural, say, say_json, size
    from torpor.launch.core import core

    made = core(
        options.checkpoint, store(options) or None, options.output, options.pid, options.untrusted, options.part
    )
    if options.json:
        say_json(made._asdict())
        return 0
    what = f"process {made.pid} of {made.checkpoint}, {plural(made.threads, 'thread')}"
    say(f"wrote {made.path}: {what}, {size(made.bytes)} (gdb {made.program} {made.path})")
    return 0
