"""A running job, as the commands and the Python API hold it."""

from __future__ import annotations

import os
import select
import signal
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from torpor.model.errors import CheckpointFailed, NotFound, TorporError
from torpor.supervise import registry, state
from torpor.supervise.registry import Entry, Pid
from torpor.supervise.report import Checked, Saved, Watching, as_checked, as_saved
from torpor.supervise.saving import Progress
from torpor.supervise.tree import Member, Reach, describe, members, reach

if TYPE_CHECKING:
    from torpor.model.ledger import Ledger
    from torpor.supervise.arriving import Arrival


class Job:
    """A job on this host, supervised or (after its supervisor's death) not."""

    def __init__(self, entry: Entry) -> None:
        self.entry = entry

    def __repr__(self) -> str:
        return f"<torpor.Job {self.name} pid {self.pid}>"

    @property
    def name(self) -> str:
        return self.entry.name

    @property
    def pid(self) -> int:
        """The root process, on the host."""
        return self.entry.root.pid

    @property
    def pid_inside(self) -> int:
        """The root process, as the job sees it."""
        return self.entry.root_vpid

    @property
    def log(self) -> str:
        """Path of the log of a detached job, '' if it has none."""
        return self.entry.log

    @property
    def alive(self) -> bool:
        """Is its root running?"""
        return self.entry.root.alive

    @property
    def state(self) -> str:
        """'running', 'stopped', 'starting' or 'ended'; ', unsupervised' is added where the supervisor has
        died."""
        letter = self.entry.root.state
        words = {"": "ended", "Z": "ended", "X": "ended", "T": "stopped"}
        word = words.get(letter, "running") if self.entry.root.pid else "starting"
        return word if self.entry.supervisor.alive else f"{word}, unsupervised"

    @property
    def arriving(self) -> Arrival | None:
        """How far its memory is, if it was restarted with --lazy and not all is there."""
        from torpor.supervise import arriving

        return arriving.progress(self.entry)

    def processes(self) -> list[Member]:
        """Its processes now, parents first."""
        return describe(reach(self.entry))

    def checkpoint(
        self,
        *,
        stop: bool = False,
        files: str = "auto",
        with_files: bool = False,
        compress: str | None = None,
        store: str | None = None,
        name: str | None = None,
        encrypt_to: Sequence[str] | None = None,
        on: Sequence[tuple[str, str]] | None = None,
        forget: Sequence[str] | None = None,
        progress: Progress | None = None,
    ) -> Saved:
        """Save the job; it goes on running unless `stop`.

        files: 'auto', 'keep', 'save' or 'save:PATH,...' (files, or folders to be saved whole).  with_files: also the
        program, its libraries and what it has mapped or open for reading, for a machine that lacks them.  store, name:
        other than those the job was started with.  compress: 'none', 'fast', 'zstd' or 'auto' (by what
        saves most time); None: the default.  encrypt_to: keys that can read it ('self', a name, a key
        written out, a file); None: the default.  on: (event, command) each, run around this checkpoint as well.
        forget: what is left out (docs/secrets.md). Raises Refused, CheckpointFailed, HookFailed; the job then goes on
        unharmed.
        """
        from torpor.supervise import choices

        files, readers = choices.files(files), choices.readers(encrypt_to)
        compress, hooks = choices.compression(compress), choices.parsed_hooks(on)
        request = {
            "do": "checkpoint", "stop": stop, "files": files, "with_files": with_files, "compress": compress,
            "store": choices.location(store), "name": name or "", "encrypt_to": readers, "on": hooks,
            "forget": list(forget or ()),
        }  # fmt: skip

        def direct() -> dict[str, Any]:
            from torpor.supervise import saving

            if self.entry.part:
                raise CheckpointFailed(
                    f"{self.name}: the supervisor of its part {self.entry.part} has died, so that it cannot be saved "
                    "any more; it can be restarted from its last checkpoint"
                )
            plain = saving.save(
                registry.check_name(name or self.name), self._reach(), choices.location(store) or self.entry.store,
                stop=stop, files=files, with_files=with_files, compress=compress, encrypt_to=readers,
                progress=progress, upkeep=self.entry.upkeep, inside=self.entry.inside, ledger=self.ledger, on=hooks,
                forget=forget or (),
                policy=self.entry.policy, seats=self.entry.seats, identity=self.entry.identity,
            )  # fmt: skip
            self.entry = self.entry._replace(saved=f"{plain['job']}@{plain['number']}", saved_at=time.time())
            if self.entry.alive:
                registry.update(self.entry)
            plain["notes"].append(f"the supervisor of {self.name} does not answer: saved without it")
            return plain

        saved = as_saved(self._ask(request, direct, progress))
        if stop:
            self._await_supervisor()
        return saved

    def check(self) -> Checked:
        """Could it be saved, and how large would that be? Touches nothing."""

        def direct() -> dict[str, Any]:
            from torpor.supervise import saving

            return saving.check(self._reach())

        return as_checked(self._ask({"do": "check"}, direct, None))

    def ledger(self) -> Ledger | None:
        """The outside addresses it has asked for; None if it is not watched, or who writes them down is gone."""
        if not self.entry.holder.alive:
            return None
        from torpor.supervise import upkeep
        from torpor.watch import ledger, names

        return names.named(ledger.of_holder(self.entry.holder.pid), upkeep.decode(self.entry.upkeep).services)

    def wait(self) -> int:
        """Wait for its end. Returns the exit status, or minus the signal that killed it, as subprocess does.

        Raises TorporError where it ended unsupervised, so that nobody knows the status.
        """
        return os.waitstatus_to_exitcode(self.wait_status())

    def wait_status(self) -> int:
        """The same as a wait status (see os.WIFSIGNALED)."""
        from torpor.supervise.client import NoSupervisor, ask

        while True:
            try:
                return int(ask(self.entry, {"do": "wait"})["status"])
            except NoSupervisor:
                # After a crash the supervisor starts anew, as the same process, and restarts the job.
                now = registry.read(self.entry.folder)
                if now is None or now.supervisor != self.entry.supervisor or not now.supervisor.alive:
                    break
                self.entry = now
                time.sleep(0.02)
        if self.entry.root.alive:
            try:
                with _PidFd(self.pid) as fd:
                    poll = select.poll()
                    poll.register(fd, select.POLLIN)
                    poll.poll()
            except ProcessLookupError:
                pass
        told = state.ended(self.name)
        if told is not None and told.time >= self.entry.started:
            return told.status
        raise TorporError(f"{self.name} has ended; its exit status is not known, because its supervisor had died")

    def stop(self, number: int = signal.SIGTERM, grace: float = 10.0) -> bool:
        """End the job: send every process that signal, and SIGKILL to what is left after `grace` seconds.

        Returns whether SIGKILL was needed.
        """
        from torpor.supervise.kill import end_all, send

        found = {Pid.of(pid) for pid in members(self._reach())}
        self._announce(number)
        send(found, number)
        send(found, signal.SIGCONT)  # stopped processes end only once they run
        if self.entry.supervisor.state == "T":
            send({self.entry.supervisor}, signal.SIGCONT)
        killed = end_all(self.entry, found, grace)
        self._await_supervisor()
        return killed

    def watch(self, how: str = "names", *, no_new_privs: bool = False) -> Watching:
        """Write down from now on which outside addresses it asks for (docs/watch.md). how: as for `run`. no_new_privs:
        its programs may lose what set-user-ID gives, if that cannot be helped. Raises Refused, TorporError."""
        from torpor.supervise.client import ask

        found = ask(self.entry, {"do": "watch", "how": how, "no_new_privs": no_new_privs})
        self.entry = registry.find(self.name)
        return Watching(int(found["processes"]), tuple(found["notes"]))

    def on(self, hooks: Sequence[tuple[str, str]]) -> None:
        """Have commands run around its checkpoints and restarts from now on: (event, command) each, in place of all
        that there were for the same events; '' for none. Raises UsageError, TorporError."""
        from torpor.supervise import choices
        from torpor.supervise.client import ask

        ask(self.entry, {"do": "hooks", "on": choices.parsed_hooks(hooks)})

    def _announce(self, number: int) -> None:
        """Tell the supervisor that the job is about to be ended, so that it is not taken for a crash."""
        from torpor.supervise.client import NoSupervisor, ask

        if self.entry.supervised and self.entry.upkeep:
            try:
                ask(self.entry, {"do": "ending", "signal": number})
            except NoSupervisor:
                pass

    def _await_supervisor(self, seconds: float = 5.0) -> None:
        """The job is over: let its supervisor find that out, so that the name is free when we return."""
        deadline = time.monotonic() + seconds
        while self.entry.supervisor.alive and time.monotonic() < deadline:
            now = registry.read(self.entry.folder)
            if now is None or now.supervisor != self.entry.supervisor:
                return
            time.sleep(0.005)

    def _reach(self) -> Reach:
        where = reach(self.entry)
        if not self.entry.alive:
            raise NotFound(f"{self.name} has ended")
        return where

    def _ask(
        self, request: dict[str, Any], direct: Callable[[], dict[str, Any]], progress: Progress | None
    ) -> dict[str, Any]:
        """Have the supervisor do it, or do it here where none answers: dead, or stopped together with its
        job."""
        if self.entry.supervised:
            from torpor.supervise.client import NoAnswer, NoSupervisor, ask

            def on_event(event: dict[str, Any]) -> None:
                if progress is not None and event.get("event") == "progress":
                    progress(str(event["phase"]), int(event["done"]), int(event["total"]))

            try:
                return ask(self.entry, request, on_event)
            except NoSupervisor as error:
                self._refuse_ended()
                if not isinstance(error, NoAnswer) or self.entry.supervised:
                    raise
        return direct()

    def _refuse_ended(self) -> None:
        """Its supervisor has hung up. Raises NotFound if that is so because the job has come to its end: a supervisor
        stops listening a moment before it is gone itself."""
        if self.entry.root.alive:
            return
        self._await_supervisor()
        now = registry.read(self.entry.folder)
        if now is None or now.supervisor != self.entry.supervisor or not now.supervisor.alive:
            raise NotFound(f"{self.name} has ended")


class _PidFd:
    """pidfd_open(2) for the length of a `with`. Raises ProcessLookupError."""

    def __init__(self, pid: int) -> None:
        self.fd = os.pidfd_open(pid)

    def __enter__(self) -> int:
        return self.fd

    def __exit__(self, *exc: object) -> None:
        os.close(self.fd)
