"""Commands that are run around checkpoints and restarts of a job (`--on EVENT COMMAND`, docs/hooks.md).

They are part of what is done for a job unasked (upkeep.py), and so of its checkpoints; a command may add some for the
one thing that it does. A command is run by the process of torpor that makes the checkpoint or the restart, never inside
the job.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import TypeAlias

from torpor.model.duration import parse, short
from torpor.model.errors import HookFailed, UsageError

EVENTS = ("pre-checkpoint", "post-checkpoint", "pre-restart", "post-restart")

Hooks: TypeAlias = tuple[tuple[str, str], ...]
"""Event and command each, in the order in which they are run."""

_SHELL = ("/bin/sh", "-c", 'cd / && exec /bin/sh -c "$1"', "sh")


def parsed(given: Iterable[Sequence[str]]) -> Hooks:
    """Of (EVENT, COMMAND) as given on the command line. Raises UsageError."""
    found = []
    for event, command in given:
        if event not in EVENTS:
            raise UsageError(f"--on {event}: there is no such event; there are {', '.join(EVENTS)}")
        found.append((event, command))
    return tuple(found)


def changed(hooks: Hooks, given: Hooks) -> Hooks:
    """`hooks` with those that were given in place of all that there were for the same events; an empty command stands
    for none."""
    events = {event for event, _ in given}
    kept = tuple((event, command) for event, command in hooks if event not in events)
    return (*kept, *((event, command) for event, command in given if command))


def seconds() -> float:
    """How long a hook may take: $TORPOR_HOOK_LIMIT, or a minute. Raises UsageError."""
    return parse(os.environ.get("TORPOR_HOOK_LIMIT", "60s"))


def run(hooks: Hooks, event: str, told: Mapping[str, str], guard: AbstractContextManager[object] | None = None) -> None:
    """Run the commands of an event one after the other. told: what they find in their environment, as TORPOR_* each.
    guard: held meanwhile, so that nobody else waits for our children.

    Raises HookFailed after the first that fails or takes too long, with its whole process group ended."""
    for command in [command for each, command in hooks if each == event]:
        with guard or contextlib.nullcontext():
            how = _run(command, {"EVENT": event, **told})
        if how:
            raise HookFailed(f"the {event} hook {how}: {command}")


def _run(command: str, told: Mapping[str, str]) -> str:
    """Run one; '' or what went wrong. Raises UsageError."""
    limit = seconds()
    env = {**os.environ, **{f"TORPOR_{key}": value for key, value in told.items()}}
    actions = [(os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0), (os.POSIX_SPAWN_DUP2, 2, 1)]
    try:
        # A session of its own: what a terminal says to us is not for it. It does not block the signals that we block.
        pid = os.posix_spawn(
            _SHELL[0], [*_SHELL, command], env, file_actions=actions, setsid=True, setsigmask=(),
            setsigdef=(signal.SIGPIPE, signal.SIGXFSZ, signal.SIGINT, signal.SIGCHLD),
        )  # fmt: skip
    except OSError as error:
        return f"could not be run ({error.strerror})"
    late = not _ends(pid, limit)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)  # also what it left behind: it would count as one of the job's
    _, status = os.waitpid(pid, 0)
    if late:
        return f"took longer than {short(limit)} and was ended"
    if os.WIFSIGNALED(status):
        return f"was ended by signal {os.WTERMSIG(status)}"
    return f"ended with status {os.WEXITSTATUS(status)}" if status else ""


def _ends(pid: int, limit: float) -> bool:
    """Does a child end within `limit` seconds? It is not reaped."""
    fd = os.pidfd_open(pid)
    try:
        poll = select.poll()
        poll.register(fd, select.POLLIN)
        return bool(poll.poll(limit * 1000))
    finally:
        os.close(fd)
