"""A host's side of a checkpoint or restart over hosts. Pure, as the coordinator: events in, instructions out.

What a host promises, and what all rests on:

- It does the phases of an attempt in their order, each once, and says again what it has done when it is asked again.
- It lets its job go by itself if nobody speaks to it for longer than `Limits.host` while the job is stopped, or about
  to be, and removes what it made for a restart. From then on it says no to that attempt, for ever. So a checkpoint of
  which it had not stored its part yet is never committed. The same after anything that went wrong here.
- It stores only after it was told that all hosts have their copy (RESUME, or STORE where the job stays stopped), so a
  host that went on too early never stores.

One case is left in doubt: the job is to be ended, this host has stored its part and hears nothing more. It lets the
job go as always, keeps asking, and ends it if it is told that the checkpoint was committed. Likewise a host that had
released its part of a restart and is not told that all have: it removes that part, and says so when it is asked for
anything later.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torpor.coordinate import words
from torpor.coordinate.phases import ENDINGS, EXCHANGED, PLANS, SOON, Kind, Limits, Phase
from torpor.coordinate.words import HostInstruction, Order, Report, Say, Wake, Work


class Host:
    """One host, as long as its supervisor lives. incarnation: larger than that of any supervisor that was here before.

    attempt: the one that this host has part in, 0 if none.  phase, done: what it is at, and whether it is through with
    it; UNDO while it puts things back.  floor: it has no part any more in attempts up to this number.
    """

    def __init__(self, name: str, incarnation: int, limits: Limits | None = None) -> None:
        self.name, self.incarnation = name, incarnation
        self.limits = limits or Limits()
        self.admitted = self.left = self.ended = False
        self.attempt, self.floor = 0, 0
        self.kind, self.phase, self.done = Kind.CHECKPOINT, Phase.DONE, True
        self.doubt = 0
        """An attempt of which this host does not know how it ended, and asks."""
        self.bereft = ""
        """Why there is nothing of the job here although others may think so."""
        self._term = 0
        self._why = ""
        self._part = b""
        self._what = ""
        self._undone = 0
        self._emptied = False
        self._heard = self._asked = self._now = 0.0
        self._out: list[HostInstruction] = []
        self._on: dict[type, Callable[[Any], None]] = {
            words.Order: self._order, words.Admitted: self._admit, words.Dismissed: self._dismissed,
            words.Finished: self._finished, words.Broke: self._broke, words.Emptied: self._empty,
            words.Tick: self._tick,
        }  # fmt: skip

    @property
    def stopped(self) -> bool:
        """May the job be stopped here, or something of a restart be here that does not run?"""
        if not self.attempt or self.phase in (Phase.SURVEY, Phase.COMMIT):
            return False
        return self.kind is not Kind.CHECKPOINT or self.phase not in (Phase.RESUME, Phase.STORE)

    def start(self, now: float, empty: bool = False) -> list[HostInstruction]:
        """Ask to be in the job; empty: or, if the supervisor before this one was, say that nothing of it is left."""
        self._now = now
        self._emptied = empty
        self._say_who()
        return self._taken()

    def handle(self, event: words.HostEvent, now: float) -> list[HostInstruction]:
        """What is to be done about an event. now: seconds on a clock that never goes back."""
        self._now = now
        if not self.left:
            self._on[type(event)](event)
        return self._taken()

    def _taken(self) -> list[HostInstruction]:
        seconds = self._next()
        if seconds is not None:
            self._out.append(Wake(seconds))
        out, self._out = self._out, []
        return out

    def _next(self) -> float | None:
        """Seconds until something has to be said or done unasked."""
        limit = self.limits.host
        if self.left:
            return None
        if not self.admitted or self._emptied or self.phase is Phase.UNDO:
            return self.limits.repeat
        if self.stopped:
            return min(limit / 4, max(SOON, self._heard + limit - self._now))
        return limit / 4 if self.attempt or self.doubt else None

    def _say(self, word: Report) -> None:
        self._out.append(Say(word))

    def _did(self, attempt: int, phase: Phase, part: bytes = b"") -> None:
        self._say(words.Did(self.name, self.incarnation, attempt, phase, part))

    def _no(self, attempt: int, phase: Phase, reason: str, passing: bool = False) -> None:
        self._say(words.Failed(self.name, self.incarnation, attempt, phase, reason, passing))

    # Being in the job.

    def _say_who(self) -> None:
        self._say((words.Left if self._emptied else words.Joined)(self.name, self.incarnation))

    def _admit(self, word: words.Admitted) -> None:
        if word.incarnation != self.incarnation or word.host != self.name or self.admitted:
            return
        self.admitted = True
        self.floor = word.attempt
        self._why = "it was not there when this began"
        self._term = max(self._term, word.term)
        if word.ended:
            self._end_job(word.ended)
        elif word.undone:
            self._undo_restart(word.undone)

    def _dismissed(self, word: words.Dismissed) -> None:
        if word.incarnation == self.incarnation and word.host == self.name and (self._emptied or not self.admitted):
            self.left = True

    def _empty(self, _: words.Emptied) -> None:
        self._emptied = True
        if self.attempt and self.kind is not Kind.RESTART and self.phase in (Phase.SURVEY, Phase.FREEZE):
            # Whatever was to be stopped is not there any more.
            if self.phase is Phase.FREEZE and self.done:
                return
            self._close()
        self._leave()

    def _leave(self) -> None:
        """Say that nothing is left here, unless something of an attempt has still to be done."""
        if self._emptied and not self.attempt:
            self._say(words.Left(self.name, self.incarnation))

    # Orders.

    def _order(self, order: Order) -> None:
        if not self.admitted or order.term < self._term or (self._emptied and not self.attempt):
            return
        self._term = order.term
        if order.phase in ENDINGS:
            self._ending(order)
        elif order.attempt == self.attempt:
            self._heard = self._now
            self._go_on(order)
        elif order.attempt <= self.floor:
            self._no(order.attempt, order.phase, self._why or "that is over here")
        elif self._free_for(order):
            self._begin(order)
        else:
            self._say(words.Alive(self.name, self.incarnation, order.attempt))

    def _free_for(self, order: Order) -> bool:
        """May another attempt begin? The one before is over, whatever was heard of it."""
        self.doubt = 0
        if not self.attempt:
            return True
        if self.phase is Phase.UNDO or self.phase is Phase.COMMIT:
            return False
        settled = self.kind is Kind.CHECKPOINT and self.phase is Phase.STORE
        running = self.kind is Kind.RESTART and self.phase is Phase.RELEASE and order.kind is not Kind.RESTART
        if self.done and (settled or running):
            self._close()
            return True
        self._undo("it was over")
        return False

    def _begin(self, order: Order) -> None:
        if order.kind is Kind.RESTART:
            self.bereft = ""
        first = PLANS[order.kind][0]
        if order.phase is not first or self.bereft:
            self.floor = order.attempt
            self._why = self.bereft or "it had no part in this from the beginning"
            self._no(order.attempt, order.phase, self._why)
            return
        self.attempt, self.kind, self._what = order.attempt, order.kind, order.what
        self._heard = self._asked = self._now
        self._why, self._part = "", b""
        self._do(first, order.part)

    def _do(self, phase: Phase, part: bytes = b"") -> None:
        self.phase, self.done = phase, False
        self._out.append(Work(self.attempt, self.kind, phase, part, self._what))

    def _go_on(self, order: Order) -> None:
        """An order of the attempt that this host has part in."""
        if self.phase in (Phase.UNDO, Phase.COMMIT):
            if self.phase is Phase.UNDO:
                self._no(self.attempt, order.phase, self._why)
            return
        plan = PLANS[self.kind]
        ahead = plan.index(order.phase) - plan.index(self.phase)
        if ahead == 1 and self.done:
            if order.phase in EXCHANGED and self._part and not order.part:
                return  # what concerns this host comes by itself
            self._do(order.phase, order.part)
        elif ahead > 0:
            self._give_up(f"it is asked for {order.phase} before it has done {self.phase}")
        elif self.done:
            self._did(self.attempt, self.phase, self._part)
        else:
            self._say(words.Alive(self.name, self.incarnation, self.attempt))

    def _finished(self, event: words.Finished) -> None:
        if event.attempt != self.attempt or event.phase is not self.phase or self.done:
            return
        self.done = True
        if event.phase is Phase.UNDO:
            self._undone = self.attempt
            self._close()
            self._did(event.attempt, Phase.UNDO)
            self._leave()
        elif event.phase is Phase.COMMIT:
            self.ended = True
            self.doubt = 0
            self._close()
            self._did(event.attempt, Phase.COMMIT)
            self._leave()
        else:
            self._part = event.part
            self._did(self.attempt, self.phase, self._part)
            if event.phase is Phase.RESUME:
                self._do(Phase.STORE)

    def _broke(self, event: words.Broke) -> None:
        if event.attempt != self.attempt or event.phase is not self.phase or self.done:
            return
        if event.phase in ENDINGS:
            # Tried again with the next order, and by itself.
            self.done = True
            self._no(event.attempt, event.phase, event.reason)
        else:
            self._give_up(event.reason, event.passing)

    # How an attempt ends here.

    def _close(self) -> None:
        """This host has no part in the attempt any more, and nothing has to be put back."""
        self.floor = max(self.floor, self.attempt)
        self.attempt = 0
        self._part = b""
        self.phase, self.done = Phase.DONE, True

    def _undo(self, why: str) -> None:
        self._why = why
        self._do(Phase.UNDO)

    def _give_up(self, why: str, passing: bool = False) -> None:
        self._no(self.attempt, self.phase, why, passing)
        self._undo(why)

    def _ending(self, order: Order) -> None:
        """What became of an attempt."""
        if order.attempt == self.attempt:
            self._heard = self._now
        if order.attempt >= self.doubt:
            self.doubt = 0
        if order.phase is Phase.UNDO:
            self._told_undo(order)
        elif order.phase is Phase.DONE:
            self._told_done(order)
        elif order.kind is Kind.STOP:
            self._told_end(order)
        elif order.attempt == self.attempt and self.phase is Phase.STORE and self.done:
            self._close()
            self._leave()

    def _told_undo(self, order: Order) -> None:
        number = order.attempt
        if number == self.attempt:
            if self.phase is not Phase.UNDO:
                self._undo("it was given up")
            elif self.done:
                self._do(Phase.UNDO)
        elif self.attempt and number > self.attempt:
            self.floor = number
            if self.phase is not Phase.UNDO:
                self._undo("it was over")
        elif order.kind is Kind.RESTART and not self.attempt and self._undone < number:
            self._undo_restart(number)
        else:
            if number > self.floor:
                self.floor, self._why = number, "it was given up"
            if number == self._undone:
                self.bereft = ""
            self._did(number, Phase.UNDO)

    def _undo_restart(self, number: int) -> None:
        """This supervisor may not know what the one before it made."""
        self.attempt, self.kind = number, Kind.RESTART
        self._undo("it was given up")

    def _told_done(self, order: Order) -> None:
        number = order.attempt
        if number == self.attempt and self.phase is Phase.RELEASE and self.done:
            self._close()
            self._did(number, Phase.DONE)
            self._leave()
        elif number == self._undone or (number == self.attempt and self.phase is Phase.UNDO):
            self._no(number, Phase.DONE, self._why)
        elif number <= self.floor and number != self.attempt:
            self._did(number, Phase.DONE)

    def _told_end(self, order: Order) -> None:
        number = order.attempt
        if self.ended:
            self._did(number, Phase.COMMIT)
        elif number >= max(self.attempt, self.floor) and (self.phase is not Phase.COMMIT or self.done):
            self._end_job(number)

    def _end_job(self, number: int) -> None:
        self.attempt, self.kind, self.floor = number, Kind.STOP, number
        self._do(Phase.COMMIT)

    # Time.

    def _tick(self, _: words.Tick) -> None:
        if not self.admitted:
            self._say_who()
            return
        self._leave()
        if self.attempt and self.phase in ENDINGS:
            if self.done:
                self._do(self.phase)
            return
        limit = self.limits.host
        # Nothing is stopped while it is surveyed, but whoever waits here waits for the order that follows.
        if (self.stopped or self.phase is Phase.SURVEY) and self._now - self._heard >= limit:
            self._deserted(f"nobody spoke to it for {limit:.0f} s")
        elif (self.doubt or self.attempt) and self._now - max(self._heard, self._asked) >= limit / 2:
            self._asked = self._now
            self._say(words.Alive(self.name, self.incarnation, self.doubt or self.attempt))

    def _deserted(self, why: str) -> None:
        """Nobody speaks to this host: it goes its own way."""
        if self.kind is Kind.STOP and self.phase is Phase.STORE and self.done:
            self.doubt = self.attempt
            self._undo(why)
            return
        if self.kind is Kind.RESTART and self.phase is Phase.RELEASE:
            self.bereft = f"its part of the job was removed, since {why} after it had been released"
            self.doubt = self.attempt
        self._give_up(why)
