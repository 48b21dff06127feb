"""The log of what was done: one line of JSON for every checkpoint, restart, drill, removal and copy, also for those
that were refused or failed.

`$TORPOR_LOG`, else `log.jsonl` in `${XDG_STATE_HOME:-~/.local/state}/torpor`; 0600, only ever appended to. A line goes
out in one write(2) on a descriptor with O_APPEND, which the kernel does in one piece on a local filesystem: lines of
processes that write at the same time do not mix. docs/batch.md tells the fields.

It never stands in the way: where it cannot be written, that is said once, and the work goes on.
"""

from __future__ import annotations

import json
import os
import time
from typing import Any

from torpor.model.errors import Refused, TorporError
from torpor.supervise import state
from torpor.supervise.say import say

_complained = False


def path() -> str:
    """Where the log is, or will be."""
    return os.environ.get("TORPOR_LOG") or f"{state.base()}/log.jsonl"


def record(event: str, error: BaseException | None = None, **fields: Any) -> None:
    """Append a line. event: 'checkpoint', 'part', 'restart', 'drill', 'remove', 'prune', 'copy', 'crash'.  error: what
    it came to instead, if it was not done.  fields: numbers and strings; empty ones are left out. Never raises."""
    now = time.time()
    line: dict[str, Any] = {
        "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now)) + f".{int(now * 1000) % 1000:03}Z",
        "event": event,
        "outcome": "done" if error is None else "refused" if isinstance(error, Refused) else "failed",
        "user": _user(),
        "uid": os.geteuid(),
        "host": os.uname().nodename,
        "pid": os.getpid(),
    }
    line.update((key, value) for key, value in fields.items() if value not in ("", None))
    if error is not None:
        line["reason"] = str(error) if isinstance(error, TorporError) else f"{type(error).__name__}: {error}"
    where = path()
    try:
        _append(where, json.dumps(line).encode() + b"\n")
    except OSError as trouble:
        _complain(f"torpor: the log {where} cannot be written: {trouble.strerror}")


def _append(where: str, data: bytes) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK
    try:
        fd = os.open(where, flags, 0o600)
    except FileNotFoundError:
        os.makedirs(os.path.dirname(where) or ".", 0o700, exist_ok=True)
        fd = os.open(where, flags, 0o600)
    try:
        written = os.write(fd, data)
        if written < len(data):  # the disk is full: what comes next must at least begin on a line of its own
            os.write(fd, b"\n")
            raise OSError(28, "only a part of a line was written")
    finally:
        os.close(fd)


def _complain(line: str) -> None:
    global _complained
    if not _complained:
        _complained = True
        say(line)


def _user() -> str:
    import pwd

    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except (KeyError, OSError):
        return ""
