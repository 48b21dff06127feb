"""A job has crashed and is to be restarted: its supervisor becomes a fresh torpor, in the same process.

A restart wants a process without threads, and the old one may have some; and whoever waits for this process, a batch
system or a shell, is to go on waiting for it. So execve(2): the same pid, the same standard streams, and the job's
entry in the registry stays ours all the time.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from torpor.model import ourselves
from torpor.supervise import registry, state
from torpor.supervise.registry import Entry
from torpor.supervise.say import say

if TYPE_CHECKING:
    from torpor.supervise.part import Part

_ONCE = ("progress", "clone", "name", "upkeep", "notes", "tell", "stopped", "held")
"""Wishes that were meant for the first restart only, or that stand in the entry."""
_CODE = "from torpor.launch.again import main; sys.exit(main(sys.argv[1]))"


def become(
    entry: Entry, crashes: int, status: int, detached: bool, wishes: Mapping[str, Any], part: Part | None
) -> None:
    """Restart the job of `entry` in place of this process, which supervised it. Returns only if that is impossible.

    status: the wait status that it crashed with.  wishes: fields of `restart.Wishes`.  part: the first one, of a job
    over hosts.
    """
    plain = {key: value for key, value in wishes.items() if key not in _ONCE}
    told = {
        "folder": entry.folder, "crashes": crashes, "status": status, "detached": detached, "wishes": plain,
        "over": {"where": part.ssh, "engine": part.engine, "remote": part.remote} if part is not None else None,
    }  # fmt: skip
    sys.stdout.flush()
    try:
        os.execv(sys.executable, [*ourselves.command(_CODE), json.dumps(told)])
    except OSError as error:
        say(f"torpor: {entry.name} cannot be restarted: {sys.executable}: {error.strerror}")


def main(text: str) -> int:
    """The fresh process. Returns the exit status, that of the job; if it cannot be restarted, that of its crash."""
    from torpor.launch import restart, resume
    from torpor.model.errors import TorporError
    from torpor.supervise import upkeep
    from torpor.supervise.signals import exit_with

    told = json.loads(text)
    status, crashes = int(told["status"]), int(told["crashes"])
    wishes = restart.Wishes(**{**told["wishes"], "why": "crash"})
    entry = registry.read(told["folder"])
    if entry is None or entry.supervisor.pid != os.getpid():
        say("torpor: the job that crashed is not in the registry any more; it is not restarted")
        return exit_with(status)
    limit = upkeep.decode(entry.upkeep).crashes
    how = os.waitstatus_to_exitcode(status)
    ended = f"signal {upkeep.signal_name(-how)}" if how < 0 else f"status {how}"
    crash = f"{entry.name} has crashed ({ended}); restart {crashes} of {limit}"
    mine = entry
    # Blocked by the supervisor we were. What asks for a checkpoint waits for the one we shall be.
    reactions = upkeep.decode(entry.upkeep).on_signal
    signal.pthread_sigmask(signal.SIG_SETMASK, [number for number, action in reactions if action != "pass"])

    def attempt(which: str, notes: tuple[str, ...]) -> int:
        # Said once it runs again: the restart may cut back the file that our standard error is.
        # What was saved since has the paths of now.
        own = which == mine.origin
        moved, mapped = (tuple(wishes.map_path), tuple(wishes.map_host)) if own else ((), ())
        asked = wishes._replace(notes=(*notes, f"{crash}, from {which}"), map_path=moved, map_host=mapped)
        if told["over"] is not None:
            from torpor.launch import hosts

            return hosts.after_crash(which, mine, asked, crashes, **told["over"])
        return restart.after_crash(which, mine, asked, bool(told["detached"]), crashes)

    try:
        names, notes = resume.candidates(entry.store, entry.name)
        status = resume.first_whole(names or ([entry.origin] if entry.origin else []), notes, attempt)
    except TorporError as error:
        say(f"torpor: {crash}, which failed: {error}")
        state.record_end(entry.name, status)
        registry.release(entry)
    return exit_with(status)
