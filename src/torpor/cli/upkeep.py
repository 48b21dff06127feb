"""The options of `run` and `restart` that say what is done for a job without anybody asking."""

from __future__ import annotations

from torpor.cli.options import add_compress
from torpor.model.errors import UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from typing import Any

USAGE = """[--every TIME] [--keep N] [--on-signal SIGNAL=ACTION] [--deadline TIME]
                  [--on-crash restart:N] [--stopped-status N] [--[no-]with-files] [--[no-]track]
                  [--compress HOW] [--on EVENT COMMAND] [--forget WHAT] [--service NAME=ADDR]"""


def add(parser: argparse.ArgumentParser) -> None:
    """Add them."""
    group = parser.add_argument_group(
        "what is done unasked", "remembered in every checkpoint; a restart goes on with it, but for what it is given"
    )
    group.add_argument("--every", metavar="TIME", help="save the job every 90s, 10m, 1h30m; 0: never (default)")
    group.add_argument("--keep", type=int, metavar="N", help="keep the newest N whole checkpoints; 0: all (default)")
    group.add_argument(
        "--on-signal", action="append", metavar="SIGNAL=ACTION",
        help="what torpor does when it gets this signal: checkpoint, checkpoint-stop (save the job and end it) or pass "
        "(pass it on to the job, the default); may be repeated",
    )  # fmt: skip
    group.add_argument(
        "--deadline", metavar="TIME",
        help="how long after a checkpoint-stop signal the job will be ended by force; if saving does not fit, the "
        "signal is passed on to the job; 0: not known (default)",
    )  # fmt: skip
    group.add_argument(
        "--on-crash", metavar="restart:N", help="restart the newest checkpoint if the job crashes, N times at most"
    )
    group.add_argument(
        "--stopped-status", type=int, metavar="N",
        help='exit status once the job was saved and ended: "run me again" (default: 75, EX_TEMPFAIL)',
    )  # fmt: skip
    add_on(group)
    group.add_argument(
        "--service", action="append", metavar="NAME=ADDR",
        help="what the outside address ADDR (numeric, with a port or without) is called in the ledger of a job that is "
        "watched; may be repeated (docs/watch.md)",
    )  # fmt: skip
    group = parser.add_argument_group("for every checkpoint of the job", "remembered likewise")
    group.add_argument("--with-files", action="yes-no", help="as torpor checkpoint --with-files (default: not)")
    group.add_argument(
        "--track", action="yes-no",
        help="have the kernel note which memory is written, so that the next checkpoint reads only that; costs the job "
        "a page fault for the first write to each page after a checkpoint (default: not)",
    )  # fmt: skip
    add_compress(group)
    add_forget(group)


def add_forget(parser: argparse._ActionsContainer) -> None:
    """--forget"""
    parser.add_argument(
        "--forget", action="append", metavar="WHAT",
        help="leave out the values of environment variables of that name (or pattern); dontdump: memory that the "
        "program has marked as not for core dumps; may be repeated; it is gone at a restart (docs/secrets.md)",
    )  # fmt: skip


def add_on(parser: argparse._ActionsContainer) -> None:
    """--on"""
    parser.add_argument(
        "--on", nargs=2, action="append", metavar=("EVENT", "COMMAND"),
        help="have a shell run COMMAND at pre-checkpoint, post-checkpoint, pre-restart or post-restart; a pre- hook "
        "that fails stops what was to be done; may be repeated; an empty COMMAND: none (docs/hooks.md)",
    )  # fmt: skip


def given(options: argparse.Namespace) -> dict[str, Any]:
    """What was asked for, by the fields of supervise/upkeep.py. Raises UsageError."""
    words = (
        "every",
        "keep",
        "on_signal",
        "deadline",
        "on_crash",
        "stopped_status",
        "with_files",
        "track",
        "compress",
        "on",
        "forget",
        "service",
    )
    if all(getattr(options, word) is None for word in words):
        return {}
    from torpor.model import duration
    from torpor.supervise import upkeep

    out: dict[str, Any] = {}
    for word in ("every", "deadline"):
        if (value := getattr(options, word)) is not None:
            out[word] = duration.parse(value)
    if options.keep is not None:
        out["keep"] = _within("--keep", options.keep, 0, 1_000_000)
    if options.on_signal is not None:
        out["on_signal"] = tuple(dict(upkeep.reaction(text) for text in options.on_signal).items())
    if options.on_crash is not None:
        word, _, number = options.on_crash.partition(":")
        if word != "restart" or not (number.isascii() and number.isdigit()):
            raise UsageError(f"--on-crash {options.on_crash}: say restart:N")
        out["crashes"] = int(number)
    if options.stopped_status is not None:
        out["stopped_status"] = _within("--stopped-status", options.stopped_status, 0, 255)
    if options.with_files is not None:
        out["with_files"] = options.with_files
    if options.track is not None:
        out["track"] = options.track
    if options.service is not None:
        from torpor.watch import names

        out["services"] = tuple(word for word in options.service if word)
        names.parse(out["services"])
    if options.forget is not None:
        out["forget"] = tuple(word for word in options.forget if word)
    if options.on is not None:
        from torpor.supervise import hooks

        out["hooks"] = hooks.parsed(options.on)
    if options.compress is not None:
        from torpor.store import settings

        out["compress"] = settings.compression(options.compress)
    return out


def encoded(options: argparse.Namespace) -> str:
    """The same as supervise/upkeep.py writes it, on top of the defaults; '' for nothing."""
    told = given(options)
    if not told:
        return ""
    from torpor.supervise import upkeep

    return upkeep.encode(upkeep.changed(upkeep.Upkeep(), told))


def _within(option: str, value: int, low: int, high: int) -> int:
    if not low <= value <= high:
        raise UsageError(f"{option} {value}: from {low} to {high}")
    return value
