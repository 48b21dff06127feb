"""How a part of a job over hosts comes to its end: what is left of the job here is ended, and then the part leaves.

The end of the first part's root is the job's, once those have ended that joined it (the member process tells); that of
another part's is nobody's: such a part is there as long as something of the job is.

All of this is the supervisor's side. What the member process does about it: job_end.py, parting.py.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable

from torpor.coordinate import words
from torpor.coordinate.words import Word
from torpor.supervise import wire
from torpor.supervise.loop import Loop
from torpor.supervise.part import Part
from torpor.supervise.registry import Pid
from torpor.supervise.saving import Worker
from torpor.supervise.say import say

GRACE = 5.0
"""Seconds between SIGTERM and SIGKILL for what is left of a job that has ended."""
LOOK = 0.1
"""Seconds between two looks whether something is left."""
PARTING = 30.0
"""Seconds after which nobody waits for the member process to leave the job."""
SHORTLY = 3.0
"""The same for one that is of no use any more."""


class Leaving:
    """send: to the member process.  keeper: one of the job's servers is here.  trouble: why there is no member process
    any more, '' if there is.  left: called once, when this part has left the job."""

    def __init__(
        self, part: Part, send: Callable[[Word], None], keeper: bool, trouble: Callable[[], str],
        left: Callable[[], None],
    ) -> None:  # fmt: skip
        self.status: int | None = None
        """Of the root, once it has ended."""
        self.emptied = False
        """Is nothing of the job here any more?"""
        self.over = False
        """Has the job ended everywhere?"""
        self.gone = False
        """Has this part left the job?"""
        self._part, self._send, self._keeper, self._trouble, self._left = part, send, keeper, trouble, left
        self._ending = False
        self._waits = False
        """Has the root ended, and others have not that have joined the job?"""
        self._kill = 0.0
        self._loop: Loop
        self._worker: Worker
        self._processes: Callable[[], list[int]]

    def attach(self, loop: Loop, worker: Worker, processes: Callable[[], list[int]]) -> None:
        """The supervisor's loop runs. processes: those of the job here."""
        self._loop, self._worker, self._processes = loop, worker, processes

    def say_again(self) -> None:
        """There is another member process."""
        if self.emptied:
            self._send(words.Emptied())
        if self.status is not None:
            self._send(wire.RootEnded(self.status, self._waits))

    def root_ended(self, status: int) -> None:
        """The root has ended here. That of the first part is the job's, and so its end is everybody's."""
        if self.status is not None:
            return
        self.status = status
        if self._part.first:
            self._send(wire.RootEnded(status))
            self._loop.later(SHORTLY, self._not_told)
            if self._trouble():
                self.end()
        else:
            self._look()

    def _not_told(self) -> None:
        """The member process does not say whether the job is over: there is nobody else to wait for."""
        if not self._waits:
            self.end()

    def wait(self, parts: tuple[str, ...]) -> None:
        """The root has ended; these have joined the job, and run on."""
        if not self._waits:
            joined = ", ".join(parts)
            say(f"torpor: {self._part.job}: the first program has ended; waiting for what has joined it ({joined})")
        self._waits = True

    def _look(self) -> None:
        """A part is there as long as something of the job is."""
        if not self._ending and not self.emptied:
            if self._worker.busy or self._living():
                self._loop.later(LOOK, self._look)
            else:
                self._empty()

    def end(self) -> None:
        """Everything of the job is to end here: first it is asked to."""
        self.over = True
        if self.emptied:
            self._loop.later(PARTING, self.leave)
        elif not self._ending:
            self._ending = True
            self._end_all()

    def _end_all(self) -> None:
        left = [] if self._worker.busy else self._living()
        now = time.monotonic()
        if self._worker.busy:
            pass  # what is stopped now would find the signal when it comes back
        elif not left:
            self._empty()
            return
        elif not self._kill:
            self._kill = now + GRACE
            for pid in left:
                _send(pid, signal.SIGTERM)
                _send(pid, signal.SIGCONT)
        elif now > self._kill:
            for pid in left:
                _send(pid, signal.SIGKILL)
        self._loop.later(LOOK / 5, self._end_all)

    def kill_all(self) -> None:
        """What is here of the job is not to be any more."""
        for pid in self._processes():
            _send(pid, signal.SIGKILL)

    def _living(self) -> list[int]:
        return [pid for pid in self._processes() if Pid.of(pid).alive]

    def _empty(self) -> None:
        self.emptied = True
        if self._trouble():
            self.leave()
            return
        self._send(words.Emptied())
        if self.over or not self._keeper:  # a server is there to the end
            self._loop.later(PARTING, self.leave)

    def leave(self) -> None:
        """It has left, or nobody can be told."""
        if not self.gone:
            self.gone = True
            self._left()


def _send(pid: int, number: int) -> None:
    try:
        os.kill(pid, number)
    except OSError:
        pass
