"""Who drains a tier, and when: a process of its own, that nobody waits for.

It is started after each save, and by every command that finds something waiting; one at a time works on a tier, and
at most one more waits for it to end. The supervisor of a running job has no processes beside the job's, so it drains
in a thread; if it ends before that is done, the next command goes on.

What became of it stands in a file beside its locks, so that a list can say it.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import sys
import time

from torpor.model.errors import TorporError
from torpor.store import locations
from torpor.store.drain import drain
from torpor.store.folder import make_folders
from torpor.store.tier import Tier, find

PAUSES = (1, 2, 5, 15, 30, 60, 120, 300)
"""Seconds between attempts where the slow place does not answer. After the last one it is left to the next command."""


def start(location: str) -> None:
    """Start to drain the tier at `location` in a process of its own; nothing happens if it is none. Never raises."""
    if not is_tier(location):
        return
    home = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    code = f"import sys; sys.path.insert(0, {home!r}); from torpor.store.behind import main; main()"
    null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
    try:
        os.posix_spawn(
            sys.executable,
            [sys.executable, "-c", code, location],
            os.environ,
            setsid=True,
            file_actions=[(os.POSIX_SPAWN_DUP2, null, number) for number in (0, 1, 2)],
        )
    except OSError:
        pass  # the next command tries again
    finally:
        os.close(null)


def start_thread(location: str) -> None:
    """The same in a thread of this process."""
    if is_tier(location):
        import threading

        threading.Thread(target=run, args=(location, ()), name="torpor-drain", daemon=True).start()


def is_tier(location: str) -> bool:
    """Whether a location is a tier, also by a name of the configuration. Raises UsageError."""
    return _tier(location) is not None


def trouble(location: str) -> str:
    """What kept the last drain from its end; '' if nothing did."""
    try:
        with open(f"{_stem(location)}.state", encoding="utf-8") as file:
            return str(json.load(file)["error"])
    except (OSError, ValueError, KeyError):
        return ""


def run(location: str, pauses: tuple[int, ...] = PAUSES) -> None:
    """Drain until nothing waits. Returns at once if another one is about to start."""
    stem = _stem(location)
    try:
        make_folders(os.path.dirname(stem))
        turn = os.open(f"{stem}.turn", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        work = os.open(f"{stem}.work", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError:
        return
    try:
        try:
            fcntl.flock(turn, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return  # whoever waits has not looked yet what there is
        fcntl.flock(work, fcntl.LOCK_EX)
        fcntl.flock(turn, fcntl.LOCK_UN)
        for pause in (*pauses, 0):
            tier = _tier(location)
            if tier is None:
                return
            try:
                while tier.waiting():
                    drain(tier)
                _note(stem, "")
                return
            except (OSError, TorporError) as error:
                _note(stem, getattr(error, "strerror", None) or str(error))
            finally:
                tier.close()
            time.sleep(pause)
    finally:
        os.close(turn)
        os.close(work)


def main() -> None:
    """The process."""
    run(sys.argv[1])


def _tier(location: str) -> Tier | None:
    from torpor.store.locations import split

    if not location or (split(location)[0] not in ("", "tier")):
        return None
    if not split(location)[0] and "/" in location:
        return None
    return find(locations.open_backend(location))


def _stem(location: str) -> str:
    state = os.environ.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state")
    return f"{state}/torpor/drains/{hashlib.sha256(os.fsencode(location)).hexdigest()[:24]}"


def _note(stem: str, error: str) -> None:
    temporary = f"{stem}.{os.getpid()}"
    try:
        with open(temporary, "w", encoding="utf-8") as file:
            json.dump({"error": error, "time": time.time()}, file)
        os.replace(temporary, f"{stem}.state")
    except OSError:
        pass
