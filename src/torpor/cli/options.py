"""The options that several commands share. How a command is parsed: parser.py."""

from __future__ import annotations

import os

TYPE_CHECKING = False  # as type checkers know it; the module `typing` is not imported for it
if TYPE_CHECKING:
    import argparse


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
