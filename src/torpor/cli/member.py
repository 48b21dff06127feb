"""torpor member: not for users. What it does is in launch/part.py."""

from __future__ import annotations

import argparse

HELP = """Be the supervisor of one part of a job over hosts. Started by torpor itself, over ssh."""
EXAMPLE = "  ssh HOST torpor member"


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--detach", action="store_true", help="go on by oneself once it runs")
    parser.add_argument("--lead", metavar="NONCE", help="be a command that is read from standard input (launch/far.py)")
    parser.add_argument("--tell", nargs=2, metavar=("NONCE", "SIGNAL"), help="send that command a signal")


def command(options: argparse.Namespace) -> int:
    if options.lead or options.tell:
        from torpor.cli.main import main
        from torpor.launch import far

        if options.lead:
            return far.be_led(main)
        far.tell(options.tell[0], int(options.tell[1]))
        return 0
    from torpor.launch.part import member
    from torpor.supervise.signals import exit_with

    return exit_with(member(options.detach))
