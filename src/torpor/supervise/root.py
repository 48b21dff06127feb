"""The first process of a job, as its supervisor sees it: what state it is in, which signals it was sent, and whether
the job is held still.

Its states come from `waitid` where it is our child, and else through a descriptor on which its stand-in parent of a
restarted job writes what a wait would have told (contract of `checkpoint.restart.Restarted.events`).
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import Any

from torpor.supervise.loop import Loop
from torpor.supervise.registry import Entry, Pid
from torpor.supervise.signals import STOPS, Got
from torpor.supervise.tree import members, reach, stop_all

FROM_TERMINAL = STOPS | {signal.SIGINT, signal.SIGQUIT, signal.SIGHUP, signal.SIGWINCH}
"""What the kernel sends to a whole group on a terminal's behalf."""


class Root:
    """entry: of the job.  events: see above, -1 for a child of ours.  tell: whoever follows the job.  after: what has
    changed may have consequences; called outside of everything else."""

    def __init__(
        self, entry: Entry, events: int, loop: Loop, tell: Callable[[dict[str, Any]], None], after: Callable[[], None]
    ) -> None:
        self.pid = entry.root
        self.status: int | None = None
        """Its wait status, once it has ended."""
        self.stopped = 0
        """The signal that has stopped it, 0 if it is not."""
        self.stop_pending = 0
        """One that our terminal has not been told of."""
        self.told: set[int] = set()
        """Signals that the job was sent from outside, as far as we know."""
        self.held: tuple[Pid, ...] = ()
        """Processes that were stopped by us only, so that somebody can look at them first, or for lack of a seat."""
        self._events, self._loop, self._tell, self._after = events, loop, tell, after
        self._lines = b""

    def watch(self) -> None:
        """In the loop, from now on."""
        if self._events >= 0:
            self._loop.watch(self._events, self._on_events)

    @property
    def child(self) -> bool:
        """Is it a child of ours?"""
        return self._events < 0

    @property
    def alive(self) -> bool:
        return self.status is None and self.pid.alive

    def has_got(self, got: Got, entry: Entry) -> bool:
        """Has the program got this signal too? The terminal speaks to the whole foreground group. And a program that
        signals its parent does not mean itself."""
        if got.from_kernel:
            if not self.child:  # a group of its own: what the terminal sends us it has not seen
                return got.number in (signal.SIGTTIN, signal.SIGTTOU)
            return got.number in FROM_TERMINAL
        return bool(got.sender) and got.sender in members(reach(entry))

    def send(self, number: int) -> None:
        """Pass a signal on."""
        self.told.add(number)
        if self.alive:
            try:
                os.kill(self.pid.pid, number)
            except OSError:
                pass

    def changed(self, code: int, value: int) -> None:
        """What waitid(2) tells."""
        if code == os.CLD_EXITED:
            self.status = value << 8
        elif code in (os.CLD_KILLED, os.CLD_DUMPED):
            self.status = value
        elif code == os.CLD_STOPPED:
            self.stopped = self.stop_pending = value
            self._tell({"event": "stop", "signal": value})
        elif code == os.CLD_CONTINUED:
            self.stopped = self.stop_pending = 0
            self._tell({"event": "continue"})
            self.let_on()

    def look_for_end(self) -> None:
        """After all waits: is our child gone, and a save took its status? A tracer's wait for an end is the parent's,
        if they are one."""
        if self.child and self.status is None and not self.pid.state:
            from torpor.linux import ptrace

            self.status = ptrace.reaped.pop(self.pid.pid, signal.SIGKILL)

    def hold(self, entry: Entry) -> None:
        """Let the whole job stand still."""
        self.held = stop_all(entry)

    def let_on(self) -> None:
        """It goes on: what was stopped by us."""
        held, self.held = self.held, ()
        for one in held:
            if one.state == "T":
                os.kill(one.pid, signal.SIGCONT)

    def _on_events(self, _events: int) -> None:
        try:
            data = os.read(self._events, 4096)
        except OSError:
            data = b""
        self._lines += data
        *whole, self._lines = self._lines.split(b"\n")
        for line in whole:
            word, _, value = line.partition(b" ")
            if word == b"exit":
                self.status = int(value)
            elif word == b"stop":
                self.changed(os.CLD_STOPPED, int(value))
            elif word == b"continue":
                self.changed(os.CLD_CONTINUED, 0)
        if not data:
            self._loop.forget(self._events)
            self._unwatched()
        self._after()

    def _unwatched(self) -> None:
        """Nobody tells us of it any more: either all is gone (the namespace was killed from outside), or only the
        stand-in that watched it. Then we look ourselves, though how it ends we shall not learn."""
        if self.status is not None:
            return
        if self.pid.alive:
            self._loop.later(1.0, self._look)
        else:
            self.status = signal.SIGKILL

    def _look(self) -> None:
        self._unwatched()
        self._after()
