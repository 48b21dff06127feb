"""The memory of a restarted job that is still on its way (`restart --lazy`): how far it is, and what becomes of the job
if nobody brings it any more. The process that brings it is checkpoint/lazy/arrival.py; it outlives the supervisor."""

from __future__ import annotations

import json
import os
import select
import signal
import time
from collections.abc import Callable

from torpor.model.errors import CheckpointFailed
from torpor.named_tuple import NamedTuple
from torpor.supervise.loop import Loop
from torpor.supervise.registry import Entry, Pid
from torpor.supervise.say import say

FILE = "arriving"
"""In the job's folder: an `Arrival`."""
_LOOK = 100
"""Milliseconds between two looks at how far it is."""
_PATIENCE = 30.0
"""Seconds for which a checkpoint waits for a store that does not give what is missing."""


class Arrival(NamedTuple):
    """done, total: bytes; more than total may come, where processes have forked. why: why nothing comes, '' if it
    does."""

    done: int
    total: int
    why: str


def progress(entry: Entry) -> Arrival | None:
    """How far the memory of a job is; None if all of it is there."""
    return (read(f"{entry.folder}/{FILE}") or Arrival(0, 0, "")) if entry.bringer.alive else None


def read(path: str) -> Arrival | None:
    """See `progress`; None if nothing is written down yet."""
    try:
        with open(path) as f:
            found = json.load(f)
        return Arrival(int(found["done"]), int(found["total"]), str(found["why"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def await_all(bringer: Pid, path: str, tell: Callable[[str, int, int], None] | None) -> None:
    """Wait until all memory of a job is there, or the job has ended. Raises CheckpointFailed where it does not come."""
    if not bringer.alive:
        return
    try:
        fd = os.pidfd_open(bringer.pid)
    except ProcessLookupError:
        return
    try:
        poll = select.poll()
        poll.register(fd, select.POLLIN)
        last, since = -1, time.monotonic()
        while bringer.alive and not poll.poll(_LOOK):
            found = read(path)
            if found is None:
                continue
            if found.done != last:
                last, since = found.done, time.monotonic()
                if tell is not None:
                    tell("arriving", min(found.done, found.total), found.total)
            elif found.why and time.monotonic() - since > _PATIENCE:
                raise CheckpointFailed(f"memory of the job has not arrived yet since its restart: {found.why}")
    finally:
        os.close(fd)


class ArrivalWatch:
    """The supervisor's side. link: what it tells us comes here (checkpoint/lazy/arrival.py)."""

    def __init__(self, loop: Loop, link: int, entry: Entry) -> None:
        self._loop, self._link, self._entry = loop, link, entry
        self._over = False
        loop.watch(link, self._on_news)

    def ended(self) -> None:
        """The job has ended: say so if that was for want of memory."""
        if self._link >= 0:
            os.set_blocking(self._link, False)
        while self._link >= 0 and self._hear():
            pass

    def _on_news(self, _: int) -> None:
        self._hear()

    def _hear(self) -> bool:
        """Hear one word; False if there is none."""
        try:
            data = os.read(self._link, 65536)
        except BlockingIOError:
            return False
        except OSError:
            data = b""
        if not data:
            self._loop.forget(self._link)
            os.close(self._link)
            self._link = -1
            if not self._over:
                self._lost()
            return False
        news = json.loads(data)
        if "done" in news or "over" in news:
            self._over = True
        elif "lost" in news:
            self._lost()
        elif news.get("why"):
            say(f"torpor: {self._entry.name}: memory does not come, and is waited for: {news['why']}")
        elif "broken" in news:
            say(f"torpor: {self._entry.name}: what brings its memory is broken: {news['broken']}")
        return True

    def _lost(self) -> None:
        """Without anybody to ask, the kernel gives zeros. One of the two that bring it has killed the job, before it
        ended itself; if both were killed at once, we do."""
        entry, self._over = self._entry, True
        if entry.reaper.alive:
            try:
                os.kill(entry.reaper.pid, signal.SIGKILL)
            except OSError:
                pass
        say(
            f"torpor: {entry.name} was killed, since what brought its memory was killed before all was there; "
            f"torpor restart {entry.origin} starts it again"
        )
