"""torpor check"""

from __future__ import annotations

import argparse

from torpor.cli.options import add_json

HELP = """Could a job be saved, how large would it be, and what stands in the way? The job is not touched.
Exit status 0 if it could, 1 if not."""
EXAMPLE = """  torpor check train
  torpor check 4711"""


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("job", nargs="?", metavar="JOB|PID")
    add_json(parser)


def command(options: argparse.Namespace) -> int:
    import torpor
    from torpor.cli.text import plural, say, say_json, size, table
    from torpor.supervise import registry

    what: str | int | None = options.job
    if isinstance(what, str) and what.isdigit() and registry.running(what) is None:
        what = int(what)
    checked = torpor.check(what)
    status = 1 if checked.refusals else 0
    if options.json:
        say_json({
            "refusals": list(checked.refusals),
            "processes": [process._asdict() for process in checked.processes],
            "bytes": checked.bytes,
        })  # fmt: skip
        return status
    rows = [[str(p.pid), str(p.vpid), p.comm, str(p.threads), size(p.bytes)] for p in checked.processes]
    if rows:
        say(table(("HOST PID", "PID", "PROCESS", "THREADS", "MEMORY"), rows, right=(0, 1, 3, 4)))
    for refusal in checked.refusals:
        say(f"in the way: {refusal}")
    total = f"{plural(len(rows), 'process', 'processes')}, {size(checked.bytes)}"
    say(f"could not be saved: {total}" if checked.refusals else f"could be saved: {total}")
    return status
