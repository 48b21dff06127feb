"""torpor attach"""

from __future__ import annotations

import argparse

from torpor.cli import upkeep
from torpor.cli.watch import add_no_new_privs, begin
from torpor.model.errors import UsageError

HELP = """Follow the output of a detached job until it ends, and end as it did. Ctrl-C ends only the
following; the job goes on.

With --on nothing is followed: the job, which may have a terminal, gets hooks for all checkpoints and restarts
from now on, in place of those that it had for the same events (docs/hooks.md)."""
EXAMPLE = """  torpor attach train
  torpor attach train --on pre-checkpoint 'systemctl --user stop indexer'"""


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("job", nargs="?", metavar="JOB")
    parser.add_argument("--all", action="store_true", help="from the beginning of the log")
    upkeep.add_on(parser)
    parser.add_argument(
        "--watch", nargs="?", choices=["connect", "names", "sendmsg"], const="names",
        help="as torpor watch, without following",
    )  # fmt: skip
    add_no_new_privs(parser)


def command(options: argparse.Namespace) -> int:
    import torpor
    from torpor.cli.follow import Follower
    from torpor.cli.text import complain
    from torpor.cli.wait import in_background
    from torpor.supervise.signals import exit_with

    job = torpor.attach(options.job)
    if options.on:
        job.on(options.on)
    if options.watch:
        begin(job, options.watch, options.no_new_privs)
    if options.on or options.watch:
        return 0
    if not job.log:
        raise UsageError(f"{job.name} runs in the foreground of a terminal: there is nothing to attach to")
    try:
        with Follower(job.log, at_end=not options.all) as follower:
            end = in_background(job)
            while not end.done:
                follower.copy()
                follower.pause()
            follower.copy()
            return exit_with(end.status())
    except KeyboardInterrupt:
        complain(f"detached from {job.name}, which goes on (torpor attach {job.name})")
        return 0
