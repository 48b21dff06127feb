"""torpor jobs"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from torpor.cli.options import add_json

if TYPE_CHECKING:
    from torpor.supervise.job import Job

HELP = """List the running jobs: name, state, pid of the first process as the job sees it and on the host,
processes, start, newest checkpoint of this run. What dead supervisors left behind is cleaned up."""
EXAMPLE = """  torpor jobs
  torpor jobs --json"""


def options(parser: argparse.ArgumentParser) -> None:
    add_json(parser)


def command(options: argparse.Namespace) -> int:
    import torpor
    from torpor.cli.text import moment, say, say_json, table
    from torpor.supervise import upkeep

    running = [(job, job.processes()) for job in torpor.jobs()]
    if options.json:
        say_json([
            {
                "name": job.name,
                "state": job.state,
                "pid": job.pid,
                "pid_inside": job.pid_inside,
                "processes": [member._asdict() for member in processes],
                "supervisor": job.entry.supervisor.pid,
                "started": job.entry.started,
                "command": list(job.entry.argv),
                "restarted_from": job.entry.origin,
                "saved": job.entry.saved,
                "saved_at": job.entry.saved_at,
                "arriving": job.arriving._asdict() if job.arriving is not None else None,
                "store": job.entry.store,
                "upkeep": upkeep.options(upkeep.decode(job.entry.upkeep)),
                "log": job.log,
            }
            for job, processes in running
        ])  # fmt: skip
        return 0
    if not running:
        say("no job is running")
        return 0
    rows = [
        [
            job.name,
            _state(job),
            str(job.pid_inside or "-"),
            str(job.pid or "-"),
            str(len(processes)),
            moment(job.entry.started),
            f"{job.entry.saved} {moment(job.entry.saved_at)}" if job.entry.saved else "-",
        ]
        for job, processes in running
    ]
    say(table(("NAME", "STATE", "PID", "HOST PID", "PROCESSES", "STARTED", "SAVED"), rows, right=(2, 3, 4)))
    for job, _ in running:
        if (arriving := job.arriving) is not None and arriving.why:
            say(f"{job.name}: memory does not come, and is waited for: {arriving.why}")
    return 0


def _state(job: Job) -> str:
    """Its state, and how much of its memory is there yet (`restart --lazy`)."""
    arriving = job.arriving
    if arriving is None:
        return job.state
    return f"{job.state}, {min(99, 100 * arriving.done // max(1, arriving.total))} % of its memory"
