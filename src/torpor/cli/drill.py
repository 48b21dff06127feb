"""torpor drill"""

from __future__ import annotations

import argparse

from torpor.cli.options import add_json, add_map_path, add_store, add_untrusted, store

HELP = """Would a checkpoint start, here and now? It is restarted to the moment before the first instruction, in
namespaces of its own, and thrown away. Every chunk is read and verified; CPU features, files, addresses, locks
and room are looked at. The job may be running; nothing of it is touched, and nothing is left behind.

Exit status: 0 it would start; 1 it would not, or no drill can be held here; 2 there is no such checkpoint. Each
reason is a line. Made for a timer (examples/torpor-drill@.timer)."""
EXAMPLE = """  torpor drill train
  torpor drill train@3 --store s3://bucket/checkpoints --json"""


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", nargs="?", metavar="CHECKPOINT", help="NAME, NAME@3, NAME@-1")
    parser.add_argument(
        "--changed-files",
        choices=("refuse", "accept"),
        default="refuse",
        help="what a restart would be told to do if a file that was only read has changed",
    )
    add_map_path(parser)
    add_untrusted(parser)
    add_store(parser)
    add_json(parser)


def command(options: argparse.Namespace) -> int:
    from torpor.cli.progress import Progress
    from torpor.launch import drill

    progress = Progress()
    wishes = drill.Wishes(options.changed_files, options.untrusted, tuple(options.map_path), progress)
    try:
        done = drill.drill(options.checkpoint, store(options), wishes)
    finally:
        progress.clear()
    from torpor.cli.text import complain, duration, plural, say, say_json, size

    if options.json:
        say_json({"ok": done.ok, **done._asdict()})
        return 0 if done.ok else 1
    for line in done.notes:
        complain(line)
    for line in done.failures:
        complain(f"{done.checkpoint} would not start: {line}")
    if not done.ok:
        return 1
    what = [
        plural(done.processes, "process", "processes"), plural(done.threads, "thread"),
        plural(done.objects, "open file"), plural(done.files, "file"), plural(done.addresses, "address", "addresses"),
        f"{plural(done.chunks, 'chunk')} ({size(done.bytes)})",
    ]  # fmt: skip
    say(f"{done.checkpoint} would start: {', '.join(what)}, in {duration(done.seconds)}")
    return 0
