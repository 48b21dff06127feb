"""torpor stop"""

from __future__ import annotations

import argparse

HELP = """End a job: every process of it gets SIGTERM, and SIGKILL if it has not ended after the grace period.
To save it first: torpor checkpoint --stop."""
EXAMPLE = """  torpor stop train
  torpor stop train --signal INT --grace 60"""


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("job", nargs="?", metavar="JOB")
    parser.add_argument("--signal", default="TERM", metavar="NAME", help="the signal to send first (default: TERM)")
    parser.add_argument("--grace", type=float, default=10.0, metavar="SECONDS", help="time until SIGKILL (default: 10)")


def command(options: argparse.Namespace) -> int:
    import torpor
    from torpor.cli.text import say
    from torpor.supervise.upkeep import signal_number

    number = signal_number(options.signal)
    job = torpor.attach(options.job)
    killed = job.stop(number, options.grace)
    say(f"stopped {job.name}" + (f" (killed after {options.grace:g} s)" if killed else ""))
    return 0
