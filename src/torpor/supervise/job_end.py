"""The end of a job over hosts, as a member process knows it (member.py): when the job is over, and that all parts hear
of it.

It is over once the root of the first part has ended, and the programs of all parts have that joined the job with one of
their own. Its wait status stands under a key then, so that those hear of it, too, who were out of reach.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from torpor.coordinate.words import Word
from torpor.link.link import Entry, Link, unquote
from torpor.link.members import Later
from torpor.model.errors import TorporError
from torpor.supervise import wire
from torpor.supervise.coordinating import OWN
from torpor.supervise.part import Part

OVER = "over"
"""The key of the wait status of the job's root, once that and all that joined the job have ended."""
AGAIN = 2.0
"""Seconds after which something is said again that nobody has answered; and within which another member process than
the one before knows who has joined the job."""
SOON = 0.25
"""Seconds between two looks whether the end can be told already."""


class JobEnd:
    """send: to the supervisor.  later: of the caller's loop.  is_in: is this part in the job?  heard: called when
    another part has said that the job is over; said: when this one has."""

    def __init__(
        self, part: Part, link: Link, send: Callable[[Word], None], later: Later, is_in: Callable[[], bool],
        heard: Callable[[], None], said: Callable[[], None],
    ) -> None:  # fmt: skip
        self.status: int | None = None
        """Of the job's root: once it has ended, in the first part; elsewhere, once the job is over."""
        self.told = False
        """Does our supervisor know that the job is over?"""
        self._part, self._link, self._send, self._later = part, link, send, later
        self._is_in, self._heard, self._said = is_in, heard, said
        self._own: dict[str, str] = {}
        """Parts that have joined the job, and their addresses, as far as member processes of the first part, and of
        such parts, know them."""
        self._certain = 0.0
        """When it knows all of them."""
        link.watch(OVER, lambda _, entry: self._over(entry))
        if part.first or part.own:
            link.watch(f"{OWN}>", self._joined)

    def root_ended(self, status: int, waits: bool = False) -> None:
        """The job's root has ended, which is here. waits: see `wire.RootEnded`."""
        self.status = status
        self._certain = time.monotonic() + (AGAIN if waits else 0.0)
        self._root_ended()

    def not_restarted(self) -> None:
        """The restart of the job does not come about. The parts that came for it wait for an order that does not
        come."""
        self.status = 1 << 8
        self._say()

    def _joined(self, key: str, entry: Entry | None) -> None:
        part = unquote(key.removeprefix(OWN))
        if entry is None:
            self._own.pop(part, None)
        else:
            self._own[part] = entry.value.decode()
        self._send(wire.Joined(tuple(self._own.values())))
        if self._part.first and self.status is not None and not self._own:
            self._root_ended()

    def _root_ended(self) -> None:
        """The job is over, unless others have joined it."""
        left = self._certain - time.monotonic()
        if self._own:
            self._send(wire.Waiting(tuple(sorted(self._own))))
        elif left > 0 or not self._is_in():
            self._later(max(left, SOON), self._root_ended)
        elif self.status is not None and not self.told:
            self.told = True
            self._send(wire.End(self.status))
            self._say()

    def _say(self) -> None:
        """The job has ended: all parts are to know, also those that hear it late."""

        def done(_revision: int | None, error: TorporError | None) -> None:
            if error is not None:
                self._later(AGAIN, self._say)
            else:
                self._said()

        self._link.put(OVER, str(self.status).encode(), done)

    def _over(self, entry: Entry | None) -> None:
        if entry is None or self.told:
            return
        self.told = True
        self.status = int(entry.value)
        self._send(wire.End(self.status))
        self._heard()
