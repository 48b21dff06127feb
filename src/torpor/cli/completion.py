"""torpor completion"""

from __future__ import annotations

import argparse

from torpor.model.errors import TorporError

HELP = """Print a script that completes torpor's commands and options in a shell. Needs the package shtab."""
EXAMPLE = """  torpor completion bash > ~/.local/share/bash-completion/completions/torpor"""


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("shell", choices=("bash", "zsh", "tcsh"), metavar="SHELL", help="bash, zsh or tcsh")


def command(options: argparse.Namespace) -> int:
    try:
        import shtab  # type: ignore[import-not-found,unused-ignore]
    except ImportError:
        raise TorporError("completion needs shtab: pip install 'torpor[completion]'") from None
    from torpor.cli.text import say

    say(shtab.complete(everything(), options.shell))
    return 0


def everything() -> argparse.ArgumentParser:
    """A parser of all commands at once; only this command needs it."""
    from torpor.cli.main import COMMANDS, load
    from torpor.cli.parser import Parser, describe

    parser = Parser(prog="torpor")
    parser.add_argument("--version", action="store_true", help="show the version")
    commands = parser.add_subparsers()
    for name, what in COMMANDS.items():
        try:
            module = load(name)
        except ImportError:
            continue
        describe(commands.add_parser(name, help=what), module)
    return parser
