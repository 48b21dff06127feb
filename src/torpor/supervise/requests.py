"""What is asked of a supervisor by commands, through its socket, and what it answers."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from torpor.model.errors import TorporError, UsageError
from torpor.supervise import hooks, protocol
from torpor.supervise.keeper import Order
from torpor.supervise.loop import Loop
from torpor.supervise.server import Connection, Server, text, texts
from torpor.supervise.tree import reach

if TYPE_CHECKING:
    from torpor.supervise.supervisor import Supervisor


class Requests:
    """Answers for one job."""

    def __init__(self, job: Supervisor, loop: Loop) -> None:
        self._job = job
        self._waiting: list[Connection] = []
        self._following: list[Connection] = []
        self._server = Server(loop, {"name": job.entry.name, "pid": os.getpid()}, self._handle)
        # From here on a command that knows of the job can reach us, though it is answered only in `run`.
        self.listen()

    def listen(self) -> None:
        """Be reached in the job's folder, if that is possible."""
        if not self._job.entry.folder:
            return  # could not be registered: the job can be reached by its pid only
        try:
            self._server.listen(self._job.entry.folder)
        except OSError:
            pass  # the job runs all the same; commands then save it themselves

    def close(self) -> None:
        self._server.close()

    def tell(self, event: protocol.Message) -> None:
        """Something has happened to the job: whoever follows it is told."""
        for connection in self._following:
            connection.send(event)

    def ended(self, status: int) -> None:
        """The job has ended: whoever waits for that is told."""
        for connection in (*self._waiting, *self._following):
            connection.finish({"result": {"status": status}})

    def _handle(self, connection: Connection, request: protocol.Message) -> None:
        job = self._job
        do = text(request, "do")
        if do == "status":
            connection.finish({"result": self._state()})
        elif do == "wait":
            self._waiting.append(connection)
        elif do == "follow":
            self._following.append(connection)
        elif do == "ending":
            job.ending(int(request["signal"]))
            connection.finish({"result": {}})
        elif do == "check":
            self._check(connection)
        elif do == "watch":
            self._watch(connection, request)
        elif do == "hooks":
            job.change_hooks(hooks.parsed(request["on"]))
            connection.finish({"result": {}})
        elif do == "checkpoint":
            self._checkpoint(connection, request)
        elif do == "join":
            if job.root.status is not None:
                raise TorporError(f"{job.entry.name} has just ended")
            job.joined.ask(job.entry, connection, request)
            job.after()
        else:
            raise ValueError(do)

    def _state(self) -> dict[str, Any]:
        job = self._job
        word = "saving" if job.busy() else "stopped" if job.root.stopped else "running"
        return {"name": job.entry.name, "state": word, "root": job.entry.root.pid, "saved": job.entry.saved}

    def _check(self, connection: Connection) -> None:
        from torpor.supervise import saving

        job = self._job
        job.free()
        where, streams = reach(job.entry), job.inherited()

        def done(result: Any, error: BaseException | None) -> None:
            connection.finish(protocol.error_message(error) if error else {"result": result})

        job.worker.start("check", lambda: saving.check(where, streams), done)

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
            self._job.worker.post(lambda: connection.send(event))

        def done(result: dict[str, Any] | None, error: BaseException | None) -> None:
            connection.finish(protocol.error_message(error) if error else {"result": result})

        self._job.save(order, progress, done)

    def _watch(self, connection: Connection, request: protocol.Message) -> None:
        """Write down what the job asks for from now on."""
        from torpor.watch import late

        job = self._job
        job.free()
        if job.wrapper is not None:
            raise UsageError(f"{job.entry.name} is watched already")
        where = reach(job.entry)._replace(watched=True)
        how, privileges = text(request, "how"), bool(request.get("no_new_privs"))

        def work() -> Any:
            with job.guard:
                return late.begin(where.tree(), how, privileges, job.own_entry.know_holder)

        def done(result: Any, error: BaseException | None) -> None:
            if error is not None:
                connection.finish(protocol.error_message(error))
                return
            wrapper, watched = result
            job.watched_by(wrapper)
            connection.finish({"result": {"processes": watched.processes, "notes": list(watched.notes)}})

        job.worker.start("watch", work, done)
