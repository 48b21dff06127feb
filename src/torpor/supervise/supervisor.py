"""The supervisor of one job: waits for its end, passes signals on, answers commands, has checkpoints made.

It is the job's parent (or, after a restart, the parent of the namespace's PID 1) and a child-subreaper, so
that orphans of the job stay below it. It stays out of the way: between events it sleeps in poll(2). Were it
to die, the job would go on running; only its exit status would be lost.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torpor.model.errors import TorporError, UsageError
from torpor.supervise import hooks, protocol, registry, state, upkeep
from torpor.supervise.joined import Joined
from torpor.supervise.keeper import Done, Keeper, Order
from torpor.supervise.loop import Loop
from torpor.supervise.registry import Entry, Pid
from torpor.supervise.saving import Guard, Progress, Worker
from torpor.supervise.say import say
from torpor.supervise.server import Connection, Server, text, texts
from torpor.supervise.signals import STOPS, Got, Signals
from torpor.supervise.terminal import Terminal
from torpor.supervise.tree import Reach, members, reach, stop_all

if TYPE_CHECKING:
    from torpor.checkpoint.tracking import Tracker
    from torpor.supervise.agreeing import Saving
    from torpor.supervise.inside import Inside
    from torpor.supervise.membership import Membership
    from torpor.supervise.standing import Standing
    from torpor.watch.wrapper import Wrapper

FROM_TERMINAL = STOPS | {signal.SIGINT, signal.SIGQUIT, signal.SIGHUP, signal.SIGWINCH}
"""What the kernel sends to a whole group on a terminal's behalf."""
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
    ) -> None:
        self.entry = entry
        self.status: int | None = None
        """The root's wait status, once it has ended."""
        self.stopped_as = ""
        """The checkpoint, `train@3`, after which the job was ended on request; '' if it was not."""
        self.crashes = crashes
        self.again = False
        """The job has crashed and is to be restarted: its entry is kept, and who waits for its end goes on waiting."""
        first = membership is None or membership.part.first
        self._upkeep = upkeep.decode(entry.upkeep) if first else upkeep.Upkeep()
        self._tracked: Tracker | None = None
        self.held: tuple[Pid, ...] = ()
        """Processes that were stopped only so that somebody can look at them first."""
        self._told: set[int] = set()
        """Signals that the job was sent from outside, as far as we know."""
        self._signals = signals
        self._terminal = terminal
        self._streams = streams
        self._wrapper = wrapper
        self._standing: Standing | None = None
        self._paused = False
        self._membership = membership
        if membership is not None:
            self.entry = entry._replace(part=membership.part.part)
        self._events = events
        self._skip = entry.skip
        self._inside: Inside | None = None
        self._own: tuple[int, ...] = ()
        self._trouble = ""
        self._lines = b""
        self._stop_pending = 0
        self._root_stopped = 0
        self._reap_pending = False
        self.joined = Joined()
        self._waiting: list[Connection] = []
        self._following: list[Connection] = []
        self._loop = Loop()
        self._guard = Guard()
        self._worker = Worker()
        self._guard.on_release = self._worker.wake
        self._keeper = Keeper(
            self._upkeep, self._loop, self._save, self._busy, self._pass_on, seconds,
            entry.saved or entry.origin,
        )  # fmt: skip
        self._server = Server(self._loop, {"name": entry.name, "pid": os.getpid()}, self._handle)
        # From here on a command that knows of the job can reach us, though it is answered only in `run`.
        self._listen()

    def stand(self, standing: Standing) -> None:
        """What the job holds outside is ours from now on."""
        self._standing = standing
        if standing.seats is not None:
            standing.seats.pause, standing.seats.resume = self._pause, self._resume
            standing.seats.replaced = self._keeper_replaced

    def run(self) -> int:
        """Until the root has ended. Returns its wait status."""
        self._loop.watch(self._signals.fd, self._on_signals)
        self._loop.watch(self._worker.fd, self._on_worker)
        if self._events >= 0:
            self._loop.watch(self._events, self._on_events)
        self._reap()
        self._loop.later(TICK_SECONDS, self._tick)
        self._watch_holder()
        if self._standing is not None:
            self._standing.attach(self._loop)
        if self._membership is not None:
            self._membership.attach(self._loop, self._worker, self)
        self._keeper.start()
        self._after_restart()
        self._answer_inside()
        if not self._finished():
            self._loop.run()
        return self._end()

    @property
    def over_hosts(self) -> bool:
        """Is it one part of a job over hosts?"""
        return self._membership is not None

    # -- the root
    # ---------------------------------------------------------------------------------------------

    def _on_signals(self, _events: int) -> None:
        for got in self._signals.drain():
            if got.number == signal.SIGCHLD:
                self._reap_pending = True
            elif got.number == signal.SIGCONT:
                if self.held:
                    self._let_on()
                elif self._root_stopped and not got.from_kernel and self._root_alive():
                    self._terminal.resume(self.entry.root)
            elif self._told_already(got):
                self._told.add(got.number)
            elif self.status is not None or not self._keeper.signal(got.number):
                self._pass_on(got.number)
        if self._reap_pending:
            self._reap()
        self.after()

    def _told_already(self, got: Got) -> bool:
        """Has the program got this signal too? The terminal speaks to the whole foreground group. And a
        program that signals its parent does not mean itself."""
        if got.from_kernel:
            if self._events >= 0:  # a group of its own: what the terminal sends us it has not seen
                return got.number in (signal.SIGTTIN, signal.SIGTTOU)
            return got.number in FROM_TERMINAL
        return bool(got.sender) and got.sender in members(reach(self.entry))

    def _pass_on(self, number: int) -> None:
        self._told.add(number)
        if self._root_alive():
            try:
                os.kill(self.entry.root.pid, number)
            except OSError:
                pass

    def _root_alive(self) -> bool:
        return self.status is None and self.entry.root.alive

    def _reap(self) -> None:
        """Take the states of our children: the root's, and those of orphans that have become ours."""
        self._reap_pending = True
        if not self._guard.try_enter():
            return  # a save is tracing; it wakes us when it has let go
        self._reap_pending = False
        try:
            while True:
                seen = os.waitid(os.P_ALL, 0, os.WEXITED | os.WSTOPPED | os.WCONTINUED | os.WNOHANG)
                if seen is None:
                    break
                if seen.si_pid == self.entry.root.pid and self._events < 0:
                    self._root_changed(seen.si_code, seen.si_status)
                else:
                    self.joined.changed(seen.si_pid, seen.si_code, seen.si_status)
        except ChildProcessError:
            pass
        finally:
            if self._events < 0 and self.status is None and not self.entry.root.state:
                self.status = self._status_taken()
            self.joined.look()
            self._guard.leave()

    def _status_taken(self) -> int:
        """The root is gone, and a save took its status: a tracer's wait for an end is the parent's, if they
        are one."""
        from torpor.linux import ptrace

        return ptrace.reaped.pop(self.entry.root.pid, signal.SIGKILL)

    def _root_changed(self, code: int, value: int) -> None:
        if code == os.CLD_EXITED:
            self.status = value << 8
        elif code in (os.CLD_KILLED, os.CLD_DUMPED):
            self.status = value
        elif code == os.CLD_STOPPED:
            self._root_stopped = self._stop_pending = value
            self._tell({"event": "stop", "signal": value})
        elif code == os.CLD_CONTINUED:
            self._root_stopped = self._stop_pending = 0
            self._tell({"event": "continue"})
            self._let_on()

    def _let_on(self) -> None:
        """The job was held before its first instruction, and one who may have said that it shall go on."""
        held, self.held = self.held, ()
        for one in held:
            if one.state == "T":
                os.kill(one.pid, signal.SIGCONT)

    def _pause(self) -> None:
        """It lacks a seat, and may not run on for now."""
        self._paused = True
        if not self._worker.busy:
            self.held = stop_all(self.entry)  # else once the save is over

    def _resume(self) -> None:
        if self._paused:
            self._paused = False
            self._let_on()

    def _keeper_replaced(self, pid: int) -> None:
        self.entry = self.entry._replace(keeper=Pid.of(pid))
        self._write_down()

    def _on_events(self, _events: int) -> None:
        """A restarted job: its root's parent stand-in writes what a wait would have told."""
        try:
            data = os.read(self._events, 4096)
        except OSError:
            data = b""
        self._lines += data
        *whole, self._lines = self._lines.split(b"\n")
        for line in whole:
            word, _, value = line.partition(b" ")
            if word == b"exit":
                self.status = int(value)
            elif word == b"stop":
                self._root_changed(os.CLD_STOPPED, int(value))
            elif word == b"continue":
                self._root_changed(os.CLD_CONTINUED, 0)
        if not data:
            self._loop.forget(self._events)
            self._unwatched()
        self.after()

    def _unwatched(self) -> None:
        """Nobody tells us of the root any more: either all is gone (the namespace was killed from outside), or only the
        stand-in that watched it. Then we look ourselves, though how it ends we shall not learn."""
        if self.status is not None:
            return
        if self.entry.root.alive:
            self._loop.later(1.0, self._look)
        else:
            self.status = signal.SIGKILL

    def _look(self) -> None:
        self._unwatched()
        self.after()

    def after(self) -> None:
        """What follows from a change of state, once everything that has arrived was looked at."""
        if not self._worker.busy:
            self.joined.begin()
            self.joined.answer(self._final)
        if self._membership is not None and self.status is not None and not self.joined.run:
            self._membership.root_ended(self.status)
        if self._finished():
            self._loop.stop()
        elif self._stop_pending and not self._worker.busy and not self.held:
            # Not while a checkpoint is being made: its command would wait until somebody brings us back.
            number, self._stop_pending = self._stop_pending, 0
            self._terminal.stopped(
                self.entry.root, number, self._signals, lambda: members(reach(self.entry)), self._set_aside
            )

    def _set_aside(self, helper: int) -> None:
        """A child of ours that is not of the job, 0 for none: a command that saves the job without us must
        know."""
        self.entry = self.entry._replace(skip=(*self._skip, helper) if helper else self._skip)
        self._write_down()

    def _watch_holder(self) -> None:
        if self._wrapper is not None:
            from torpor.supervise.holder_watch import HolderWatch

            HolderWatch(self._loop, self._wrapper, self._holder_replaced).start()

    def _holder_replaced(self, holder: int) -> None:
        dead = self.entry.holder.pid
        self._skip = tuple(holder if pid == dead else pid for pid in self._skip)
        skip = tuple(holder if pid == dead else pid for pid in self.entry.skip)
        self.entry = self.entry._replace(holder=registry.Pid.of(holder), skip=skip)
        self._write_down()

    def _finished(self) -> bool:
        if self._membership is not None and not self._membership.over:
            return False
        return self.status is not None and not self._worker.busy and not self.joined.run

    def _final(self, status: int) -> dict[str, Any]:
        """What whoever waits for a program that has joined is told."""
        return {"status": upkeep.final_status(self._upkeep, status, bool(self.stopped_as), False, False)}

    def _end(self) -> int:
        status = self.status if self.status is not None else 255 << 8
        if self._restartable(status):
            self.again = True
            self.crashes += 1
            self._clear_away(status)
        else:
            if self._standing is not None:
                self._standing.close()  # before anybody hears of the end who might want to have it next
            known = bool(self.entry.saved or self.entry.origin)
            status = upkeep.final_status(self._upkeep, status, bool(self.stopped_as), self._keeper.interrupted, known)
            for connection in (*self._waiting, *self._following):
                connection.finish({"result": {"status": status}})
            if self.entry.log:
                state.record_end(self.entry.log, status)  # before our entry goes: who misses that looks here
        self._terminal.close(lambda: members(reach(self.entry)))
        if self._membership is not None:
            self._membership.close()
        if not self.again:
            registry.release(self.entry)
        self._server.close()
        return status

    def hand_over(self) -> int:
        """The job is to be restarted by the program that this process becomes: a descriptor of whoever keeps its seats,
        -1 if it has none."""
        seats = self._standing.seats if self._standing is not None else None
        return seats.hand_over() if seats is not None else -1

    def _restartable(self, status: int) -> bool:
        """Has the job crashed, and is it to be restarted?"""
        if self._membership is not None or self.stopped_as or not self.entry.folder:
            return False
        if self.crashes >= self._upkeep.crashes:
            return False
        if not upkeep.crashed(status, self._told):
            return False
        from torpor.supervise import saving

        if saving.complete(self.entry.store, self.entry.name):
            return True
        say(f"torpor: {self.entry.name} has crashed, and there is no checkpoint to restart it from")
        return False

    def _clear_away(self, status: int) -> None:
        """The root has crashed: what else there is of the job must not meet the restarted one."""
        from torpor.supervise import audit
        from torpor.supervise.job import end_all

        audit.record("crash", job=self.entry.name, status=os.waitstatus_to_exitcode(status), crashes=self.crashes)
        try:
            end_all(self.entry, {registry.Pid.of(pid) for pid in members(reach(self.entry))}, 0.0)
        except TorporError as error:
            say(f"torpor: {error}")
        self.entry = self.entry._replace(
            root=registry.NOBODY,
            root_vpid=0,
            reaper=registry.NOBODY,
            helpers=(),
            anchor=0,
            skip=(),
            holder=registry.NOBODY,
        )
        self._write_down()

    # -- the commands
    # -------------------------------------------------------------------------------------------

    def _listen(self) -> None:
        if not self.entry.folder:
            return  # could not be registered: the job can be reached by its pid only
        try:
            self._server.listen(self.entry.folder)
        except OSError:
            pass  # the job runs all the same; commands then save it themselves

    def _tick(self) -> None:
        if self.entry.folder and not os.path.exists(f"{self.entry.folder}/socket"):
            self._write_down()
            self._listen()
        self._loop.later(TICK_SECONDS, self._tick)

    def _write_down(self) -> None:
        if not self.entry.folder:
            return
        try:
            self.entry = registry.update(self.entry)
        except (OSError, TorporError):
            pass  # a full or unwritable runtime folder must not disturb the job

    def _handle(self, connection: Connection, request: protocol.Message) -> None:
        do = text(request, "do")
        if do == "status":
            connection.finish({"result": self._state()})
        elif do == "wait":
            self._waiting.append(connection)
        elif do == "follow":
            self._following.append(connection)
        elif do == "ending":
            self._told.add(int(request["signal"]))
            connection.finish({"result": {}})
        elif do == "check":
            self._check(connection)
        elif do == "watch":
            self._watch(connection, request)
        elif do == "hooks":
            self._change_hooks(hooks.parsed(request["on"]))
            connection.finish({"result": {}})
        elif do == "checkpoint":
            self._checkpoint(connection, request)
        elif do == "join":
            if self.status is not None:
                raise TorporError(f"{self.entry.name} has just ended")
            self.joined.ask(self.entry, connection, request)
            self.after()
        else:
            raise ValueError(do)

    def _after_restart(self) -> None:
        """Run what is to be run now that the job has been restarted."""
        wanted = [command for event, command in self._upkeep.hooks if event == "post-restart"]
        if not wanted or not self.entry.origin or self._membership is not None:
            return
        entry = self.entry
        told = {"JOB": entry.name, "CHECKPOINT": entry.origin, "STORE": entry.store, "PID": str(entry.root.pid)}

        def done(_result: Any, error: BaseException | None) -> None:
            if error is not None:
                say(f"torpor: {error}")

        self._worker.start("restart", lambda: hooks.run(self._upkeep.hooks, "post-restart", told, self._guard), done)

    def _change_hooks(self, given: hooks.Hooks) -> None:
        if self._membership is not None:
            raise UsageError("--on is not for a job over hosts yet")
        self._upkeep = upkeep.changed(self._upkeep, {"hooks": given})
        self.entry = self.entry._replace(upkeep=upkeep.encode(self._upkeep))
        self._write_down()

    def _watch(self, connection: Connection, request: protocol.Message) -> None:
        """Write down what the job asks for from now on."""
        from torpor.watch import late

        self._free()
        if self._wrapper is not None:
            raise UsageError(f"{self.entry.name} is watched already")
        if self._membership is not None:
            raise UsageError("a job over hosts cannot be watched from its middle on")
        where = reach(self.entry)._replace(watched=True)
        with_sendmsg, privileges = text(request, "how") == "sendmsg", bool(request.get("no_new_privs"))

        def known(holder: int) -> None:
            # Before anything of the job is touched: whoever comes after us finds it, and knows that there are filters.
            self._skip = (*self._skip, holder)
            self.entry = self.entry._replace(holder=registry.Pid.of(holder), skip=(*self.entry.skip, holder))
            self._write_down()

        def work() -> Any:
            with self._guard:
                return late.begin(where.tree(), with_sendmsg, privileges, known)

        def done(result: Any, error: BaseException | None) -> None:
            if error is not None:
                connection.finish(protocol.error_message(error))
                return
            self._wrapper, watched = result
            self._watch_holder()
            connection.finish({"result": {"processes": watched.processes, "notes": list(watched.notes)}})

        self._worker.start("watch", work, done)

    def _answer_inside(self) -> None:
        """The job's programs may speak with us."""
        if not self.entry.inside:
            return
        from torpor.supervise import inside

        def changed(kept: str) -> None:
            self.entry = self.entry._replace(inside=kept)
            self._write_down()

        def save(done: Done) -> None:
            self._save(Order(why="inside"), lambda *_: None, done)

        self._inside = inside.begin(self._loop, self.entry, changed, save, lambda: bool(self._busy()))

    def _state(self) -> dict[str, Any]:
        word = "saving" if self._busy() else "stopped" if self._root_stopped else "running"
        return {
            "name": self.entry.name,
            "state": word,
            "root": self.entry.root.pid,
            "saved": self.entry.saved,
        }

    def _tell(self, event: protocol.Message) -> None:
        for connection in self._following:
            connection.send(event)

    def _inherited(self) -> list[tuple[int, int]]:
        return [*self._streams.items(), *self.joined.streams]

    def _busy(self) -> str:
        asked = self._membership is not None and self._membership.busy
        held = self._inside is not None and self._inside.waiting
        return self._worker.busy or ("checkpoint" if asked or held else "")

    def _free(self) -> None:
        if busy := self._busy():
            raise TorporError(f"a {busy} of {self.entry.name} is being made already")
        if self.status is not None:
            raise TorporError(f"{self.entry.name} has just ended")

    def _check(self, connection: Connection) -> None:
        from torpor.supervise import saving

        self._free()
        where, streams = reach(self.entry), self._inherited()

        def done(result: Any, error: BaseException | None) -> None:
            connection.finish(protocol.error_message(error) if error else {"result": result})

        self._worker.start("check", lambda: saving.check(where, streams), done)

    def _checkpoint(self, connection: Connection, request: protocol.Message) -> None:
        order = Order(
            stop=bool(request.get("stop", False)),
            files=text(request, "files", "auto"),
            with_files=bool(request.get("with_files", False)),
            compress=text(request, "compress"),
            encrypt_to=texts(request, "encrypt_to"),
            name=text(request, "name"),
            store=text(request, "store"),
            on=hooks.parsed(request.get("on", ())),
            forget=texts(request, "forget") or (),
        )

        def progress(phase: str, so_far: int, total: int) -> None:
            event = {"event": "progress", "phase": phase, "done": so_far, "total": total}
            self._worker.post(lambda: connection.send(event))

        def done(result: dict[str, Any] | None, error: BaseException | None) -> None:
            connection.finish(protocol.error_message(error) if error else {"result": result})

        self._save(order, progress, done)

    def _save(self, order: Order, progress: Progress, done: Done) -> None:
        """Have a checkpoint made, and what is then one too many removed. Raises TorporError if it cannot be begun."""
        from torpor.supervise import saving

        self._free()
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
            self.entry = self.entry._replace(saved=f"{result['job']}@{result['number']}", saved_at=time.time())
            self._write_down()
            if order.stop:
                self.stopped_as = self.entry.saved
            if own:
                self._keeper.saved(self.entry.saved, float(result["seconds"]))
            self._tell({"event": "saved", **result})
            done(result, None)

        if self._membership is not None:
            self._membership.ask(order, progress, thinned, finished)
            return
        where = reach(self.entry)

        def go() -> None:
            self._worker.start("checkpoint", lambda: thinned(self._made(order, where, name, store, progress)), finished)

        if self._inside is not None:
            self._inside.when_free(go, lambda error: finished(None, error))
        else:
            go()

    def _made(
        self, order: Order, where: Reach, name: str, store: str, progress: Progress, together: Saving | None = None
    ) -> dict[str, Any]:
        """In the worker: make a checkpoint, or our part of one; the report."""
        from torpor.supervise import saving

        first = self._membership is None or self._membership.part.first
        if self._paused:
            # What is stopped would be stopped after a restart, too. It runs on for the moment until it is frozen.
            self._let_on()
        made = saving.save(
            name, where, store,
            stop=order.stop, files=order.files, with_files=order.with_files, compress=order.compress,
            encrypt_to=order.encrypt_to, streams=self._inherited(), progress=progress, guard=self._guard,
            upkeep=self.entry.upkeep, inside=self.entry.inside, why=order.why,
            ledger=self._wrapper.ledger if self._wrapper is not None else lambda: None,
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

    def processes(self) -> list[int]:
        return members(reach(self.entry))

    def set_own(self, pids: tuple[int, ...]) -> None:
        others = tuple(pid for pid in self._skip if pid not in self._own)
        self._own = pids
        self._skip = (*others, *pids)
        self._set_aside(0)

    def saved_as(self, checkpoint: str, stopped: bool) -> None:
        self.entry = self.entry._replace(saved=checkpoint, saved_at=time.time())
        self._write_down()
        if stopped:
            self.stopped_as = checkpoint

    def _on_worker(self, events: int) -> None:
        self._worker.deliver(events)
        if self._paused and not self.held and self.status is None and not self.stopped_as:
            self._pause()
        if self._reap_pending:
            self._reap()
        if self._membership is not None and not self._worker.busy:
            self._membership.idle()
        if not self._busy() and self.status is None and not self.stopped_as:
            self._keeper.idle()
        self.after()
