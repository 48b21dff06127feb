"""torpor checkpoint"""

from __future__ import annotations

import argparse

from torpor.cli import upkeep
from torpor.cli.options import add_compress, add_files, add_json, add_store, store
from torpor.model.errors import UsageError

HELP = """Save a job; it goes on running, unless --stop is given.

JOB may be left out where only one is running. With --pid, the tree of a process that was never started under
torpor is saved."""
EXAMPLE = """  torpor checkpoint train
  torpor checkpoint --stop
  torpor checkpoint --pid 4711 --name simulation"""


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("job", nargs="?", metavar="JOB")
    parser.add_argument("--stop", action="store_true", help="end the job once it is saved")
    parser.add_argument("--pid", type=int, help="save the tree of this process")
    parser.add_argument("--name", help="save it as the next checkpoint of this name (default: the job's)")
    add_files(
        parser,
        "auto, keep: contents of files are not saved; save: those of files that the job has open for writing are; "
        "save:PATH,...: those of these files, and of all that is in these folders",
    )
    parser.add_argument(
        "--with-files",
        action="store_true",
        help="save the program file, its libraries and all that it maps or has open for reading, too: a machine that "
        "lacks them can restart the job",
    )
    add_compress(parser)
    upkeep.add_on(parser)
    upkeep.add_forget(parser)
    parser.add_argument(
        "--encrypt-to",
        action="append",
        metavar="KEY",
        help="encrypt it so that only this key can read it: self, a name (torpor key list), a file or a key written "
        "out; may be repeated (default: $TORPOR_ENCRYPT_TO, separated by commas, or encrypt_to in the "
        "configuration file; without, it is not encrypted)",
    )
    add_store(parser)
    add_json(parser)


def command(options: argparse.Namespace) -> int:
    if options.job and options.pid is not None:
        raise UsageError("checkpoint: a job or --pid, not both")
    import torpor
    from torpor.cli.progress import Progress
    from torpor.cli.text import complain, duration, say, say_json, size

    progress = Progress()
    try:
        saved = torpor.checkpoint(
            options.job if options.pid is None else options.pid,
            stop=options.stop,
            files=options.files,
            with_files=options.with_files,
            compress=options.compress,
            store=store(options),
            name=options.name,
            encrypt_to=options.encrypt_to,
            on=options.on,
            forget=options.forget,
            progress=progress,
        )
    finally:
        progress.clear()
    if options.json:
        say_json(saved._asdict())
        return 0
    for note in saved.notes:
        complain(note)
    times = f"{duration(saved.seconds)} (paused {duration(saved.pause_seconds)})"
    say(f"saved {saved.name}, {size(saved.bytes_total)} in {times}, in {saved.location}")
    return 0
