"""What a member process does while it coordinates the job: the code around `coordinate.core`. It carries instructions
to the link, the lease and the store, and hands in what comes back."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import msgspec

from torpor.coordinate import record, words
from torpor.coordinate.core import Coordinator
from torpor.coordinate.record import Record
from torpor.image.whole import PartRecord
from torpor.link import members
from torpor.link.lease import Lease
from torpor.link.link import ALL, COORDINATOR, Link, LinkError, Message, host_topic, quote
from torpor.link.mailbox import Mailbox
from torpor.model.errors import TorporError
from torpor.supervise.part import Part
from torpor.supervise.saving import apart
from torpor.supervise.wire import How

TRIES = (0.0, 1.0, 3.0, 10.0)
"""Seconds before each attempt to write the job's root: a store that does not answer may do so in a moment."""
REMEMBERED = 100
"""So many answers are remembered: a question that is asked twice is answered twice, and done once."""
OWN = "own."
"""Begins the keys of parts that have joined the job with programs of their own: without these it is not over."""


class Coordinating:
    """From the moment at which this host holds the lease until it does not any more. mail: for what threads have to
    say."""

    def __init__(self, part: Part, link: Link, lease: Lease, later: members.Later, mail: Mailbox) -> None:
        self._part, self._link, self._lease, self._later, self._mail = part, link, lease, later, mail
        self._coordinator: Coordinator | None = None
        self._term = lease.token
        self._closed = False
        self._wakes = 0
        self._answered: OrderedDict[str, words.Answer] = OrderedDict()
        self._members = members.Members(link, later, self._change, part.silent)
        if lease.state:
            self._begin(record.decode(lease.state))
        else:
            self._thread(self._first, self._began)
        link.subscribe(COORDINATOR, self._hear)

    @property
    def present(self) -> set[str]:
        """The parts that are in the job."""
        return set(self._coordinator.members.present) if self._coordinator is not None else set()

    @property
    def alive(self) -> set[str]:
        """Those that can be reached."""
        return set(self._members.roster.alive)

    @property
    def idle(self) -> bool:
        """Is nothing under way?"""
        found = self._coordinator
        return found is None or (found.attempt is None and (found.ending is None or not found.ending.awaited))

    def close(self) -> None:
        """Say and do nothing any more."""
        if not self._closed:
            self._closed = True
            self._link.unsubscribe(COORDINATOR)
            self._members.close()

    # The beginning.

    def _first(self) -> int:
        from torpor.checkpoint import whole
        from torpor.store import open_store

        opened = open_store(self._part.store or None)
        try:
            return whole.latest(opened, self._part.job)
        finally:
            opened.close()

    def _began(self, number: int | None, error: BaseException | None) -> None:
        if number is not None:
            self._begin(Record(number=number))
        elif not self._closed:
            # A store that cannot be read now may be there in a moment; without it nothing can be saved.
            self._later(2.0, lambda: self._thread(self._first, self._began))

    def _begin(self, found: Record) -> None:
        if self._closed:
            return
        self._coordinator = Coordinator(self._term, found, 0, self._part.limits, tuple(self._part.hosts))
        self._do(self._coordinator.start(time.monotonic()))
        for host in self._coordinator.members.present:
            self._later(self._part.silent, lambda host=host: self._missed(host))  # type: ignore[misc]

    def _missed(self, host: str) -> None:
        """A host of the job that nobody has seen since we coordinate."""
        if host in self.present and host not in self._members.roster.alive:
            self._lost(host)

    def _lost(self, host: str) -> None:
        """Nobody is to wait for the end of its program."""
        self._link.delete(OWN + quote(host), lambda _none, _error: None)
        self._handle(words.Lost(host))

    # What comes in.

    def _hear(self, message: Message) -> None:
        try:
            word = words.report(message.payload)
        except msgspec.MsgspecError:
            return
        if isinstance(word, words.AskCheckpoint | words.AskRestart) and word.ask in self._answered:
            self._answer(self._answered[word.ask])
        else:
            self._handle(word)

    def _change(self, change: members.Change) -> None:
        if change.joined:
            self._handle(words.Found(change.host))
        else:
            self._lost(change.host)

    def _handle(self, event: words.Event) -> None:
        if self._coordinator is not None and not self._closed:
            self._do(self._coordinator.handle(event, time.monotonic()))

    # What goes out.

    def _do(self, instructions: list[words.Instruction]) -> None:
        for one in instructions:
            if self._closed:
                return
            if isinstance(one, words.Announce):
                self._say(ALL, one.word)
            elif isinstance(one, words.Tell):
                self._say(host_topic(one.host), one.word)
            elif isinstance(one, words.Save):
                self._save(one)
            elif isinstance(one, words.Commit):
                self._commit(one)
            elif isinstance(one, words.Answer):
                self._answered[one.ask] = one
                if len(self._answered) > REMEMBERED:
                    self._answered.popitem(last=False)
                self._answer(one)
            elif isinstance(one, words.Wake):
                self._wake(one.seconds)
            else:
                self.close()

    def _say(self, topic: str, word: words.Word) -> None:
        try:
            self._link.publish(topic, words.encode(word))
        except LinkError:
            pass  # too long: whoever waits for it has a limit

    def _answer(self, answer: words.Answer) -> None:
        self._say(host_topic(answer.ask.rpartition("/")[0]), answer)

    def _wake(self, seconds: float) -> None:
        self._wakes += 1
        serial = self._wakes

        def tick() -> None:
            if serial == self._wakes:
                self._handle(words.Tick())

        self._later(seconds, tick)

    def _save(self, save: words.Save) -> None:
        def done(error: TorporError | None) -> None:
            # An error means that the lease is lost: whether this was written, its next holder will see.
            self._handle(words.Saved(save.revision + 1) if error is None else words.Outrun())

        self._lease.put(record.encode(save.record), done)

    # The store.

    def _commit(self, commit: words.Commit) -> None:
        assert self._coordinator is not None and self._coordinator.record.open is not None
        what = self._coordinator.record.open.what

        def done(notes: Any, error: BaseException | None) -> None:
            if error is None:
                self._handle(words.Committed(commit.attempt, "\n".join(notes)))
            else:
                self._handle(words.NotCommitted(commit.attempt, str(error) or type(error).__name__))

        self._thread(lambda: self._write(commit, what), done)

    def _write(self, commit: words.Commit, what: str) -> list[str]:
        """In a thread; what there is to know of it. Done again it does nothing more."""
        from torpor.checkpoint import whole
        from torpor.image import seal
        from torpor.store import behind, open_store

        records = [msgspec.msgpack.decode(data, type=PartRecord) for _, data in commit.parts]
        how = msgspec.json.decode(what, type=How) if what else How()
        label = {"upkeep": self._part.upkeep} if self._part.upkeep else {}
        for number, pause in enumerate(TRIES, 1):
            time.sleep(pause)
            if self._closed:
                raise TorporError("another coordinates the job now")
            try:
                opened = open_store(self._part.store or None)
                try:
                    whole.commit(
                        opened,
                        seal.sealing(how.encrypt_to),
                        self._part.job,
                        commit.attempt,
                        records,
                        label,
                        self._part.identity,
                    )
                finally:
                    opened.close()
            except OSError:
                if number == len(TRIES):
                    raise
            else:
                behind.start_thread(opened.location)
                break
        return whole.notes(records)

    def _thread(self, work: Callable[[], Any], done: Callable[[Any, BaseException | None], None]) -> None:
        apart("torpor-store", work, done, self._mail.post)
