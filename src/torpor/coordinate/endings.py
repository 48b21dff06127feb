"""How an attempt ends, once that is decided: all hosts are told, and whoever asked has the answer when they have said
that it is over there, or have had time enough. Pure."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import msgspec

from torpor.coordinate import words
from torpor.coordinate.attempt import Ending
from torpor.coordinate.journal import Then
from torpor.coordinate.members import Members
from torpor.coordinate.phases import Kind, Limits, Phase
from torpor.coordinate.record import Over
from torpor.coordinate.voice import Voice
from torpor.coordinate.words import Announce, Order


class Save(Protocol):
    """Writes the record with changes, and calls `then` once it is written."""

    def __call__(self, then: Then, **changes: object) -> None: ...


class Endings:
    """One after the other. save: see there."""

    def __init__(self, voice: Voice, limits: Callable[[], Limits], members: Members, save: Save) -> None:
        self.current: Ending | None = None
        self._voice, self._limits, self._members, self._save = voice, limits, members, save

    def begin(self, over: Over, hosts: tuple[str, ...], told: bool = False, early: bool = False) -> Ending:
        """All hosts are told how it ended. told: it is written down.  early: they are told before that. So it is with
        UNDO, as long as nothing is decided: where one host has heard it, no successor can decide otherwise."""
        quiet = over.ending is Phase.COMMIT and over.kind is Kind.CHECKPOINT
        ending = self.current = Ending(over, () if quiet else hosts, self._voice.now, self._limits())
        ending.told = told
        if told or early:
            self._say(ending)
        if told and not ending.awaited:
            self._ended(ending)
        return ending

    def last_word(self, over: Over) -> Order:
        """What a host is told of it."""
        return Order(self._voice.term, over.number, over.kind, over.ending)

    def written(self, ending: Ending) -> None:
        """The record says it."""
        if ending is not self.current:
            return
        ending.told = True
        if ending.said is None:
            self._say(ending)
        if not ending.awaited:
            self._ended(ending)

    def answered(self, host: str) -> None:
        """That host has said that it has ended the attempt, or will not."""
        ending = self.current
        if ending is not None and host in ending.awaited:
            del ending.awaited[host]
            if ending.told and not ending.awaited:
                self._ended(ending)

    def failed(self, event: words.Failed) -> None:
        """A host could not do what it was told."""
        ending = self.current
        assert ending is not None
        if ending.over.ending is Phase.DONE and ending.told and event.host in ending.awaited:
            # It has given up what it had just released: the job is not whole anywhere.
            reason = f"{event.host}: {event.reason} ({event.phase})"
            over = msgspec.structs.replace(ending.over, ending=Phase.UNDO, reason=reason)
            redone = self.begin(over, tuple(self._members.present), early=True)
            self._save(lambda: self.written(redone), last=over, running=0, undone=over.number)
        elif event.host in ending.awaited:
            ending.trouble.append(f"{event.host}: {event.reason} ({event.phase})")
            self.answered(event.host)

    def lost(self, host: str) -> None:
        """A host cannot be reached."""
        ending = self.current
        if ending is not None and host in ending.awaited:
            ending.trouble.append(f"{host} was lost")
            self.answered(host)

    def tick(self) -> None:
        """Time has gone by."""
        ending = self.current
        if ending is None or not ending.awaited:
            return
        now = self._voice.now
        if now >= ending.until and ending.told:
            self._ended(ending)
        elif ending.said is not None and now - ending.said >= self._limits().repeat:
            self._say(ending)
        else:
            self._voice.wake(self._limits().repeat)

    def _say(self, ending: Ending) -> None:
        ending.said = self._voice.now
        self._voice.say(Announce(self.last_word(ending.over), tuple(ending.awaited)))
        if ending.awaited:
            self._voice.wake(self._limits().repeat)

    def _ended(self, ending: Ending) -> None:
        over = ending.over
        self.current = None
        self._voice.answer(
            over.ask, over.ending is not Phase.UNDO, ending.text(), over.number, ending.seconds, over.passing
        )
