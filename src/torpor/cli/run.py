"""torpor run"""

from __future__ import annotations

import argparse

from torpor.cli.options import add_json, add_store, store
from torpor.model.errors import UsageError

PROGRAM = True
HELP = """Start a program as a job, so that it can be saved.

In the foreground it is as if torpor were not there: terminal, job control, signals and exit status are the
program's own. With --detach it runs without a terminal, its output goes to a log (torpor logs), and the
command returns as soon as the program has really been started."""
EXAMPLE = """  torpor run --name train -- python3 train.py --epochs 90
  torpor run --detach -- make -j4"""


def options(parser: argparse.ArgumentParser) -> None:
    parser.usage = "torpor run [--name NAME] [--detach] [--store FOLDER] -- PROGRAM [ARGUMENT ...]"
    parser.add_argument("--name", help="name of the job (default: the program's)")
    parser.add_argument("--detach", action="store_true", help="without a terminal; output goes to a log")
    add_store(parser)
    add_json(parser)


def command(options: argparse.Namespace) -> int:
    if not options.program:
        raise UsageError("run: which program? (torpor run -- PROGRAM ARGUMENTS)")
    from torpor.launch import run

    if not options.detach:
        status = run.run(options.program, options.name, store(options))
        from torpor.supervise.signals import exit_with

        return exit_with(status)
    started = run.run_detached(options.program, options.name, store(options))
    from torpor.cli.text import say, say_json

    if options.json:
        say_json(started._asdict())
    else:
        say(f"started {started.name}, pid {started.pid}, log {started.log}")
    return 0
