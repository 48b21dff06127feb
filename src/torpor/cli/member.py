"""torpor member: not for users. What it does is in launch/part.py."""

from __future__ import annotations

import argparse

HELP = """Be the supervisor of one part of a job over hosts. Started by torpor itself, over ssh."""
EXAMPLE = "  ssh HOST torpor member"


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--detach", action="store_true", help="go on by oneself once it runs")


def command(options: argparse.Namespace) -> int:
    from torpor.launch.part import member
    from torpor.supervise.signals import exit_with

    return exit_with(member(options.detach))
