"""Carries out what `upkeep.py` decides while a job runs: checkpoints by the clock, answers to signals, the deadline.

It lives in the supervisor's loop, has no descriptors of its own, and between events there is nothing but a timer.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

from torpor.model.duration import short
from torpor.model.errors import CheckpointFailed, TorporError
from torpor.named_tuple import NamedTuple
from torpor.supervise import upkeep
from torpor.supervise.hooks import Hooks
from torpor.supervise.loop import Loop
from torpor.supervise.saving import Progress
from torpor.supervise.say import say
from torpor.supervise.upkeep import Upkeep

Done: TypeAlias = Callable[[dict[str, Any] | None, BaseException | None], None]


class Order(NamedTuple):
    """A checkpoint that is to be made. encrypt_to: see image.seal.sealing.  compress, name, store: '' for the
    job's own.  why: for the log.  on, forget: for this one."""

    stop: bool = False
    files: str = "auto"
    with_files: bool = False
    compress: str = ""
    encrypt_to: Sequence[str] | None = None
    name: str = ""
    store: str = ""
    why: str = "command"
    on: Hooks = ()
    forget: Sequence[str] = ()


class Keeper:
    """save: starts a checkpoint and tells how it went; raises TorporError if it cannot be started.  busy: what is being
    done, '' for nothing.  pass_on: sends the job a signal.  seconds: how long its latest checkpoints took.  newest: the
    latest checkpoint there is of the job, '' if none is known."""

    def __init__(
        self,
        wanted: Upkeep,
        loop: Loop,
        save: Callable[[Order, Progress, Done], None],
        busy: Callable[[], str],
        pass_on: Callable[[int], None],
        seconds: Sequence[float] = (),
        newest: str = "",
    ) -> None:
        self.interrupted = False
        """The job was told a signal because it could not be saved, in time or at all."""
        self._upkeep = wanted
        self._loop, self._save, self._busy, self._pass_on = loop, save, busy, pass_on
        self._seconds = list(seconds)
        self._newest = newest
        self._last = time.monotonic()
        self._armed = False
        self._stopping = 0
        """The signal for which the job is being saved and ended, or will be once what is going on is over."""
        self._asked = 0.0
        self._queued: Order | None = None
        self._serial = 0
        self._given_up = False
        self._trouble = ""

    def start(self) -> None:
        """The job runs."""
        self._last = time.monotonic()
        self._arm()

    def saved(self, name: str, seconds: float) -> None:
        """A checkpoint was made, whoever wanted it: the next one is due later."""
        self._newest = name
        self._seconds = [*self._seconds, seconds][-upkeep.LAST :]
        self._last = time.monotonic()
        self._trouble = ""

    def idle(self) -> None:
        """Nothing is being done any more: do what has waited for that."""
        order, self._queued = self._queued, None
        if order is not None and order.stop and self._too_long():
            self._late()
        elif order is not None:
            self._begin(order)
        else:
            self._arm()

    def signal(self, number: int) -> bool:
        """The supervisor got a signal. Returns False if it is to be passed on."""
        action = self._upkeep.action(number)
        busy = "checkpoint-stop" if self._stopping else self._busy()
        left = self._upkeep.deadline or None
        what = upkeep.answer(action, busy, upkeep.predict(self._seconds), left)
        if what == "pass":
            return False
        name = upkeep.signal_name(number)
        if what == "again":
            say(f"torpor: {name} again: it is being saved already")
            return True
        stop = action == "checkpoint-stop"
        if stop:
            self._stopping, self._asked, self._given_up = number, time.monotonic(), False
            self._watch_deadline()
        if what == "late":
            self._late()
            return True
        say(f"torpor: {name}: saving, {self._forecast(stop)}")
        order = Order(stop=stop, why=f"signal {name}")
        if what == "after":
            self._queued = order
        else:
            self._begin(order)
        return True

    # -- by the clock

    def _arm(self) -> None:
        left = upkeep.due(self._upkeep, time.monotonic(), self._last)
        if left is not None and not self._armed:
            self._armed = True
            self._loop.later(left, self._wake)

    def _wake(self) -> None:
        self._armed = False
        left = upkeep.due(self._upkeep, time.monotonic(), self._last)
        if left:
            self._arm()
        elif not self._busy() and not self._stopping:
            self._begin(Order(why="every"))
        # Else `idle` comes back to it.

    # -- a checkpoint

    def _begin(self, order: Order) -> None:
        try:
            self._save(order, self._progress, lambda result, error: self._done(order, error))
        except TorporError as error:
            self._done(order, error)

    def _progress(self, _phase: str, _done: int, _total: int) -> None:
        """Called by the save, in its thread, now and then."""
        if self._given_up:
            raise CheckpointFailed(f"it did not fit into the {short(self._upkeep.deadline)} there were")

    def _done(self, order: Order, error: BaseException | None) -> None:
        self._last = time.monotonic()
        if error is None:
            return
        reason = str(error) if isinstance(error, TorporError) else f"{type(error).__name__}: {error}"
        if order.stop:
            self._tell(f"not saved ({reason})")
        elif order.why != "every" or reason != self._trouble:  # the same words every few minutes help nobody
            say(f"torpor: not saved ({order.why}): {reason}; the job runs on")
            self._trouble = reason

    # -- the deadline

    def _watch_deadline(self) -> None:
        self._serial += 1
        serial = self._serial

        def expire() -> None:
            if self._stopping and serial == self._serial:
                self._given_up = True

        if self._upkeep.deadline:
            self._loop.later(self._upkeep.deadline, expire)

    def _too_long(self) -> bool:
        expected = upkeep.predict(self._seconds)
        left = self._upkeep.deadline - (time.monotonic() - self._asked)
        return bool(self._upkeep.deadline) and expected is not None and expected > left

    def _late(self) -> None:
        left = self._upkeep.deadline - (time.monotonic() - self._asked)
        about = short(upkeep.predict(self._seconds) or 0.0)
        self._tell(f"no time to save: it takes about {about}, and {short(max(0.0, left))} are left")

    def _forecast(self, stop: bool) -> str:
        expected = upkeep.predict(self._seconds)
        about = f"about {short(expected)} by the latest checkpoints" if expected is not None else "no telling how long"
        return about + (f", {short(self._upkeep.deadline)} are left" if stop and self._upkeep.deadline else "")

    def _tell(self, what: str) -> None:
        """It will not be saved: the job gets the signal, as if torpor were not there."""
        number, self._stopping = self._stopping, 0
        name = upkeep.signal_name(number)
        newest = f"{self._newest} stays the newest checkpoint" if self._newest else "there is no checkpoint yet"
        say(f"torpor: {name}: {what}; {newest}; {name} is passed on to the job")
        self.interrupted = True
        self._pass_on(number)
