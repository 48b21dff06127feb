"""torpor wait"""

from __future__ import annotations

import argparse

from torpor.model.errors import NotFound, TorporError
from torpor.supervise.job import Job

HELP = """Wait until a job has ended, and end as it did: with its exit status, or of the signal that killed
it."""
EXAMPLE = """  torpor wait train && echo done"""


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("job", nargs="?", metavar="JOB")


def command(options: argparse.Namespace) -> int:
    import torpor
    from torpor.supervise import state
    from torpor.supervise.signals import exit_with

    try:
        job = torpor.attach(options.job)
    except NotFound:
        over = state.ended(options.job) if options.job else None
        if over is None:
            raise
        return exit_with(over.status)
    return exit_with(job.wait_status())


class End:
    """The end of a job, waited for by a thread."""

    def __init__(self) -> None:
        self.done = False
        self._status = 0
        self._error: TorporError | None = None

    def wait(self, job: Job) -> None:
        try:
            self._status = job.wait_status()
        except TorporError as error:
            self._error = error
        finally:
            self.done = True

    def status(self) -> int:
        """The wait status. Raises TorporError where nobody knows it."""
        if self._error is not None:
            raise self._error
        return self._status


def in_background(job: Job) -> End:
    """Begin to wait for a job."""
    import threading

    end = End()
    threading.Thread(target=end.wait, args=(job,), daemon=True).start()
    return end
