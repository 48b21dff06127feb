"""torpor inspect"""

from __future__ import annotations

import argparse

from torpor.cli.options import add_json, add_store

HELP = """Show what a checkpoint holds."""
EXAMPLE = """  torpor inspect train"""


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", nargs="?", metavar="CHECKPOINT")
    add_store(parser)
    add_json(parser)


def command(options: argparse.Namespace) -> int:
    return 1
