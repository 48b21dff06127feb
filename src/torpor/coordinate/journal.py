"""The record, as a coordinator writes it: one write at a time, and what is wanted during one is written as one after
it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import msgspec

from torpor.coordinate.members import Members
from torpor.coordinate.record import Record
from torpor.coordinate.words import Save

Then: TypeAlias = Callable[[], None]


class Journal:
    """record: as it will be when all that is wanted is written.  revision: of what is written."""

    def __init__(self, record: Record, revision: int, members: Members) -> None:
        self.record, self.revision = record, revision
        self._members = members
        self._then: list[Then] = []
        self._writing: list[Then] | None = None

    @property
    def settled(self) -> bool:
        """Is everything written?"""
        return self._writing is None and not self._then

    def save(self, then: Then, changes: dict[str, Any]) -> Save | None:
        """Changes of the record, and what is to be done once they are written. Returns what is to be written now."""
        self.record = msgspec.structs.replace(self.record, **changes)
        self._then.append(then)
        return self.next()

    def next(self) -> Save | None:
        """What is to be written now."""
        if self._writing is not None or not self._then:
            return None
        self._writing, self._then = self._then, []
        self.record = msgspec.structs.replace(self.record, **self._members.news())
        return Save(self.record, self.revision)

    def saved(self, revision: int) -> list[Then]:
        """It was written. Returns what waited for that."""
        if self._writing is None or revision <= self.revision:
            return []
        done, self._writing = self._writing, None
        self.revision = revision
        return done
