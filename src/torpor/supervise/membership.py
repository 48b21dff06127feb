"""A supervisor's part in a job over hosts: its member process, what that orders, what is asked of it, and the end.

The member process (member.py) speaks to the other hosts and decides nothing about processes; here its orders become
saves in the supervisor's worker thread, and what came of them is told back. If it dies, what is being saved is given
up, and another is started.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

from torpor.coordinate import words
from torpor.coordinate.phases import Kind, Phase
from torpor.coordinate.words import Work
from torpor.image.whole import Face
from torpor.model.errors import CheckpointFailed, NotNow, RestartFailed, TorporError
from torpor.posix import host_names
from torpor.supervise import member_start, wire
from torpor.supervise import part as parts
from torpor.supervise.agreeing import Restarting, Saving
from torpor.supervise.asked import Questions
from torpor.supervise.keeper import Done, Order
from torpor.supervise.leaving import PARTING, SHORTLY, Leaving
from torpor.supervise.loop import Loop
from torpor.supervise.part import Part
from torpor.supervise.saving import Progress, Worker
from torpor.supervise.say import say
from torpor.supervise.wire import How, Wire

if TYPE_CHECKING:
    from torpor.checkpoint.whereabouts import Whereabouts
    from torpor.link.secret import Secret
    from torpor.link.server import Server

_NO_REASON = "other hosts did not come back"
DEATHS, SPAN, PAUSE = 5, 60.0, 10.0
"""A member process that dies so often within so many seconds is started again only after a pause."""


class Supervised(Protocol):
    """What the supervisor does for us. All but `save_part` in its loop."""

    def save_part(self, order: Order, saving: Saving, progress: Progress) -> dict[str, Any]:
        """In the worker thread: save this part together with the others; the report."""
        ...

    def when_free(self, go: Callable[[], None], refuse: Callable[[TorporError], None]) -> None:
        """See `Inside.when_free`."""
        ...

    def processes(self) -> list[int]:
        """Those of the job here."""
        ...

    def set_own(self, pids: tuple[int, ...]) -> None:
        """These children of the supervisor are not of the job."""
        ...

    def saved_as(self, checkpoint: str, stopped: bool) -> None:
        """That checkpoint exists; stopped: and the job was ended."""
        ...

    def after(self) -> None:
        """Something has changed: is it over?"""
        ...

    def held(self, on: bool) -> None:
        """All of the job is to stand still, or may go on."""
        ...

    def ended_by(self, number: int) -> None:
        """Somebody ends the job by that signal."""
        ...


class Membership:
    """part, secret: what it is a part of.  folder: of its entry in the registry.  server: one of the job's own NATS
    servers, if this host keeps one; it is ended when all is over.  command: of the member process; for tests."""

    def __init__(
        self, part: Part, secret: Secret, folder: str, server: Server | None = None,
        command: tuple[str, ...] = (),
    ) -> None:  # fmt: skip
        self.part = part
        self._secret, self._folder, self._server = secret, folder, server
        self._command = command or member_start.command()
        self._owner = os.urandom(8).hex()
        self._wire: Wire
        self._pid = 0
        self._deaths: list[float] = []
        self._trouble = ""
        """Why there is no member process any more."""
        self._loop: Loop
        self._worker: Worker
        self._job: Supervised
        self._saving: Saving | None = None
        self._waiting: Work | None = None
        """An order to begin, while something else is being done."""
        self._questions = Questions(part, lambda word: self._wire.send(word))
        self._joined: tuple[str, ...] = ()
        """Addresses of parts that have joined the job."""
        self._face = Face(os.uname().nodename, _names(part))
        """How the job knows this host."""
        self._leaving = Leaving(part, lambda word: self._wire.send(word), server is not None, lambda: self._trouble,
                                self._left)  # fmt: skip
        self._again = False
        self._held: bool | None = None
        """What was said last of whether the job stands still."""
        self._restarting: Restarting | None = None
        self._undone = ""
        """The checkpoint whose restart was undone after it had come back here, until that is told."""
        self._spawn(bool(part.checkpoint))

    @property
    def over(self) -> bool:
        """Is there nothing more to be done here?"""
        return self._leaving.gone and self._questions.over

    @property
    def busy(self) -> bool:
        """Is a checkpoint asked for, or being made?"""
        return self._questions.open or self._saving is not None or self._waiting is not None

    @property
    def pids(self) -> tuple[int, ...]:
        """Our own processes below the supervisor."""
        servers = self._server.pids.values() if self._server is not None else ()
        return (self._pid, *(pid for pid, _ in servers))

    # The member process.

    def _spawn(self, restart: bool = False) -> None:
        self._keep_key()
        self._pid, ours = member_start.start(self._command)
        self._wire = Wire(ours, wire.ToSupervisor)
        self._wire.send(wire.Begin(self._secret.line(), parts.line(self.part), self._owner, restart, self._folder))

    def _keep_key(self) -> None:
        if self.part.key and self._folder:
            member_start.keep_key(self.part.key, self._folder)

    def _lost(self) -> None:
        """The member process has ended."""
        if self._leaving.emptied or self._trouble:
            self._leaving.leave()
            return
        if self._saving is not None:
            self._saving.give_up("its member process has ended")
        self._waiting = None
        self._again = True
        self._respawn()

    def _respawn(self) -> None:
        """Start another, but not while a save looks which processes there are."""
        if not self._again or self._worker.busy:
            return
        now = time.monotonic()
        self._deaths = [*(death for death in self._deaths if death > now - SPAN), now]
        self._again = False
        if len(self._deaths) > DEATHS:
            self._deaths.clear()
            self._again = True
            self._loop.later(PAUSE, self._respawn)
            return
        try:
            self._spawn()
        except OSError:
            self._again = True
            self._loop.later(PAUSE, self._respawn)
            return
        self._job.set_own(self.pids)
        self._follow()
        self._leaving.say_again()
        self._questions.say_again()

    def _follow(self) -> None:
        self._wire.follow(self._loop, self._hear, self._lost)

    # Before the job runs.

    def join(self, limit: float = 60.0) -> None:
        """Wait until this part is in the job: then a program may be started. Raises TorporError."""
        self._await(lambda word: isinstance(word, wire.In), limit, "no other host of the job answers")

    def recreate(self, limit: float) -> Restarting:
        """Wait until this part is to be restarted. Raises RestartFailed."""
        found = self._await(lambda word: isinstance(word, Work), limit, "it was not told to begin")
        if found.phase is not Phase.RECREATE:
            raise RestartFailed(f"{self.part.part}: it was given up before it had begun")
        self._restarting = Restarting(
            found, self.part.address, self._secret, self._wire, self.part.limits.host, self._early
        )
        return self._restarting

    def knows(self, whereabouts: Whereabouts) -> None:
        """This part comes back: to the job its host is what it was."""
        face, was = whereabouts.me.face, whereabouts.me.was
        self._face = msgspec.structs.replace(face, address=face.address or was)

    def give_up(self, reason: str) -> str:
        """This part of a restart did not come about, and nothing is left of it: tell the others, and leave the job.
        Returns the reason that whoever waits is to be told."""
        found = self._restarting
        try:
            if found is not None and not found.undo:
                self._wire.send(words.Broke(found.number, found.phase, reason))
                self._await(lambda word: isinstance(word, Work) and word.phase is Phase.UNDO, 5.0, "")
            if found is not None:
                self._wire.send(words.Finished(found.number, Phase.UNDO))
            if self.part.first and found is not None:
                self._await(lambda word: False, self.part.limits.ending, "")
        except TorporError as error:
            reason = str(error) or reason
        self._leaving.emptied = True
        try:
            self._wire.send(words.Emptied())
            self._await(lambda word: isinstance(word, wire.Gone), SHORTLY if self._trouble else PARTING, "")
        except TorporError:
            pass
        self.close()
        return reason

    def _await(self, wanted: Callable[[Any], bool], limit: float, late: str) -> Any:
        until = time.monotonic() + limit
        while (left := until - time.monotonic()) > 0:
            try:
                word = self._wire.wait(left)
            except EOFError:
                raise RestartFailed(f"{self.part.part}: its member process has ended") from None
            if word is not None and wanted(word):
                return word
            self._early(word)
        raise RestartFailed(f"{self.part.part}: {late}" if late else "")

    def _early(self, word: Any) -> None:
        if isinstance(word, wire.Held):
            self._held = word.on
        if isinstance(word, wire.Joined):
            self._joined = word.addresses
        if isinstance(word, wire.Cannot):
            self._trouble = word.reason
            raise RestartFailed(word.reason)
        if isinstance(word, wire.End) and not self._leaving.emptied:
            raise RestartFailed("")

    # While it runs.

    def attach(self, loop: Loop, worker: Worker, job: Supervised) -> None:
        """The job runs here, and its supervisor's loop does."""
        self._loop, self._worker, self._job = loop, worker, job
        self._questions.attach(loop, worker, job.after)
        self._leaving.attach(loop, worker, job.processes)
        job.set_own(self.pids)
        self._follow()
        if self._held is not None:
            job.held(self._held)

    def hold(self, on: bool) -> None:
        """All of the job is to stand still, or may go on."""
        self._wire.send(wire.Hold(on))

    def ending(self, number: int) -> None:
        """Somebody ends the job here, by that signal."""
        self._wire.send(wire.Ending(number))

    def idle(self) -> None:
        """The worker has done what it did: what has waited for that is done."""
        self._respawn()
        work, self._waiting = self._waiting, None
        if work is not None:
            self._order(work)

    def close(self) -> None:
        """Nothing is left of the job here, or nobody can be told."""
        self._wire.close()
        if self._server is not None:
            self._server.stop()

    def _hear(self, word: Any) -> None:
        if self._saving is not None:
            self._saving.spoken_to()
        if isinstance(word, Work):
            self._order(word)
        elif isinstance(word, words.Answer):
            self._questions.answer(word)
        elif isinstance(word, wire.Exists):
            self._job.saved_as(f"{self.part.job}@{word.number}", False)
            if self._saving is not None and self._saving.number == word.number:
                self._saving.exists()
        elif isinstance(word, wire.End):
            self._leaving.end()
        elif isinstance(word, wire.Waiting):
            self._leaving.wait(word.parts)
        elif isinstance(word, wire.Held):
            self._job.held(word.on)
        elif isinstance(word, wire.Joined):
            self._joined = word.addresses
        elif isinstance(word, wire.Ending):
            self._job.ended_by(word.number)
        elif isinstance(word, wire.Cannot):
            self._cannot(word.reason)
        elif isinstance(word, wire.Gone):
            self._leaving.leave()

    def _cannot(self, reason: str) -> None:
        if self._undone:
            self._trouble = reason
            self._tell_undone(reason)
        elif not self._trouble:
            self._trouble = reason
            say(f"torpor: {self.part.part} is cut off from {self.part.job}: {reason}; it runs on, and cannot be saved")
        if self._saving is not None:
            self._saving.give_up(reason)
        self._questions.fail(reason)
        if self._leaving.status is not None and self.part.first:
            self._leaving.end()

    # Orders.

    def _order(self, work: Work) -> None:
        saving = self._saving
        if saving is not None and work.attempt == saving.number and work.phase is not Phase.SURVEY:
            saving.order(work)
        elif work.phase is Phase.UNDO:
            self._undo(work)
        elif work.phase is Phase.COMMIT:
            self._leaving.over = True
            self._leaving.kill_all()
            self._job.saved_as(f"{self.part.job}@{work.attempt}", True)
            self._finished(work)
        elif self.part.first and self._leaving.status is not None:
            self._wire.send(words.Broke(work.attempt, work.phase, "its program has ended, and so the job is about to"))
        elif work.phase is not Phase.SURVEY:
            self._wire.send(words.Broke(work.attempt, work.phase, "it has let go of the job already"))
        elif self._worker.busy:
            self._waiting = work
            if saving is not None:
                saving.give_up("whether it exists was not heard")  # else there would be no other
        else:
            self._begin(work)

    def _finished(self, work: Work) -> None:
        self._wire.send(words.Finished(work.attempt, work.phase))

    def _undo(self, work: Work) -> None:
        """Nothing of that attempt is being done."""
        self._waiting = None
        if work.kind is Kind.RESTART and self._restarting is not None and self._restarting.number == work.attempt:
            self._undone = self._restarting.what
            if not self.part.first:
                self._tell_undone(_NO_REASON)
            self._leaving.kill_all()
        self._finished(work)

    def _tell_undone(self, why: str) -> None:
        """Why the job is gone that was here just now. Who asked for its restart is told the reason, a little later."""
        what, self._undone = self._undone, ""
        if what:
            say(f"torpor: the restart of {what} was undone: {why}")

    def _begin(self, work: Work) -> None:
        """Once nobody here is in the middle of something that is not to be interrupted."""
        self._waiting = work

        def go() -> None:
            if self._waiting is work and not self._worker.busy:  # else it was given up, or has to wait once more
                self._waiting = None
                self._save(work)

        def refuse(error: TorporError) -> None:
            if self._waiting is work:
                self._waiting = None
                self._wire.send(words.Broke(work.attempt, work.phase, str(error)))

        self._job.when_free(go, refuse)

    def _save(self, work: Work) -> None:
        part, stop = self.part, work.kind is Kind.STOP
        self._keep_key()
        self._job.set_own(self.pids)  # a server that crashed was started again by its keeper
        saving = self._saving = Saving(part, self._secret, work.attempt, stop, self._post, self._face, self._joined)
        how = msgspec.json.decode(work.what, type=How) if work.what else How()
        order = Order(stop, how.files, how.with_files, how.compress, how.encrypt_to, why=how.why, on=how.on,
                      forget=how.forget)  # fmt: skip
        tell = self._questions.progress()

        def progress(phase: str, done: int, total: int) -> None:
            saving.check()
            tell(phase, done, total)

        def done(_result: Any, error: BaseException | None) -> None:
            self._saving = None
            self._saved(work, saving, error)

        self._worker.start("checkpoint", lambda: self._job.save_part(order, saving, progress), done)

    def _post(self, word: words.Finished) -> None:
        self._worker.post(lambda: self._wire.send(word))

    def _saved(self, work: Work, saving: Saving, error: BaseException | None) -> None:
        """The save is over, one way or the other."""
        from torpor.checkpoint.save import Changed

        if error is None:
            if saving.phase is Phase.COMMIT:
                self._leaving.over = True
                self._job.saved_as(f"{self.part.job}@{work.attempt}", True)
                self._wire.send(words.Finished(work.attempt, Phase.COMMIT))
            elif saving.undo:
                self._wire.send(words.Finished(work.attempt, Phase.UNDO))
        elif saving.undo:
            self._wire.send(words.Finished(work.attempt, Phase.UNDO))
        else:
            reason = str(error) if isinstance(error, TorporError) else f"{type(error).__name__}: {error}"
            passing = isinstance(error, Changed | NotNow)
            self._wire.send(words.Broke(work.attempt, saving.phase, reason, passing))

    def ask(
        self, order: Order, progress: Progress, then: Callable[[dict[str, Any]], dict[str, Any]], done: Done
    ) -> None:
        """See `Questions.ask`. Raises TorporError if that cannot be asked."""
        if self._trouble:
            raise CheckpointFailed(f"{self.part.part} is cut off from the job: {self._trouble}")
        self._questions.ask(order, progress, then, done)

    # The end.

    def root_ended(self, status: int) -> None:
        """The root has ended here."""
        self._leaving.root_ended(status)

    def _left(self) -> None:
        """This part has left the job."""
        self._tell_undone(_NO_REASON)
        self._questions.fail("the job has ended")
        self._job.after()


def _names(part: Part) -> tuple[str, ...]:
    """Under which this host is known."""
    return host_names.names_of(host_names.read(), part.address, part.part, os.uname().nodename)
