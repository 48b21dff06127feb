"""The coordinator of a job over hosts. Pure: events in, with the time at which they came, instructions out.

A checkpoint exists on all hosts or not at all. The coordinator orders one phase after the other (`phases.py`), each
when all hosts have done the one before. A host that fails, is lost, or is not heard of, ends the attempt: all are told
to UNDO it, and whoever asked is told which host it was and in which phase. When all have stored their part it is
written down that the checkpoint is to be committed. Nothing can end it from there on but the store's refusal, and
that only if it is told to the very coordinator that decided.

Why a checkpoint that is committed is of one moment: a host that lets its job go before it has heard that all have
their copy will never say that it has stored (`host.py`), and without all of those nothing is decided.

A host that comes while a checkpoint is between its first order and the moment at which all have their copy waits at
the door: nothing of the job runs there before it is admitted, so the checkpoint misses nothing. The same during a
restart, and while a job is saved to be ended. A host that leaves before it was frozen is left out; later it
ends the attempt. A host that cannot be reached stays in the job, since its processes may be running, and so the job
cannot be saved without it.

Take-over: a successor has the record, and its term is written there before it says anything. An attempt that was not
further than BEGUN is undone, one that is CAPTURED or DECIDED goes on: its order is given again, and hosts that have
done it say so again.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import msgspec

from torpor.coordinate import requests, words
from torpor.coordinate.attempt import Attempt, Ending, names
from torpor.coordinate.endings import Endings
from torpor.coordinate.journal import Journal, Then
from torpor.coordinate.members import Members
from torpor.coordinate.phases import ENDINGS, Kind, Limits, Phase
from torpor.coordinate.record import Open, Over, Record, Stage
from torpor.coordinate.voice import Voice
from torpor.coordinate.words import Announce, Instruction, Order

_changed = msgspec.structs.replace


class Coordinator:
    """One coordinator, from its beginning to its end. term: higher than that of any before it.  record, revision: what
    is written down now, None and 0 if nothing is.  hosts: where the job begins; nothing is saved before all of them
    have come."""

    def __init__(
        self, term: int, record: Record | None = None, revision: int = 0, limits: Limits | None = None,
        hosts: Collection[str] = (),
    ) -> None:  # fmt: skip
        found = _changed(record or Record(), term=term)
        self.members = Members(found)
        self.limits = limits or Limits()
        self.attempt: Attempt | None = None
        self.retired = False
        self._journal = Journal(found, revision, self.members)
        self._voice = Voice(term)
        self._endings = Endings(self._voice, lambda: self.limits, self.members, self._save)
        self._inherited = False
        """Was the decision to commit taken by a coordinator before this one?"""
        self._commit_again = 0.0
        self._early: list[words.Event] | None = []
        """What came before the job was taken over."""
        self._hosts = hosts
        self._asked: dict[str, tuple[float, words.Event]] = {}
        """What was asked for too early, and since when; it is asked for again, so it may be lost."""
        self._on: dict[type, Callable[[Any], None]] = {
            words.Did: self._did, words.Alive: self._alive, words.Failed: self._failed, words.Joined: self._joined,
            words.Left: self._left, words.Lost: self._lose, words.Found: self._found,
            words.AskCheckpoint: self._ask_checkpoint, words.AskRestart: self._ask_restart, words.Tick: self._tick,
            words.Saved: self._saved, words.Outrun: self._outrun,
            words.Committed: self._committed, words.NotCommitted: self._not_committed,
        }  # fmt: skip

    @property
    def ending(self) -> Ending | None:
        """The attempt that is about to be over."""
        return self._endings.current

    @property
    def record(self) -> Record:
        """What is written down, or will be."""
        return self._journal.record

    def start(self, now: float) -> list[Instruction]:
        """Take the job over, or begin one."""
        self._voice.now = now
        self._save(self._take_up)
        return self._voice.taken()

    def handle(self, event: words.Event, now: float) -> list[Instruction]:
        """What is to be done about an event. now: seconds on a clock that never goes back."""
        self._voice.now = now
        if self.retired:
            return []
        if self._early is not None and not isinstance(event, words.Saved | words.Outrun):
            self._early.append(event)
        else:
            self._on[type(event)](event)
            self._ask_now()
        return self._voice.taken()

    # The record.

    def _save(self, then: Then, **changes: Any) -> None:
        """Write the record with changes, and then go on."""
        self._write(self._journal.save(then, changes))

    def _write(self, save: words.Save | None) -> None:
        if save is not None:
            self._voice.say(save)

    def _saved(self, event: words.Saved) -> None:
        for then in self._journal.saved(event.revision):
            then()
        self._write(self._journal.next())

    def _outrun(self, _: words.Outrun) -> None:
        self.retired = True
        self._voice.only(words.Retire())

    def _take_up(self) -> None:
        """Go on where the coordinator before this one was, and then with what was said meanwhile."""
        found = self.record.open
        if found is not None:
            self._take_up_attempt(found)
        elif self.record.last is not None:
            self._endings.begin(self.record.last, tuple(self.members.present), told=True)
        early, self._early = self._early or [], None
        for event in early:
            self._on[type(event)](event)

    def _take_up_attempt(self, found: Open) -> None:
        phase = None
        if found.kind is Kind.RESTART and found.stage is Stage.DECIDED:
            phase = Phase.RELEASE
        elif found.stage is not Stage.BEGUN:
            phase = Phase.STORE if found.stage is Stage.DECIDED or found.kind is Kind.STOP else Phase.RESUME
        self.attempt = Attempt(found, self._voice.now, phase)
        self.attempt.written = True
        if found.stage is Stage.BEGUN:
            self._abort("the coordinator was lost, and another took over")
        elif found.kind is not Kind.RESTART and found.stage is Stage.DECIDED:
            self.attempt.decided = self._inherited = True
            self._commit()
        else:
            self.attempt.decided = found.stage is Stage.DECIDED
            self._order(self.attempt)

    # Who is in the job.

    @property
    def _held(self) -> bool:
        """Must hosts that come wait?"""
        attempt = self.attempt
        return attempt is not None and not (
            attempt.kind is Kind.CHECKPOINT and attempt.phase in (Phase.RESUME, Phase.STORE)
        )

    def _joined(self, event: words.Joined) -> None:
        host, incarnation = event.host, event.incarnation
        members = self.members
        if members.late(host, incarnation):
            return
        members.lost.discard(host)
        known = members.present.get(host)
        if known is None:
            members.door[host] = incarnation
            self._open_door()
        elif known != incarnation:
            self._returned(host)
            self._admit({host: incarnation})
        elif self._journal.settled:
            self._tell_admitted(host, incarnation, self.record.number)

    def _open_door(self) -> None:
        members = self.members
        if members.door and not self._held:
            hosts, members.door = members.door, {}
            if not self.record.ended:
                self._admit(hosts)
                return
            for host, incarnation in hosts.items():
                self._voice.tell(host, words.Dismissed(self._voice.term, host, incarnation, requests.ENDED))

    def _admit(self, hosts: dict[str, int]) -> None:
        self.members.admit(hosts)
        number = self.record.number

        def then() -> None:
            for host, incarnation in hosts.items():
                self._tell_admitted(host, incarnation, number)

        self._save(then)

    def _tell_admitted(self, host: str, incarnation: int, number: int) -> None:
        record = self.record
        ended = record.last.number if record.ended and record.last is not None else 0
        self._voice.tell(host, words.Admitted(self._voice.term, host, incarnation, number, record.undone, ended))

    def _returned(self, host: str) -> None:
        """The supervisor of a host was started again: it has stopped nothing, and whatever was stopped there runs."""
        attempt = self.attempt
        if attempt is not None and host in attempt.done and not self._safe(attempt, host):
            self._abort(f"{host}: its supervisor was started again during the phase {attempt.phase}")

    def _left(self, event: words.Left) -> None:
        host, incarnation = event.host, event.incarnation
        members, attempt = self.members, self.attempt
        if self.members.gone.get(host, -1) >= incarnation:
            if self._journal.settled:
                self._voice.tell(host, words.Dismissed(self._voice.term, host, incarnation))
            return
        if members.late(host, incarnation):
            return
        members.door.pop(host, None)
        if attempt is not None and host in attempt.done and not self._safe(attempt, host):
            if attempt.kind is not Kind.RESTART and not attempt.has_done(host, Phase.FREEZE):
                attempt.drop(host)
                if not attempt.done:
                    self._abort("nothing is left of the job")
            else:
                self._abort(f"{host}: it left the job during the phase {attempt.phase}")
        members.forget(host, incarnation)
        self._save(lambda: self._voice.tell(host, words.Dismissed(self._voice.term, host, incarnation)))
        self._endings.answered(host)
        self._go_on()

    def _found(self, event: words.Found) -> None:
        self.members.lost.discard(event.host)

    def _lose(self, event: words.Lost) -> None:
        host = event.host
        if host not in self.members.present:
            self.members.door.pop(host, None)
            return
        self.members.lost.add(host)
        attempt = self.attempt
        if attempt is not None and host in attempt.done and not self._safe(attempt, host):
            self._abort(f"{host}: it was lost during the phase {attempt.phase}", (host,))
        else:
            self._endings.lost(host)

    def _safe(self, attempt: Attempt, host: str) -> bool:
        """Does an attempt come to a good end without that host, because all is done that it had to do?"""
        return attempt.kind is not Kind.RESTART and (attempt.decided or attempt.has_done(host, Phase.STORE))

    # Those who ask.

    def _ask_checkpoint(self, event: words.AskCheckpoint) -> None:
        self._ask(event, lambda: requests.checkpoint(event, self.record, self.members))

    def _ask_restart(self, event: words.AskRestart) -> None:
        self._ask(event, lambda: requests.restart(event, self.record, self.members))

    def _ask(self, event: words.AskCheckpoint | words.AskRestart, request: Callable[[], Open | str]) -> None:
        """Begin what is asked for, or say why not. What was asked before has its answer on the way, or is answered as
        it was then."""
        ask = event.ask
        record, last = self.record, self.record.last
        if record.open is not None and record.open.ask == ask:
            return
        if last is not None and last.ask == ask:
            if self.ending is None:
                self._voice.answer(ask, last.ending is not Phase.UNDO, last.reason, last.number, passing=last.passing)
            return
        found: Open | str = requests.busy(record, self.attempt, event)
        if not found and (why := self._early_for()):
            since, _ = self._asked.setdefault(ask, (self._voice.now, event))
            if self._voice.now - since < self.limits.silence:
                return
            del self._asked[ask]
            found = why
        found = found or request()
        if isinstance(found, str):
            self._voice.answer(ask, False, found)
        else:
            self._begin(found)

    def _early_for(self) -> str:
        return requests.early(self.record, self.members, self._hosts, self.ending, self.attempt)

    def _ask_now(self) -> None:
        """What was asked for too early waits no more."""
        if self._asked and not self._early_for():
            asked, self._asked = self._asked, {}
            for _, event in asked.values():
                self._on[type(event)](event)

    # One attempt.

    def _begin(self, found: Open) -> None:
        self._endings.current = None
        attempt = self.attempt = Attempt(found, self._voice.now)
        self._save(lambda: self._order(attempt), open=found, number=found.number)

    def _order(self, attempt: Attempt) -> None:
        """Give the order of the phase, unless the attempt was given up meanwhile."""
        if self.attempt is not attempt:
            return
        attempt.written = True
        attempt.since = self._voice.now
        if attempt.phase is Phase.RECREATE:
            parts: dict[str, list[str]] = {}
            for old, new in attempt.open.plan:
                parts.setdefault(new, []).append(old)
            attempt.handed = {host: msgspec.msgpack.encode(olds) for host, olds in parts.items()}
        self._say(attempt, list(attempt.done))

    def _say(self, attempt: Attempt, hosts: list[str]) -> None:
        """The order, to hosts that have not done it: to each by itself if it has something of its own to be told."""
        attempt.said = self._voice.now
        found = attempt.open
        word = Order(self._voice.term, found.number, found.kind, attempt.phase, b"", found.what)
        if len(attempt.handed) < len(attempt.done) or not attempt.handed:
            self._voice.say(Announce(word, tuple(host for host in hosts if host not in attempt.handed)))
        if attempt.handed:
            for host in hosts:
                if host in attempt.handed:
                    self._voice.tell(host, _changed(word, part=attempt.handed[host]))
        self._voice.wake(attempt.pace(self._voice.now, self.limits))

    def _did(self, event: words.Did) -> None:
        attempt = self._current(event)
        if attempt is None or not self._heard(event, attempt):
            return
        try:
            attempt.did(event.host, event.phase, event.part, self._voice.now)
        except ValueError as error:
            self._abort(f"{event.host}: {error}")
        else:
            self._go_on()

    def _alive(self, event: words.Alive) -> None:
        attempt = self._current(event)
        if attempt is not None and self._heard(event, attempt):
            attempt.heard[event.host] = self._voice.now

    def _failed(self, event: words.Failed) -> None:
        attempt = self._current(event)
        if attempt is not None and self._heard(event, attempt) and not self._safe(attempt, event.host):
            self._abort(f"{event.host}: {event.reason} ({event.phase})", passing=event.passing)

    def _heard(self, event: words.Did | words.Alive | words.Failed, attempt: Attempt) -> bool:
        """Is that a word of a host that has part in the attempt? One that has none is told that it is over."""
        if event.host in attempt.done:
            return True
        if isinstance(event, words.Alive) or event.phase not in ENDINGS:
            self._voice.tell(event.host, Order(self._voice.term, event.attempt, attempt.kind, Phase.UNDO))
        return False

    def _current(self, event: words.Did | words.Alive | words.Failed) -> Attempt | None:
        """The attempt that a host speaks of, if it is under way. If it is over, the host is told how it ended."""
        if self.members.present.get(event.host) != event.incarnation:
            return None
        self.members.lost.discard(event.host)
        attempt = self.attempt
        if attempt is not None and event.attempt == attempt.number:
            return attempt
        ending = self.ending
        last = self.record.last
        if ending is not None and event.attempt == ending.over.number:
            if isinstance(event, words.Did) and event.phase is ending.over.ending:
                self._endings.answered(event.host)
            elif isinstance(event, words.Failed) and event.phase in ENDINGS:
                self._endings.failed(event)
            elif ending.said is not None:
                self._voice.tell(event.host, self._endings.last_word(ending.over))
        elif isinstance(event, words.Did | words.Failed) and event.phase in ENDINGS:
            pass
        elif last is not None and event.attempt == last.number:
            self._voice.tell(event.host, self._endings.last_word(last))
        elif event.attempt == self.record.running:
            self._voice.tell(event.host, Order(self._voice.term, event.attempt, Kind.RESTART, Phase.DONE))
        elif event.attempt < self.record.number:
            self._voice.tell(event.host, Order(self._voice.term, event.attempt, Kind.CHECKPOINT, Phase.UNDO))
        return None

    def _go_on(self) -> None:
        """To the next phase, if all have done this one."""
        attempt = self.attempt
        while attempt is not None and attempt is self.attempt and attempt.complete and attempt.said is not None:
            if attempt.phase is attempt.plan[-1]:
                self._all_done(attempt)
                return
            captured = attempt.phase is Phase.CAPTURE
            try:
                attempt.advance(self._voice.now)
            except ValueError as error:
                self._abort(str(error))
                return
            if attempt.phase is Phase.RELEASE:
                attempt.decided = True
                self._stage(attempt, Stage.DECIDED, lambda: self._order(attempt))
                return
            self._order(attempt)
            if captured:
                # Nobody waits for this: without it a successor gives the attempt up.
                self._stage(attempt, Stage.CAPTURED, lambda: None)
                self._open_door()

    def _stage(self, attempt: Attempt, stage: Stage, then: Then, parts: tuple[bytes, ...] = ()) -> None:
        attempt.open = _changed(attempt.open, stage=stage, hosts=tuple(attempt.done), parts=parts)
        self._save(then, open=attempt.open)

    def _all_done(self, attempt: Attempt) -> None:
        """All hosts have done the last phase."""
        if attempt.kind is Kind.RESTART:
            attempt.seconds.append((attempt.phase.value, self._voice.now - attempt.since))
            self._over(attempt, Phase.DONE)
        elif not attempt.decided:
            attempt.decided = True
            attempt.seconds.append((attempt.phase.value, self._voice.now - attempt.since))
            attempt.since = self._voice.now
            parts = tuple(attempt.stored[host] for host in attempt.done)
            self._stage(attempt, Stage.DECIDED, self._commit, parts)

    def _commit(self) -> None:
        attempt = self.attempt
        assert attempt is not None
        found = attempt.open
        self._commit_again = 0.0
        self._voice.say(words.Commit(found.number, found.ask, tuple(zip(found.hosts, found.parts, strict=True))))
        if found.kind is Kind.STOP:
            self._voice.wake(self.limits.repeat)

    def _committed(self, event: words.Committed) -> None:
        attempt = self.attempt
        if attempt is not None and attempt.decided and attempt.number == event.attempt:
            attempt.seconds.append((Phase.COMMIT.value, self._voice.now - attempt.since))
            self._over(attempt, Phase.COMMIT, event.notes)

    def _not_committed(self, event: words.NotCommitted) -> None:
        attempt = self.attempt
        if attempt is None or not attempt.decided or attempt.number != event.attempt:
            return
        if self._inherited:
            # The coordinator that decided may have asked the store already, and what it asked for may still happen.
            self._commit_again = self._voice.now + self.limits.repeat
            self._voice.wake(self.limits.repeat)
        else:
            self._over(attempt, Phase.UNDO, f"{event.reason} ({Phase.COMMIT})")

    def _abort(self, reason: str, without: tuple[str, ...] = (), passing: bool = False) -> None:
        """Give the attempt up. without: hosts from which no answer is awaited any more.  passing: see `Failed`."""
        attempt = self.attempt
        if attempt is not None and (not attempt.decided or attempt.kind is Kind.RESTART):
            self._over(attempt, Phase.UNDO, reason, without, passing)

    # How it ends.

    def _over(
        self, attempt: Attempt, ending: Phase, reason: str = "", without: tuple[str, ...] = (), passing: bool = False
    ) -> None:
        found = attempt.open
        over = Over(found.number, found.kind, found.ask, ending, reason, passing)
        self.attempt, self._inherited, self._commit_again = None, False, 0.0
        final = attempt.decided and attempt.kind is not Kind.RESTART
        early = ending is Phase.UNDO and attempt.written and not final
        hosts = tuple(host for host in attempt.done if host not in without)
        now_told = self._endings.begin(over, hosts, early=early)
        now_told.seconds = tuple(attempt.seconds)
        changes: dict[str, Any] = {"open": None, "last": over}
        if found.kind is Kind.RESTART:
            changes["running" if ending is Phase.DONE else "undone"] = found.number
        if ending is Phase.COMMIT and found.kind is Kind.STOP:
            changes["ended"] = True
        self._save(lambda: self._endings.written(now_told), **changes)
        self._open_door()

    # Time.

    def _tick(self, _: words.Tick) -> None:
        if self.attempt is not None:
            self._tick_attempt(self.attempt)
        self._endings.tick()

    def _tick_attempt(self, attempt: Attempt) -> None:
        limits = self.limits
        if attempt.decided and attempt.kind is not Kind.RESTART:
            if self._commit_again and self._voice.now >= self._commit_again:
                self._commit()
            if attempt.kind is Kind.STOP and self._voice.now - attempt.since < limits.commit:
                self._say(attempt, list(attempt.done))
            elif self._inherited:
                self._voice.wake(limits.repeat)
            return
        if attempt.said is None:
            return
        silent = attempt.silent(self._voice.now, limits.silence)
        if silent:
            self._abort(f"{names(silent)}: not a word for {limits.silence:.0f} s ({attempt.phase})", tuple(silent))
        elif self._voice.now - attempt.since > limits.of(attempt.phase):
            missing = attempt.missing()
            self._abort(f"{names(missing)}: not done after {limits.of(attempt.phase):.0f} s ({attempt.phase})")
        elif self._voice.now - attempt.said >= (pace := attempt.pace(self._voice.now, limits)):
            self._say(attempt, attempt.quiet(self._voice.now, limits) or attempt.missing())
        else:
            self._voice.wake(attempt.said + pace - self._voice.now)
