"""Parsing by argparse: one parser for the command that is asked for.

The module of a command has HELP (a sentence or more), EXAMPLE, `options(parser)` and `command(options) ->
exit status`; one that takes a program's words after `--` has PROGRAM = True and finds them in
`options.program`; one that reads its words by itself has RAW = True and finds them in `options.words`; one
that is in a hurry has QUICK = True, and argparse is loaded only for what quick.py does not understand.

An action of our own: "yes-no", for --this and --no-this.
"""

from __future__ import annotations

import argparse
import os
from types import ModuleType
from typing import Any, NoReturn


class Parser(argparse.ArgumentParser):
    """As argparse, with our way of saying errors: one line."""

    def __init__(self, *words: Any, **named: Any) -> None:
        super().__init__(*words, **named)
        self.register("action", "yes-no", argparse.BooleanOptionalAction)

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"torpor: {message} ({self.prog} --help)\n")


def _formatter(prog: str) -> argparse.HelpFormatter:
    """As wide as the terminal. Left to find that out by itself, argparse imports half of the compression
    modules."""
    try:
        width = int(os.environ.get("COLUMNS", "")) or 80
    except ValueError:
        try:
            width = os.get_terminal_size().columns
        except OSError:
            width = 80
    return argparse.RawDescriptionHelpFormatter(prog, width=min(width, 110) - 2)


def describe(parser: argparse.ArgumentParser, module: ModuleType) -> None:
    """Give a parser the command's text and options."""
    parser.description = module.HELP
    parser.epilog = f"example:\n{module.EXAMPLE.rstrip()}"
    parser.formatter_class = _formatter
    module.options(parser)


def parse(name: str, module: ModuleType, words: list[str]) -> argparse.Namespace:
    """The options of a command line. Ends the process (status 2) for one that makes no sense."""
    if getattr(module, "RAW", False) and words[:1] not in (["-h"], ["--help"]):
        return argparse.Namespace(words=words)
    parser = Parser(prog=f"torpor {name}", allow_abbrev=False, formatter_class=_formatter)
    describe(parser, module)
    if not getattr(module, "PROGRAM", False):
        return parser.parse_intermixed_args(words)
    # Split here and not by argparse, whose treatment of `--` differs between versions.
    at = _program_at(parser, words)
    options = parser.parse_args(words[:at])
    options.program = words[at + 1 :] if words[at : at + 1] == ["--"] else words[at:]
    return options


def _program_at(parser: argparse.ArgumentParser, words: list[str]) -> int:
    """Where our own options end: at `--`, or at the first word that is neither an option nor an option's
    value. (A value that may be left out is given with `=`.)"""
    values = {
        flag: action.nargs if isinstance(action.nargs, int) else 1
        for action in parser._actions if action.nargs not in (0, "?") and action.option_strings
        for flag in action.option_strings
    }  # fmt: skip
    at = 0
    while at < len(words):
        word = words[at]
        if word == "--" or not word.startswith("-"):
            return at
        at += 1 + values.get(word, 0)
    return len(words)
