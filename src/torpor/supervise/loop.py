"""The event loop of a supervisor: descriptors, timers, and nothing else. One thread."""

from __future__ import annotations

import select
import time
from collections.abc import Callable

IN = select.POLLIN
OUT = select.POLLOUT
_GONE = select.POLLHUP | select.POLLERR | select.POLLNVAL


class Loop:
    """Calls back when a descriptor is ready or a moment has come."""

    def __init__(self) -> None:
        self._poll = select.poll()
        self._callbacks: dict[int, Callable[[int], None]] = {}
        self._timers: list[tuple[float, int, Callable[[], None]]] = []
        self._serial = 0
        self._running = False

    def watch(self, fd: int, callback: Callable[[int], None], events: int = IN) -> None:
        """Call `callback(events)` whenever `fd` is ready. Watching again changes callback and events."""
        self._callbacks[fd] = callback
        self._poll.register(fd, events)

    def forget(self, fd: int) -> None:
        """No longer watch `fd`; to be called before it is closed."""
        if self._callbacks.pop(fd, None) is not None:
            self._poll.unregister(fd)

    def later(self, seconds: float, callback: Callable[[], None]) -> None:
        """Call `callback()` once, `seconds` from now."""
        self._serial += 1
        self._timers.append((time.monotonic() + seconds, self._serial, callback))
        self._timers.sort()

    def stop(self) -> None:
        """Let `run` return after the callback that is running."""
        self._running = False

    def run(self) -> None:
        """Wait and call back until `stop`."""
        self._running = True
        while self._running:
            self.turn(None)

    def turn(self, limit: float | None) -> None:
        """Wait once, for `limit` seconds at most (None: as long as it takes), and call back."""
        now = time.monotonic()
        if self._timers:
            first = max(0.0, self._timers[0][0] - now)
            limit = first if limit is None else min(limit, first)
        for fd, events in self._poll.poll(None if limit is None else int(limit * 1000) + 1):
            callback = self._callbacks.get(fd)
            if callback is not None:  # not forgotten by an earlier callback of this turn
                callback(events)
        now = time.monotonic()
        while self._timers and self._timers[0][0] <= now:
            self._timers.pop(0)[2]()


def hung_up(events: int) -> bool:
    """Do these events say that nothing more will come?"""
    return bool(events & _GONE) and not events & IN
