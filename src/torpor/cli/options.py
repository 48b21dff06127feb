"""Parsing: one parser for the command that is asked for, and the options that several commands share.

The module of a command has HELP (a sentence or more), EXAMPLE, `options(parser)` and `command(options) ->
exit status`; one that takes a program's words after `--` has PROGRAM = True and finds them in
`options.program`; one that reads its words by itself has RAW = True and finds them in `options.words`.
"""

from __future__ import annotations

import argparse
import os
from types import ModuleType
from typing import NoReturn


class Parser(argparse.ArgumentParser):
    """As argparse, with our way of saying errors: one line."""

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


def add_store(parser: argparse.ArgumentParser) -> None:
    """--store"""
    parser.add_argument(
        "--store",
        metavar="STORE",
        help="where checkpoints are kept: a folder, stripe:DIR1,DIR2,..., tier:FAST,SLOW, s3://..., gs://..., "
        "az://..., or a name from the configuration file (default: $TORPOR_STORE, or what the configuration says, "
        "or torpor/store in your state folder)",
    )


def store(options: argparse.Namespace) -> str:
    """The store that was asked for, by --store or TORPOR_STORE, so that it means the same in another folder; ''
    for the default one."""
    from torpor.store.locations import absolute

    return absolute(options.store or os.environ.get("TORPOR_STORE", ""))


def add_json(parser: argparse.ArgumentParser) -> None:
    """--json"""
    parser.add_argument("--json", action="store_true", help="say it as JSON")


def add_untrusted(parser: argparse.ArgumentParser) -> None:
    """--untrusted"""
    parser.add_argument(
        "--untrusted",
        action="store_true",
        help="also if it is not signed, or by nobody whose key you trust (torpor key list)",
    )


def add_policy(parser: argparse.ArgumentParser, more: str = "") -> None:
    """--policy and --wait"""
    parser.add_argument(
        "--policy", metavar="FILE", default="",
        help="what it may do about services outside of it, beside what the policies of the system and the user say "
        f"(docs/policy.md){more}",
    )  # fmt: skip
    parser.add_argument(
        "--wait", metavar="TIME", help="how long to wait for licence seats: 90s, 10m; 0: not at all (default: as the "
        "policy says)",
    )  # fmt: skip


def policy(path: str) -> str:
    """The policy in a file, as a job has it; '' for none. Raises UsageError."""
    if not path:
        return ""
    from torpor.policy import files
    from torpor.supervise import terms

    return terms.encode([files.given(path)])


def wait(options: argparse.Namespace) -> float | None:
    """--wait in seconds; None if it was not given. Raises UsageError."""
    if options.wait is None:
        return None
    from torpor.model import duration

    return duration.parse(options.wait)


def add_map_path(parser: argparse.ArgumentParser) -> None:
    """--map-path"""
    parser.add_argument(
        "--map-path",
        action="append",
        default=[],
        metavar="OLD=NEW",
        help="look at NEW for the file or folder that was at OLD: program, libraries, open files, working directory; "
        "may be repeated",
    )


def add_files(parser: argparse.ArgumentParser, values: str) -> None:
    """--files"""
    parser.add_argument("--files", metavar="HOW", default="auto", help=values)


def add_compress(parser: argparse._ActionsContainer) -> None:
    """--compress"""
    parser.add_argument(
        "--compress",
        metavar="HOW",
        help="none, fast, zstd (smaller), or auto: by the speed of the store, so that saving is over soonest (default: "
        "$TORPOR_COMPRESS, or what the configuration says, or auto)",
    )
