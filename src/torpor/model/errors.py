"""What can go wrong, said so that a user can act on it.

Every error that torpor raises on purpose is a `TorporError`; a command prints its text as one line and exits with
`status`. Anything else that escapes is a defect.
"""

from __future__ import annotations

from collections.abc import Iterable

from torpor.named_tuple import NamedTuple


class TorporError(Exception):
    """Something was attempted and failed, or was refused.

    `status` is the exit status of the command: 1 if something was attempted and failed or was refused, 2 if nothing
    was attempted because the request itself could not be understood (no such job, no such checkpoint, bad option).
    """

    status = 1


class UsageError(TorporError):
    """The request does not make sense: nothing of that name, a contradiction, an option with a bad value."""

    status = 2


class Unwatched(TorporError):
    """The job cannot be watched; the text says why and what helps."""


class Refusal(NamedTuple):
    """One thing that stands in the way of a checkpoint or a restart.

    pid: the process as the job's user sees it on the host, or 0 where the reason is not in one process.
    process: its name.  thing: what it is, in a few words.  way_out: what the user can do about it.
    """

    pid: int
    process: str
    thing: str
    way_out: str

    def __str__(self) -> str:
        who = f"process {self.pid} ({self.process}): " if self.pid else ""
        return f"{who}{self.thing}; {self.way_out}" if self.way_out else f"{who}{self.thing}"


class Refused(TorporError):
    """The checkpoint or restart was refused before anything was changed. shown: the command that shows all of it."""

    def __init__(self, refusals: Iterable[Refusal], what: str = "cannot save", shown: str = "torpor check") -> None:
        self.refusals = tuple(refusals)
        more = f" (and {len(self.refusals) - 1} more: {shown})" if len(self.refusals) > 1 else ""
        super().__init__(f"{what}: {self.refusals[0]}{more}")


class NotNow(Refused):
    """Refused for something that is most likely over in a moment: worth another attempt.

    waits_for: the processes (host pids) that have to run for it to be over.
    """

    def __init__(self, refusals: Iterable[Refusal], waits_for: Iterable[int] = ()) -> None:
        super().__init__(refusals)
        self.waits_for = frozenset(waits_for)


class CheckpointFailed(TorporError):
    """A checkpoint did not come about; the job goes on and earlier checkpoints are whole."""


class RestartFailed(TorporError):
    """A restart did not come about; nothing of it is left."""


class HookFailed(TorporError):
    """A command that was to be run before a checkpoint or a restart failed, so that this was not begun."""


class Damaged(TorporError):
    """Something in the store is missing, truncated, altered or not ours."""


class Untrusted(TorporError):
    """A checkpoint is not signed, or by nobody who is trusted here."""


class Sealed(TorporError):
    """A checkpoint is encrypted, and not to us."""


class NotFound(UsageError):
    """There is no job or checkpoint of that name."""
