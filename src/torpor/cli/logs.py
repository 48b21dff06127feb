"""torpor logs"""

from __future__ import annotations

import argparse

from torpor.model.errors import NotFound

HELP = """Show what a detached job has written, also after it has ended."""
EXAMPLE = """  torpor logs train
  torpor logs -f train"""


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("job", nargs="?", metavar="JOB")
    parser.add_argument("-f", "--follow", action="store_true", help="go on until the job ends")


def command(options: argparse.Namespace) -> int:
    import os

    from torpor.cli.follow import Follower
    from torpor.supervise import registry, state

    running = registry.running(options.job) if options.job else registry.find(None)
    if running is not None:
        path = running.log
        if not path:
            raise NotFound(f"{running.name} runs in a terminal and has no log")
    else:
        path = f"{state.folder(registry.check_name(options.job))}/log"
        if not os.path.exists(path):
            raise NotFound(f"no job named {options.job} is running, and there is no log of one")
    with Follower(path) as follower:
        follower.copy()
        while options.follow and running is not None and running.root.alive:
            follower.pause()
            follower.copy()
        follower.copy()
    return 0
