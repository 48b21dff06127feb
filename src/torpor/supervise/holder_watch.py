"""Sees to it that somebody answers for the filter of a job that is watched (watch/holder.py)."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING

from torpor.supervise.loop import Loop

if TYPE_CHECKING:
    from torpor.watch.wrapper import Wrapper


class HolderWatch:
    """replaced: called with the pid of the process that answers now, in place of one that has died."""

    def __init__(self, loop: Loop, wrapper: Wrapper, replaced: Callable[[int], None]) -> None:
        self._loop, self._wrapper, self._replaced = loop, wrapper, replaced

    def start(self) -> None:
        """Notice its end."""
        try:
            holder = os.pidfd_open(self._wrapper.holder)
        except OSError:
            self._loop.later(0.0, self._revive)
        else:
            self._loop.watch(holder, lambda _: self._ended(holder))

    def _ended(self, fd: int) -> None:
        self._loop.forget(fd)
        os.close(fd)
        self._revive()

    def _revive(self) -> None:
        """Have another process answer, unless nobody has the filter any more."""
        if not self._wrapper.needed():
            return
        try:
            self._wrapper.revive()
        except OSError:
            self._loop.later(1.0, self._revive)
            return
        self._replaced(self._wrapper.holder)
        self.start()
