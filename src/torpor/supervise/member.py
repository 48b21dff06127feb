"""The member process of a part of a job over hosts: it alone speaks to the other hosts.

It is a child of the part's supervisor, that has threads and TLS here and not beside the job's processes. It runs this
host's side of checkpoints and restarts (`coordinate.host`), contends for the lease and, while it has it, coordinates
(coordinating.py). It never writes to a terminal or log: what is to be said is told to the supervisor. If it dies, the
supervisor starts another; if the supervisor dies, it leaves.

How it ends. Nothing of the job is here any more (Emptied): it says so until the coordinator has heard it, takes its key
out (parting.py), and tells the supervisor. When the job is over everywhere: job_end.py.
"""

from __future__ import annotations

import os
import socket
import time
from typing import Any

import msgspec

from torpor.coordinate import record, words
from torpor.coordinate.host import Host
from torpor.coordinate.phases import Phase
from torpor.link.lease import Lease
from torpor.link.link import (
    ABSENT,
    ALL,
    COORDINATOR,
    Conflict,
    Entry,
    Link,
    LinkError,
    Message,
    Status,
    host_topic,
    quote,
)
from torpor.link.mailbox import Mailbox
from torpor.link.members import PREFIX, Presence
from torpor.link.secret import Secret
from torpor.link.server import Server
from torpor.model.errors import TorporError
from torpor.supervise import part as parts
from torpor.supervise import wire
from torpor.supervise.bereaved import Bereaved, left_by
from torpor.supervise.coordinating import OWN, Coordinating
from torpor.supervise.job_end import AGAIN, JobEnd
from torpor.supervise.loop import Loop
from torpor.supervise.parting import PARTING, Parting
from torpor.supervise.wire import Wire

ENDING = "ending"
"""The key that has the signal by which somebody ends the job."""
HELD = "held"
"""The key that says whether all of the job stands still: `1`, or `0` once it may go on."""
SOON = 0.25
"""Seconds after which something is said again before it is in the job; later, `AGAIN`."""
UNKNOWN = 255 << 8
"""The status of a root that has ended without a supervisor."""
FOR_GOOD = 600.0
"""Seconds after which nobody tries any more to tell the others that a job without a supervisor is over."""
COMING = 60.0
"""Seconds within which all parts of a restart have to be there."""


class Info(msgspec.Struct, frozen=True):
    """What a part's key says. owner: of its supervisor."""

    owner: str
    incarnation: int
    address: str


class Asked:
    """A question that waits for its answer. until: given up then, unless something is under way."""

    def __init__(self, word: words.AskCheckpoint | words.AskRestart, until: float) -> None:
        self.word, self.until = word, until


class Member:
    """From its first word to its last; `run` returns then."""

    def __init__(self, begin: wire.Begin, link: Link, talk: Wire, loop: Loop | None = None) -> None:
        self.part, self.link, self.talk = parts.parse(begin.part), link, talk
        self.loop = loop or Loop()
        self._owner = begin.owner
        self._folder = begin.folder
        self._bereaved: Bereaved | None = None
        self._restart = begin.restart and self.part.first
        """Have we to ask for the restart?"""
        self._mail = Mailbox()
        self._host: Host | None = None
        self._coordinating: Coordinating | None = None
        self._asked: dict[str, Asked] = {}
        self._in = False
        self._emptied = False
        self._wakes = 0
        self._holds = 0
        self._restart_until = 0.0
        self._down = ""
        self._lease: Lease
        self._parting = Parting(
            self.part, link, self.loop.later, lambda: self._over_here, self._needed, self._release, self._gone
        )
        self.loop.watch(link.fd, link.deliver)
        self.loop.watch(self._mail.fd, self._mail.deliver)
        talk.follow(self.loop, self._hear, self._deserted)
        link.on_status(self._turned)
        self._job_end = JobEnd(
            self.part, link, talk.send, self.loop.later, lambda: self._in, self._over, self._end_here
        )
        link.watch(HELD, lambda _, entry: self._held(entry))
        if self.part.first or self.part.own:
            link.watch(ENDING, lambda _, entry: talk.send(wire.Ending(int(entry.value))) if entry else None)
        self._enter()
        self._tick()

    def run(self) -> None:
        """Until there is nothing more to do."""
        self.loop.run()
        self.talk.close()
        self.link.close()
        if self._bereaved is not None:
            for node in self.part.nodes:
                if node.name == self.part.part:
                    Server(node, f"{self._folder}/nats").stop()
            self._bereaved.close(self.part.job_file)

    # Coming into the job.

    def _enter(self) -> None:
        """Put our key, in place of that of a member process before us."""
        self.link.get(PREFIX + quote(self.part.part), self._found)

    def _found(self, entry: Entry | None, error: TorporError | None) -> None:
        if error is not None:
            self.loop.later(AGAIN, self._enter)
            return
        incarnation, revision = time.time_ns(), ABSENT
        if entry is not None:
            try:
                info = msgspec.msgpack.decode(entry.value, type=Info)
            except msgspec.MsgspecError:
                info = Info("", 0, "")
            if info.owner != self._owner:
                self._cannot(f"a part named {self.part.part} is in the job already")
                return
            incarnation, revision = max(incarnation, info.incarnation + 1), entry.revision
        mine = msgspec.msgpack.encode(Info(self._owner, incarnation, self.part.address))

        def entered(error: TorporError | None) -> None:
            if isinstance(error, Conflict):
                self._cannot(str(error))
            elif error is not None:
                self.loop.later(AGAIN, self._enter)
            elif self.part.own:
                self._enter_own(incarnation)
            else:
                self._begin(incarnation)

        self._parting.presence = Presence(self.link, self.loop.later, mine, entered, self.part.silent, revision)

    def _enter_own(self, incarnation: int) -> None:
        """The job is not to end without us."""

        def entered(_revision: int | None, error: TorporError | None) -> None:
            if error is not None:
                self.loop.later(AGAIN, lambda: self._enter_own(incarnation))
            else:
                self._begin(incarnation)

        self.link.put(OWN + quote(self.part.part), self.part.address.encode(), entered)

    def _begin(self, incarnation: int) -> None:
        host = self._host = Host(self.part.part, incarnation, self.part.limits)
        self.link.subscribe(ALL, self._spoken)
        self.link.subscribe(host_topic(self.part.part), self._spoken)
        self._do(host.start(time.monotonic(), self._emptied))
        self.loop.later(SOON, self._hurry)
        self._lease = Lease(self.link, self.loop.later, self._lead, self.part.lease)
        self._lease.contend()

    def _hurry(self) -> None:
        """At the beginning of a job nobody coordinates it for a moment: who asks to be in it asks often."""
        if self._host is not None and not self._host.admitted:
            self._do(self._host.handle(words.Tick(), time.monotonic()))
            self.loop.later(SOON, self._hurry)

    def _turned(self, status: Status) -> None:
        self._down = "" if status.up else status.why
        if status.final:
            self._cannot(status.why)

    # This host's side.

    def _spoken(self, message: Message) -> None:
        try:
            word = words.spoken(message.payload)
        except msgspec.MsgspecError:
            return
        if isinstance(word, words.Answer):
            self._answered(word)
            return
        host = self._host
        assert host is not None
        if isinstance(word, words.Order):
            for asked in self._asked.values():
                asked.until = max(asked.until, time.monotonic() + self.part.limits.host)
            if word.phase is Phase.COMMIT and word.attempt > host.floor:
                self.talk.send(wire.Exists(word.attempt))
        if isinstance(word, words.Dismissed) and not host.admitted and word.reason and word.host == host.name:
            self._cannot(word.reason)
            return
        self._do(host.handle(word, time.monotonic()))
        if host.admitted and not self._in:
            self._in = True
            self.talk.send(wire.In())
            if self._restart:
                self._restart_until = time.monotonic() + COMING
                self._ask_restart()

    def _do(self, instructions: list[words.HostInstruction]) -> None:
        for one in instructions:
            if isinstance(one, words.Say):
                self._say(one.word)
            elif isinstance(one, words.Work):
                self.talk.send(one)
            else:
                self._wake(one.seconds)
        if self._host is not None and self._host.left:
            self._parting.begin()

    def _say(self, word: words.Word) -> None:
        try:
            self.link.publish(COORDINATOR, words.encode(word))
        except LinkError:
            pass  # too long: it is not heard, and the attempt comes to its limit

    def _wake(self, seconds: float) -> None:
        self._wakes += 1
        serial = self._wakes

        def tick() -> None:
            if serial == self._wakes and self._host is not None:
                self._do(self._host.handle(words.Tick(), time.monotonic()))

        self.loop.later(seconds, tick)

    # What the supervisor says.

    def _hear(self, word: Any) -> None:
        if isinstance(word, wire.Ask):
            self._ask(words.AskCheckpoint(word.ask, word.stop, word.what))
        elif isinstance(word, wire.AskWho):
            self.talk.send(self._who())
        elif isinstance(word, wire.RootEnded):
            self._job_end.root_ended(word.status, word.waits)
        elif isinstance(word, wire.Ending):
            self.link.put(ENDING, str(word.number).encode(), lambda _revision, _error: None)
        elif isinstance(word, wire.Hold):
            self._holds += 1
            self._hold(word.on, self._holds)
        elif self._host is not None and isinstance(word, words.Finished | words.Broke):
            self._do(self._host.handle(word, time.monotonic()))
        elif isinstance(word, words.Emptied):
            self._emptied = True
            self.loop.later(PARTING, self._parting.begin)
            if self._host is not None:
                self._do(self._host.handle(word, time.monotonic()))

    def _hold(self, on: bool, serial: int) -> None:
        """All parts are to stand still, or to go on, also those that hear it late."""

        def done(_revision: int | None, error: TorporError | None) -> None:
            if error is not None:
                self.loop.later(AGAIN, lambda: self._hold(on, serial))

        if serial == self._holds:  # else something else has been said since
            self.link.put(HELD, b"%d" % on, done)

    def _held(self, entry: Entry | None) -> None:
        if entry is not None:
            self.talk.send(wire.Held(entry.value == b"1"))

    def _deserted(self) -> None:
        """The supervisor is dead. What it has left behind is ours."""
        entry = left_by(self._folder)
        if entry is None or self._over_here or not self._in:
            self._parting.leave(1.0)
            return
        self.link.unsubscribe(ALL)
        self.link.unsubscribe(host_topic(self.part.part))
        self._host = None
        self._lease.release()
        self._asked.clear()
        self._parting.bereaved()
        self._bereaved = Bereaved(entry, self.loop.later, self._root_left, self._none_left)

    def _root_left(self) -> None:
        """How it ended nobody knows."""
        if self.part.first:
            self.loop.later(FOR_GOOD, self._end_here)
            self._job_end.root_ended(UNKNOWN)

    def _none_left(self) -> None:
        if not self.part.first and not (self._parting.keeper or self._job_end.told):
            self._parting.leave(3.0)

    def _end_here(self) -> None:
        """The job is over, and there is no supervisor that would end what is here of it."""
        if self._bereaved is not None and not self._emptied:
            self._emptied = True
            self._bereaved.end()
            self._parting.begin()

    def _tick(self) -> None:
        """Signs of life, and what is said again."""
        if self._host is not None and self._host.attempt:
            self.talk.send(wire.Here())
        self.loop.later(self.part.limits.host / 8, self._tick)

    def _who(self) -> wire.Who:
        found: tuple[str, ...] = ()
        holder = ""
        if self._host is not None:
            holder = self._lease.holder
            if self._lease.state:
                found = tuple(name for name, _ in record.decode(self._lease.state).members)
        return wire.Who(found, holder)

    # Questions.

    def _ask(self, word: words.AskCheckpoint | words.AskRestart) -> None:
        patience = self.part.limits.silence + 2 * self.part.lease
        self._asked[word.ask] = Asked(word, time.monotonic() + patience)
        self._ask_again(word.ask)

    def _ask_again(self, ask: str) -> None:
        asked = self._asked.get(ask)
        if asked is None:
            return
        under_way = self._host is not None and self._host.attempt
        if time.monotonic() > asked.until and (self._down or not under_way):
            why = self._down or "no host coordinates the job"
            doubt = "; whether this one came about, torpor list tells" if under_way else ""
            self._answered(words.Answer(ask, False, f"{self.part.part}: {why}{doubt}"))
            return
        self._say(asked.word)
        self.loop.later(AGAIN, lambda: self._ask_again(ask))

    def _answered(self, answer: words.Answer) -> None:
        asked = self._asked.pop(answer.ask, None)
        if asked is None:
            return
        if isinstance(asked.word, words.AskCheckpoint):
            self.talk.send(answer)
        elif not answer.ok and not answer.attempt and time.monotonic() < self._restart_until:
            self.loop.later(0.5, self._ask_restart)  # somebody is not there yet
        elif not answer.ok:
            self._cannot(answer.text)
        else:
            self._restart = False

    def _ask_restart(self) -> None:
        plan = tuple((name, name) for name in self.part.hosts)
        self._ask(words.AskRestart(f"{self.part.part}/{os.urandom(8).hex()}", self.part.checkpoint, plan))

    # Coordinating.

    def _lead(self, held: bool) -> None:
        if self._coordinating is not None:
            self._coordinating.close()
            self._coordinating = None
        if held:
            self._coordinating = Coordinating(self.part, self.link, self._lease, self.loop.later, self._mail)

    # The end.

    def _over(self) -> None:
        """Another part has said that the job is over."""
        if self._emptied:
            self.loop.later(PARTING, self._parting.begin)
        self._do([])
        self._end_here()

    def _needed(self) -> bool:
        """Does anybody wait for an answer, or, now that the job is over, for us who coordinate it?"""
        leads = self._coordinating
        leading = self._over_here and leads is not None and (bool(leads.present) or not leads.idle)
        return bool(self._asked) or leading

    @property
    def _over_here(self) -> bool:
        """Is the job over, as far as we know?"""
        return self._job_end.status is not None or (self._host is not None and self._host.ended)

    def _release(self) -> None:
        if self._host is not None:
            self._lease.release()

    def _gone(self) -> None:
        self.talk.send(wire.Gone())
        self.loop.stop()

    def _cannot(self, reason: str) -> None:
        self.talk.send(wire.Cannot(reason))
        if self._restart:
            self._job_end.not_restarted()


def main(number: int) -> None:
    """The process. number: of the descriptor that leads to the supervisor."""
    os.closerange(number + 1, os.sysconf("SC_OPEN_MAX"))
    talk = Wire(socket.socket(fileno=number), wire.ToMember)
    begin = talk.wait(30.0)
    if not isinstance(begin, wire.Begin):
        raise SystemExit(1)
    from torpor.link import engine
    from torpor.link.nats import NatsLink
    from torpor.link.secret import parse

    secret: Secret = parse(begin.secret)
    part = parts.parse(begin.part)
    own = bool(part.nodes)
    found = engine.own(secret, part.part, part.nodes) if own else engine.site(part.engine, part.settings)
    link = NatsLink(found, secret, part.part)
    Member(begin, link, talk).run()
