"""The supervisor of one job: waits for its end, passes signals on, answers commands, has checkpoints made.

It is the job's parent (or, after a restart, the parent of the namespace's PID 1) and a child-subreaper, so
that orphans of the job stay below it. It stays out of the way: between events it sleeps in poll(2). Were it
to die, the job would go on running; only its exit status would be lost.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torpor.model.errors import TorporError, UsageError
from torpor.supervise import hooks, protocol, registry, state, upkeep
from torpor.supervise.joined import Joined
from torpor.supervise.keeper import Done, Keeper, Order
from torpor.supervise.loop import Loop
from torpor.supervise.own_entry import OwnEntry
from torpor.supervise.registry import Entry
from torpor.supervise.requests import Requests
from torpor.supervise.root import Root
from torpor.supervise.saving import Guard, Progress, Worker
from torpor.supervise.say import say
from torpor.supervise.signals import Signals
from torpor.supervise.terminal import Terminal
from torpor.supervise.tree import Reach, members, reach

if TYPE_CHECKING:
    from torpor.checkpoint.tracking import Tracker
    from torpor.supervise.agreeing import Saving
    from torpor.supervise.arriving import ArrivalWatch
    from torpor.supervise.inside import Inside
    from torpor.supervise.membership import Membership
    from torpor.supervise.part import Part
    from torpor.supervise.standing import Standing
    from torpor.watch.wrapper import Wrapper

TICK_SECONDS = 30.0
"""How often to look whether our entry in the runtime folder still exists: the end of a login session deletes
$XDG_RUNTIME_DIR, also under jobs that are to outlive it."""


class Supervisor:
    """Supervises the job of `entry`, whose root runs already.

    events: descriptor on which the root's changes of state are read (restarted jobs, contract of
    `Restarted.events`), or -1: the root is our child.  streams: what the job inherited, by its number there,
    and our own descriptor of the same open file.  seconds: how long its latest checkpoints took.  crashes: how
    often it has crashed already.  wrapper: what is around a job that is watched.  membership: in a job over hosts.
    What is to be done unasked stands in the entry (`Entry.upkeep`).
    """

    def __init__(
        self,
        entry: Entry,
        signals: Signals,
        terminal: Terminal,
        streams: Mapping[int, int],
        events: int = -1,
        seconds: Sequence[float] = (),
        crashes: int = 0,
        wrapper: Wrapper | None = None,
        membership: Membership | None = None,
        arrivals: int = -1,
    ) -> None:
        self.own_entry = OwnEntry(entry if membership is None else entry._replace(part=membership.part.part))
        self._arrivals = arrivals
        self._arriving: ArrivalWatch | None = None
        self.stopped_as = ""
        """The checkpoint, `train@3`, after which the job was ended on request; '' if it was not."""
        self.crashes = crashes if membership is None else membership.part.crashes
        self.again = False
        """The job has crashed and is to be restarted: its entry is kept, and who waits for its end goes on waiting."""
        self._upkeep = upkeep.decode(entry.upkeep)
        if membership is not None and not membership.part.first:
            self._upkeep = upkeep.of_part(self._upkeep)
        self._tracked: Tracker | None = None
        self._signals = signals
        self._terminal = terminal
        self._streams = streams
        self.wrapper = wrapper
        self._standing: Standing | None = None
        self._paused = False
        self._membership = membership
        self._inside: Inside | None = None
        self._trouble = ""
        self._reap_pending = False
        self.joined = Joined()
        self._loop = Loop()
        self.root = Root(entry, events, self._loop, self.tell, self.after)
        self.guard = Guard()
        self.worker = Worker()
        self.guard.on_release = self.worker.wake
        self.guard.hush = signals.hush
        self._keeper = Keeper(
            self._upkeep, self._loop, self.save, self.busy, self.root.send, seconds,
            entry.saved or entry.origin,
        )  # fmt: skip
        self._requests = Requests(self, self._loop)

    def stand(self, standing: Standing) -> None:
        """What the job holds outside is ours from now on."""
        self._standing = standing
        if standing.seats is not None:
            standing.seats.pause, standing.seats.resume = self._pause, self._resume
            standing.seats.replaced = self.own_entry.keeper_replaced

    def run(self) -> int:
        """Until the root has ended. Returns its wait status."""
        self._loop.watch(self._signals.fd, self._on_signals)
        self._loop.watch(self.worker.fd, self._on_worker)
        self.root.watch()
        self._reap()
        self._loop.later(TICK_SECONDS, self._tick)
        self._watch_holder()
        if self._arrivals >= 0:
            from torpor.supervise.arriving import ArrivalWatch

            self._arriving = ArrivalWatch(self._loop, self._arrivals, self.entry)
        if self._standing is not None:
            self._standing.attach(self._loop)
        if self._membership is not None:
            self._membership.attach(self._loop, self.worker, self)
        self._keeper.start()
        self._after_restart()
        self._answer_inside()
        if not self._finished():
            self._loop.run()
        return self._end()

    @property
    def entry(self) -> Entry:
        """The job's in the registry, as it is now."""
        return self.own_entry.now

    @property
    def part(self) -> Part | None:
        """Which part of a job over hosts it is."""
        return self._membership.part if self._membership is not None else None

    # -- the root
    # ---------------------------------------------------------------------------------------------

    def _on_signals(self, _events: int) -> None:
        for got in self._signals.drain():
            if got.number == signal.SIGCHLD:
                self._reap_pending = True
            elif got.number == signal.SIGCONT:
                if self.root.held:
                    self._resume() if self._membership is not None else self.root.let_on()
                elif self.root.stopped and not got.from_kernel and self.root.alive:
                    self._terminal.resume(self.entry.root)
            elif self.root.has_got(got, self.entry):
                self.root.told.add(got.number)
            elif self.root.status is not None or not self._keeper.signal(got.number):
                self.root.send(got.number)
        if self._reap_pending:
            self._reap()
        self.after()

    def _reap(self) -> None:
        """Take the states of our children: the root's, and those of orphans that have become ours."""
        self._reap_pending = True
        if not self.guard.try_enter():
            return  # a save is tracing; it wakes us when it has let go
        self._reap_pending = False
        try:
            while True:
                seen = os.waitid(os.P_ALL, 0, os.WEXITED | os.WSTOPPED | os.WCONTINUED | os.WNOHANG)
                if seen is None:
                    break
                if seen.si_pid == self.root.pid.pid and self.root.child:
                    self.root.changed(seen.si_code, seen.si_status)
                else:
                    self.joined.changed(seen.si_pid, seen.si_code, seen.si_status)
        except ChildProcessError:
            pass
        finally:
            self.root.look_for_end()
            self.joined.look()
            self.guard.leave()

    def _pause(self) -> None:
        """It lacks a seat, and may not run on for now."""
        self.held(True)
        if self._membership is not None:
            self._membership.hold(True)

    def _resume(self) -> None:
        self.held(False)
        if self._membership is not None:
            self._membership.hold(False)

    def held(self, on: bool) -> None:
        """All that is here of the job is to stand still, or may go on."""
        if on and not self._paused and not self.worker.busy:
            self.root.hold(self.entry)  # else once the save is over
        elif not on:
            self.root.let_on()
        self._paused = on

    def after(self) -> None:
        """What follows from a change of state, once everything that has arrived was looked at."""
        if not self.worker.busy:
            self.joined.begin()
            self.joined.answer(self._final)
        if self._membership is not None and self.root.status is not None and not self.joined.run:
            self._membership.root_ended(self.root.status)
        if self._finished():
            self._loop.stop()
        elif self.root.stop_pending and not self.worker.busy and not self.root.held:
            # Not while a checkpoint is being made: its command would wait until somebody brings us back.
            number, self.root.stop_pending = self.root.stop_pending, 0
            self._terminal.stopped(
                self.entry.root, number, self._signals, lambda: members(reach(self.entry)), self.own_entry.set_aside
            )

    def _watch_holder(self) -> None:
        if self.wrapper is not None:
            from torpor.supervise.holder_watch import HolderWatch

            HolderWatch(self._loop, self.wrapper, self.own_entry.holder_replaced).start()

    def watched_by(self, wrapper: Wrapper) -> None:
        """What the job asks for is written down from now on."""
        self.wrapper = wrapper
        self._watch_holder()

    def _finished(self) -> bool:
        if self._membership is not None and not self._membership.over:
            return False
        return self.root.status is not None and not self.worker.busy and not self.joined.run

    def _final(self, status: int) -> dict[str, Any]:
        """What whoever waits for a program that has joined is told."""
        return {"status": upkeep.final_status(self._upkeep, status, bool(self.stopped_as), False, False)}

    def _end(self) -> int:
        status = self.root.status if self.root.status is not None else 255 << 8
        if self._arriving is not None:
            self._arriving.ended()
        self.again = self._crashed(status)
        if not self.again:
            if self._standing is not None:
                self._standing.close()  # before anybody hears of the end who might want to have it next
            known = bool(self.entry.saved or self.entry.origin)
            status = upkeep.final_status(self._upkeep, status, bool(self.stopped_as), self._keeper.interrupted, known)
            self._requests.ended(status)
            if self.entry.log or self.crashes:  # who waits for a job that has crashed asks again, perhaps too late
                state.record_end(self.entry.name, status)  # before our entry goes: who misses that looks here
        self._terminal.close(lambda: members(reach(self.entry)))
        if self._membership is not None:
            self._membership.close()
        if not self.again:
            registry.release(self.entry)
        self._requests.close()
        return status

    def hand_over(self) -> int:
        """The job is to be restarted by the program that this process becomes: a descriptor of whoever keeps its seats,
        -1 if it has none."""
        seats = self._standing.seats if self._standing is not None else None
        return seats.hand_over() if seats is not None else -1

    def _crashed(self, status: int) -> bool:
        """Has the job crashed, and is it to be restarted? Then nothing of it is left here."""
        if self.stopped_as or self.crashes >= self._upkeep.crashes:
            return False
        from torpor.supervise import crash

        if not crash.restartable(self.entry, status, self.root.told):
            return False
        self.crashes += 1
        self.own_entry.write(crash.clear_away(self.entry, status, self.crashes))
        return True

    # -- the commands
    # -------------------------------------------------------------------------------------------

    def _tick(self) -> None:
        if self.entry.folder and not os.path.exists(f"{self.entry.folder}/socket"):
            self.own_entry.write_down()
            self._requests.listen()
        self._loop.later(TICK_SECONDS, self._tick)

    def _after_restart(self) -> None:
        """Run what is to be run now that the job has been restarted."""
        wanted = [command for event, command in self._upkeep.hooks if event == "post-restart"]
        if not wanted or not self.entry.origin:
            return
        entry = self.entry
        told = {"JOB": entry.name, "CHECKPOINT": entry.origin, "STORE": entry.store, "PID": str(entry.root.pid)}
        if self._membership is not None:
            part = self._membership.part
            told |= {"JOB": part.job, "PART": part.part, "PARTS": " ".join(part.hosts)}

        def done(_result: Any, error: BaseException | None) -> None:
            if error is not None:
                say(f"torpor: {error}")

        self.worker.start("restart", lambda: hooks.run(self._upkeep.hooks, "post-restart", told, self.guard), done)

    def change_hooks(self, given: hooks.Hooks) -> None:
        if self._membership is not None:
            raise UsageError("a job over hosts has the hooks that it was started with: give others at its next restart")
        self._upkeep = upkeep.changed(self._upkeep, {"hooks": given})
        self.own_entry.write(self.entry._replace(upkeep=upkeep.encode(self._upkeep)))

    def _answer_inside(self) -> None:
        """The job's programs may speak with us."""
        if not self.entry.inside:
            return
        from torpor.supervise import inside

        def changed(kept: str) -> None:
            self.own_entry.write(self.entry._replace(inside=kept))

        def save(done: Done) -> None:
            self.save(Order(why="inside"), lambda *_: None, done)

        entry = self.entry
        if self._membership is not None:
            entry = entry._replace(name=self._membership.part.job)
        self._inside = inside.begin(self._loop, entry, changed, save, lambda: bool(self.busy()))

    def tell(self, event: protocol.Message) -> None:
        """Something has happened to the job."""
        self._requests.tell(event)

    def inherited(self) -> list[tuple[int, int]]:
        return [*self._streams.items(), *self.joined.streams]

    def busy(self) -> str:
        asked = self._membership is not None and self._membership.busy
        held = self._inside is not None and self._inside.waiting
        return self.worker.busy or ("checkpoint" if asked or held else "")

    def free(self) -> None:
        if busy := self.busy():
            raise TorporError(f"a {busy} of {self.entry.name} is being made already")
        if self.root.status is not None:
            raise TorporError(f"{self.entry.name} has just ended")

    def save(self, order: Order, progress: Progress, done: Done) -> None:
        """Have a checkpoint made, and what is then one too many removed. Raises TorporError if it cannot be begun."""
        from torpor.supervise import saving

        self.free()
        store = order.store or self.entry.store
        job = self.entry.name if self._membership is None else self._membership.part.job
        name = registry.check_name(order.name or job)
        own = (name, store) == (job, self.entry.store)
        keep = self._upkeep.keep if own else 0

        def thinned(result: dict[str, Any]) -> dict[str, Any]:
            trouble = saving.thin(store, name, keep) if keep else ""
            if trouble:
                result["notes"].append(trouble)
                if order.why != "command" and trouble != self._trouble:
                    say(f"torpor: {trouble}")
            self._trouble = trouble
            return result

        def finished(result: dict[str, Any] | None, error: BaseException | None) -> None:
            if result is None or error is not None:
                done(None, error or TorporError("it failed"))
                return
            self.own_entry.saved(f"{result['job']}@{result['number']}")
            if order.stop:
                self.stopped_as = self.entry.saved
            if own:
                self._keeper.saved(self.entry.saved, float(result["seconds"]))
            self.tell({"event": "saved", **result})
            done(result, None)

        if self._membership is not None:
            self._membership.ask(order, progress, thinned, finished)
            return
        where = reach(self.entry)

        def go() -> None:
            self.worker.start("checkpoint", lambda: thinned(self._made(order, where, name, store, progress)), finished)

        self.when_free(go, lambda error: finished(None, error))

    def _made(
        self, order: Order, where: Reach, name: str, store: str, progress: Progress, together: Saving | None = None
    ) -> dict[str, Any]:
        """In the worker: make a checkpoint, or our part of one; the report."""
        from torpor.supervise import saving

        first = self._membership is None or self._membership.part.first
        if self._paused:
            # What is stopped would be stopped after a restart, too. It runs on for the moment until it is frozen.
            self.root.let_on()
        made = saving.save(
            name, where, store,
            stop=order.stop, files=order.files, with_files=order.with_files, compress=order.compress,
            encrypt_to=order.encrypt_to, streams=self.inherited(), progress=progress, guard=self.guard,
            upkeep=self.entry.upkeep, inside=self.entry.inside, why=order.why,
            ledger=self.wrapper.ledger if self.wrapper is not None else lambda: None,
            policy=self.entry.policy, seats=self.entry.seats, identity=self.entry.identity,
            together=together, first=first, tracker=self._tracker(), on=order.on, forget=order.forget,
        )  # fmt: skip
        if self._standing is not None and first and not order.stop:
            self._standing.hold(store)
        return made

    def _tracker(self) -> Tracker | None:
        """What is known of the job's writes, if they are tracked."""
        if self._tracked is None and self._upkeep.track:
            from torpor.checkpoint.tracking import Tracker

            self._tracked = Tracker()
        return self._tracked

    # -- our part in a job over hosts (`membership.Supervised`)
    # -------------------------------------------------------------------------------------------

    def save_part(self, order: Order, saving: Saving, progress: Progress) -> dict[str, Any]:
        assert self._membership is not None
        name, store = self._membership.part.job, self._membership.part.store
        return self._made(order, reach(self.entry), name, store, progress, saving)

    def when_free(self, go: Callable[[], None], refuse: Callable[[TorporError], None]) -> None:
        if self._inside is not None:
            self._inside.when_free(go, refuse)
        else:
            go()

    def ending(self, number: int) -> None:
        """Somebody is about to end the job by that signal: it is no crash."""
        self.ended_by(number)
        if self._membership is not None:
            self._membership.ending(number)

    def ended_by(self, number: int) -> None:
        self.root.told.add(number)

    def processes(self) -> list[int]:
        return members(reach(self.entry))

    def set_own(self, pids: tuple[int, ...]) -> None:
        self.own_entry.set_own(pids)

    def saved_as(self, checkpoint: str, stopped: bool) -> None:
        self.own_entry.saved(checkpoint)
        if stopped:
            self.stopped_as = checkpoint

    def _hold_again(self) -> None:
        """A save has let it on for a moment."""
        if self.root.status is None:
            self.root.hold(self.entry)

    def _on_worker(self, events: int) -> None:
        self.worker.deliver(events)
        if self._paused and not self.worker.busy and not self.root.held and not self.stopped_as:
            self._hold_again()
        if self._reap_pending:
            self._reap()
        if self._membership is not None and not self.worker.busy:
            self._membership.idle()
        if not self.busy() and self.root.status is None and not self.stopped_as:
            self._keeper.idle()
        self.after()
