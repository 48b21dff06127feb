"""How a member process leaves the job (member.py): its key is taken out, in good order where that can be had.

It goes as soon as others do not need it any more. Where the job is over, a coordinator waits a while for the others,
and who keeps one of the job's servers waits longest: a majority of the servers is needed as long as somebody has a key
to take out.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from torpor.link.link import Entry, Link, quote
from torpor.link.members import PREFIX, Later, Presence
from torpor.model.errors import TorporError
from torpor.supervise.coordinating import OWN
from torpor.supervise.part import Part

SURE = 1.0
"""Seconds within which all keys there are have been told."""
PARTING = 10.0
"""Seconds for which it is tried to leave the job in good order."""


class Parting:
    """later: of the caller's loop.  over: is the job over, as far as we know?  needed: does anybody still wait for what
    we do?  release: lets another coordinate.  gone: called once, when we have left."""

    def __init__(
        self, part: Part, link: Link, later: Later, over: Callable[[], bool], needed: Callable[[], bool],
        release: Callable[[], None], gone: Callable[[], None],
    ) -> None:  # fmt: skip
        self.presence: Presence | None = None
        """What has put our key, once something has."""
        self._part, self._link, self._later = part, link, later
        self._over, self._needed, self._release, self._gone = over, needed, release, gone
        self._until = 0.0
        """When nobody is waited for any more; 0 before we want to leave."""
        self._keys: set[str] = set()
        """Of the parts that are in the job, ours too. Told from the moment on at which we want to leave."""
        self._resigned = False
        """Have we taken our key out, and only wait for the others to do the same?"""
        self._bereaved = False

    @property
    def keeper(self) -> bool:
        """Is one of the job's servers here?"""
        return any(node.name == self._part.part for node in self._part.nodes)

    def begin(self) -> None:
        """Leave the job, as soon as others do not need us any more. Who keeps one of the job's servers stays to its
        end."""
        if self._until or (self.keeper and not self._over()):
            return
        self._until = time.monotonic() + PARTING
        if self._over():
            self._link.watch(f"{PREFIX}>", self._key)
        self._when_free()

    def bereaved(self) -> None:
        """Our supervisor is dead: whoever coordinates is to know. Our key is taken out at once, and we stay."""
        self._take_out(lambda _error: None)
        self._resigned = True
        self._bereaved = True

    def leave(self, limit: float) -> None:
        """Let another coordinate, take our key out, and be gone; after `limit` seconds at the latest."""
        over = False

        def end(_error: TorporError | None = None) -> None:
            nonlocal over
            if not over:
                over = True
                self._gone()

        self._later(limit, end)
        self._release()
        if self._over() and self._part.first and not self._part.nodes:
            self._link.destroy(lambda _none, error: end(error))  # a site's servers do not end with the job
        elif self.presence is not None and not self._resigned:
            self._take_out(end)
        else:
            end()

    def _key(self, key: str, entry: Entry | None) -> None:
        (self._keys.discard if entry is None else self._keys.add)(key)

    def _when_free(self) -> None:
        needed = self._needed()
        if self._over():
            needed |= self._others_stay()
        if self._bereaved and time.monotonic() < self._until - PARTING + SURE:
            needed = True  # who is there we have only just asked
        if needed and time.monotonic() < self._until:
            self._later(0.05, self._when_free)
        else:
            self.leave(3.0)

    def _others_stay(self) -> bool:
        """Are there others that cannot end yet if we do? Who keeps one of the job's servers takes its key out once all
        others have, and goes with the last such key: a majority of the servers is needed until then."""
        mine = PREFIX + quote(self._part.part)
        if not self.keeper:
            return self._part.first and self._keys != (set() if self._resigned else {mine})
        keepers = {PREFIX + quote(node.name) for node in self._part.nodes}
        if not self._resigned and mine in self._keys and self._keys <= keepers and self.presence is not None:
            self._resigned = True
            self.presence.leave(lambda _error: None)
        return not self._resigned or bool(self._keys)

    def _take_out(self, done: Callable[[TorporError | None], None]) -> None:
        """Take our keys out."""
        presence = self.presence
        assert presence is not None
        if self._part.own:
            self._link.delete(OWN + quote(self._part.part), lambda _none, _error: presence.leave(done))
        else:
            presence.leave(done)
