"""torpor watch"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torpor.supervise.job import Job

HELP = """Write down from now on which outside addresses a running job asks for, as torpor run --watch does from the
beginning (docs/watch.md). All of the job stands still for a moment.

torpor inspect JOB --services shows them, and says that what the job asked for before is not known."""
EXAMPLE = """  torpor watch train
  torpor inspect train --services"""


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("job", nargs="?", metavar="JOB")
    parser.add_argument(
        "--sendmsg", action="store_true", help="also addresses that only sendmsg names, which makes that call slow"
    )
    add_no_new_privs(parser)


def add_no_new_privs(parser: argparse.ArgumentParser) -> None:
    """--no-new-privs"""
    parser.add_argument(
        "--no-new-privs",
        action="store_true",
        help="without root: it is all right that set-user-ID programs give the job no privileges any more",
    )


def command(options: argparse.Namespace) -> int:
    import torpor

    begin(torpor.attach(options.job), "sendmsg" if options.sendmsg else "names", options.no_new_privs)
    return 0


def begin(job: Job, how: str, no_new_privs: bool) -> None:
    """Have a job watched, and say so."""
    from torpor.cli.text import complain, plural, say

    done = job.watch(how, no_new_privs=no_new_privs)
    for note in done.notes:
        complain(note)
    say(f"{job.name}: {plural(done.processes, 'process', 'processes')} watched from now on")
