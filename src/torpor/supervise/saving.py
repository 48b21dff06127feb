"""Checkpoints of a running job: in the supervisor's worker thread, or by the command itself if nobody
supervises it."""

from __future__ import annotations

import _thread
import os
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

from torpor.model.errors import NotFound, TorporError
from torpor.supervise.say import say
from torpor.supervise.tree import Reach

if TYPE_CHECKING:
    from torpor.checkpoint.save import SaveReport, SaveRequest
    from torpor.checkpoint.survey import CheckReport
    from torpor.checkpoint.together import SavedTogether
    from torpor.checkpoint.tracking import Tracker
    from torpor.image.seal import Sealing
    from torpor.model.ledger import Ledger
    from torpor.store import Store
    from torpor.supervise.hooks import Hooks
    from torpor.supervise.upkeep import Upkeep

Progress: TypeAlias = Callable[[str, int, int], None]
"""phase, bytes done, bytes in all."""


class Guard:
    """Held by a save from freeze to release: whoever waits for children must not do so meanwhile.

    A wait in any thread of the tracing process would take the tracees' stops away from the save.
    """

    def __init__(self) -> None:
        self._lock = _thread.allocate_lock()
        self.hush: Callable[[bool], None] = lambda on: None
        """Told when a save holds it, and when it is about to let go: meanwhile nobody need hear of children."""
        self.on_release: Callable[[], None] = lambda: None

    def __enter__(self) -> Guard:
        self._lock.acquire()
        self.hush(True)
        return self

    def __exit__(self, *exc: object) -> None:
        self.hush(False)
        self._lock.release()
        self.on_release()

    def try_enter(self) -> bool:
        """For the loop: enter unless a save holds it. Leave with `leave`."""
        return self._lock.acquire(blocking=False)

    def leave(self) -> None:
        """The loop has done its waiting."""
        self._lock.release()


def save(
    name: str,
    where: Reach,
    store: str,
    *,
    stop: bool = False,
    files: str = "auto",
    with_files: bool = False,
    compress: str = "",
    encrypt_to: Sequence[str] | None = None,
    streams: Sequence[tuple[int, int]] | None = None,
    progress: Progress | None = None,
    guard: Guard | None = None,
    upkeep: str = "",
    inside: str = "",
    why: str = "command",
    ledger: Callable[[], Ledger | None] = lambda: None,
    policy: str = "",
    seats: Sequence[str] = (),
    identity: str = "",
    together: SavedTogether | None = None,
    first: bool = True,
    tracker: Tracker | None = None,
    on: Hooks = (),
    forget: Sequence[str] = (),
) -> dict[str, Any]:
    """Make a checkpoint of the processes in `where` as the next one of job `name`; returns the report as
    plain values.

    with_files, compress: see `Job.checkpoint`; what `upkeep` says of them holds too.
    encrypt_to: see image.seal.sealing.
    streams: what the job inherited: its number there, and our own descriptor of it; None if we hold none.
    upkeep: what a restart is to go on with (upkeep.py); inside: how the job speaks with torpor (inside.py).  why: who
    wants it, for the log, where all of this leaves a line.  ledger, together, first, tracker: see SaveRequest.  policy,
    seats: see `terms.now`.  identity: of the job (lease.py), '' for one that nobody has started under torpor.  on:
    hooks for this one, beside those of `upkeep`, of which a job over hosts has those of its first part run; forget:
    likewise, what is left out.
    Raises what `torpor.checkpoint.save.save` raises, and HookFailed. To be called in one thread from start to end.
    """
    from torpor.checkpoint.save import save as run
    from torpor.image import seal
    from torpor.store import behind, open_store
    from torpor.supervise import audit, lease, terms
    from torpor.supervise.tree import members

    event = "part" if together else "checkpoint"
    told: dict[str, Any] = {"job": name, "why": why, "store": store, "part": together.part if together else ""}
    hooked = _Hooked((*upkeeping(upkeep).hooks, *on) if first else (), where, told, guard, together)
    try:
        if where.bringer.pid:
            from torpor.supervise import arriving

            arriving.await_all(where.bringer, where.arriving, progress)
        opened = open_store(store or None)
        told["store"] = opened.location
        hooked.before()
        sealer = seal.sealing(encrypt_to)
        with_files, compress = lasting(upkeep, with_files, compress)
        request = _request(
            name, where, opened, sealer, stop, files, with_files, compress, streams, progress, guard, upkeep
        )
        request.ledger = _named(ledger, upkeep)
        request.forget = (*upkeeping(upkeep).forget, *forget)
        if inside:
            request.label = {**request.label, "inside": inside}
        request.identity = identity or lease.of_process(where.root)
        request.terms = terms.now(policy, seats, members(where), request.forget)
        request.together, request.first, request.tracker = together, first, tracker
        report = run(request)
    except BaseException as error:
        audit.record(event, error, **told)
        hooked.after("failed", reason=str(error))
        raise
    if guard is None or stop:
        behind.start(opened.location)
    else:
        behind.start_thread(opened.location)  # a process of ours would count as one of the job's
    plain = plain_report(report)
    numbers = {
        key: round(plain[key], 4) for key in ("seconds", "pause_seconds", "bytes_total", "bytes_new", "bytes_read")
    }
    notes = "; ".join(report.notes)
    audit.record(event, **told, checkpoint=f"{name}@{report.number}", stopped=stop, notes=notes, **numbers)
    plain["notes"] += hooked.end(f"{name}@{report.number}", stop)
    return plain


def _named(ledger: Callable[[], Ledger | None], upkeep: str) -> Callable[[], Ledger | None]:
    """A ledger with the names that were given for addresses in it."""
    services = upkeeping(upkeep).services
    if not services:
        return ledger
    from torpor.watch import names

    return lambda: names.named(ledger(), services)


class _Hooked:
    """The hooks around one checkpoint. told: what is known of it, by what it is called in the log.  together: of a job
    over hosts."""

    def __init__(
        self, hooks: Hooks, where: Reach, told: Mapping[str, Any], guard: Guard | None, together: SavedTogether | None
    ) -> None:
        self._hooks, self._where, self._told, self._guard, self._together = hooks, where, told, guard, together
        self._begun = False

    def before(self) -> None:
        """Raises HookFailed."""
        self._begun = True
        self._run("pre-checkpoint")

    def after(self, outcome: str, **more: str) -> list[str]:
        """Also of a checkpoint that failed, so that what a hook has begun comes to an end. What went wrong now."""
        try:
            if self._begun:
                self._run("post-checkpoint", OUTCOME=outcome, **{key.upper(): value for key, value in more.items()})
        except TorporError as error:
            return [str(error)]
        return []

    def end(self, checkpoint: str, stop: bool) -> list[str]:
        """Everything is stored here. Of a job over hosts the checkpoint may still come to nothing, and who has asked
        for it has had an answer by then: what went wrong is said here."""
        if self._together is None or stop:
            return self.after("done", checkpoint=checkpoint)
        if any(event == "post-checkpoint" for event, _ in self._hooks):
            why = self._together.decided()
            for line in self.after("failed", reason=why) if why else self.after("done", checkpoint=checkpoint):
                say(f"torpor: {line}")
        return []

    def _run(self, event: str, **more: str) -> None:
        if self._hooks:
            from torpor.supervise import hooks

            known = {key.upper(): str(self._told[key]) for key in ("job", "store", "why")}
            if self._together is not None:
                known |= {"PART": self._together.part, "PARTS": " ".join(self._together.parts)}
            hooks.run(self._hooks, event, {**known, "PID": str(self._where.root), **more}, self._guard)


def upkeeping(text: str) -> Upkeep:
    """What `upkeep.encode` wrote."""
    from torpor.supervise.upkeep import decode

    return decode(text)


def lasting(upkeep: str, with_files: bool, compress: str) -> tuple[bool, str]:
    """with_files and compress, with what `upkeep` says for all checkpoints of the job."""
    lasting = upkeeping(upkeep)
    return with_files or lasting.with_files, compress or lasting.compress


def _request(
    name: str, where: Reach, store: Store, sealer: Sealing, stop: bool, files: str, with_files: bool, compress: str,
    streams: Sequence[tuple[int, int]] | None, progress: Progress | None, guard: Guard | None, upkeep: str,
) -> SaveRequest:  # fmt: skip
    from torpor.checkpoint.save import SaveRequest

    return SaveRequest(
        name=name,
        tree=where.tree(),
        store=store,
        sealer=sealer,
        stop=stop,
        files=files,
        with_files=with_files,
        compress=compress,
        streams=_streams(streams),
        parent_is_reaper=where.parent_is_reaper,
        progress=progress,
        guard=guard or Guard(),
        label={"upkeep": upkeep} if upkeep else {},
    )


def complete(store: str, name: str) -> list[int]:
    """The numbers of the checkpoints of a job that can be told to be whole by their listing; none if the store cannot
    be read."""
    from torpor.store import open_store

    try:
        opened = open_store(store or None)
        try:
            return [info.number for info in opened.list(name) if not info.damaged]
        finally:
            opened.close()
    except (OSError, TorporError):
        return []


def thin(store: str, name: str, keep: int) -> str:
    """Remove all but the newest `keep` whole checkpoints of a job, and what only they needed. Returns what
    went wrong, in words, or '': nothing of it concerns the checkpoint that was just made."""
    from torpor.store import open_store
    from torpor.supervise import removal
    from torpor.supervise.upkeep import surplus

    doomed = surplus(complete(store, name), keep)
    if not doomed:
        return ""
    trouble: BaseException | None = None
    opened = open_store(store or None)
    for number in doomed:
        try:
            removal.remove(opened, name, number, "keep")
        except NotFound:
            pass
        except (OSError, TorporError) as error:
            trouble = error
    try:
        removal.collect(opened, "keep")
    except (OSError, TorporError) as error:
        trouble = error
    finally:
        opened.close()
    return f"old checkpoints of {name} could not be removed: {trouble}" if trouble else ""


def check(where: Reach, streams: Sequence[tuple[int, int]] | None = None) -> dict[str, Any]:
    """Could these processes be saved? Reads /proc only. Returns the report as plain values."""
    from torpor.checkpoint.survey import check as run

    return plain_check(run(where.tree(), _streams(streams)))


def _streams(held: Sequence[tuple[int, int]] | None) -> list[Any]:
    from torpor.posix.service import Stream

    if held is None:
        return [Stream(number, -1) for number in (0, 1, 2)]
    return [Stream(number, fd) for number, fd in sorted(held)]


def plain_report(report: SaveReport) -> dict[str, Any]:
    """A SaveReport as plain values."""
    names = ("job", "number", "bytes_total", "bytes_new", "bytes_read", "seconds", "pause_seconds", "location",
             "processes", "threads")  # fmt: skip
    return {**{name: getattr(report, name) for name in names}, "notes": list(report.notes)}


def whole_report(store: str, name: str, number: int, phases: Sequence[tuple[str, float]], text: str) -> dict[str, Any]:
    """The report of a checkpoint over hosts, which exists, as plain values. phases: in order, and how long each took,
    seconds; the job stood still from the second on, until it was resumed or ended.  text: what there is to know beside
    it. Raises TorporError, OSError."""
    from torpor.store import open_store

    opened = open_store(store or None)
    try:
        info = opened.resolve(f"{name}@{number}")
        location = opened.location
    finally:
        opened.close()
    ends = "resume" if any(phase == "resume" for phase, _ in phases) else "commit"
    names = [phase for phase, _ in phases]
    stood = phases[1 : names.index(ends) + 1] if ends in names else ()
    pause = sum(seconds for _, seconds in stood)
    hosts = ", ".join(part.name for part in info.parts)
    notes = [f"saved on {len(info.parts)} hosts: {hosts}"]
    if stood:
        each = ", ".join(f"{phase} {seconds:.3f}" for phase, seconds in stood)
        notes.append(f"seconds that the job stood still, by phase: {each}")
    notes += text.splitlines()
    return {
        "job": name, "number": number, "bytes_total": info.bytes_total, "bytes_new": info.bytes_new,
        "bytes_read": int(info.label.get("bytes_read", 0)), "seconds": sum(seconds for _, seconds in phases),
        "pause_seconds": pause, "location": location, "processes": int(info.label.get("processes", 0)),
        "threads": int(info.label.get("threads", 0)), "notes": notes,
    }  # fmt: skip


def plain_check(report: CheckReport) -> dict[str, Any]:
    """A CheckReport as plain values."""
    return {
        "refusals": [str(refusal) for refusal in report.refusals],
        "processes": [[p.pid, p.vpid, p.comm, p.threads, p.bytes] for p in report.processes],
        "bytes": report.bytes,
    }


def apart(
    name: str, work: Callable[[], Any], done: Callable[[Any, BaseException | None], None],
    post: Callable[[Callable[[], None]], None],
) -> None:  # fmt: skip
    """Call `work()` in a new thread of that name, then have `done(result, error)` posted to a loop."""
    import threading

    def body() -> None:
        result: Any = None
        error: BaseException | None = None
        try:
            result = work()
        except BaseException as caught:
            error = caught
        post(lambda: done(result, error))

    threading.Thread(target=body, name=name, daemon=True).start()


class Worker:
    """Runs one thing at a time in a thread of its own, and tells the loop through a descriptor.

    A thread is started for each: ptrace belongs to the thread that attached, and between checkpoints there is
    no reason to keep one.
    """

    def __init__(self) -> None:
        self.fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self.busy = ""
        """What is being done, '' if nothing is."""
        self._posts: list[Callable[[], None]] = []

    def post(self, callback: Callable[[], None]) -> None:
        """From any thread: have the loop call this. Appending to a list is atomic."""
        self._posts.append(callback)
        self.wake()

    def wake(self) -> None:
        os.eventfd_write(self.fd, 1)

    def start(self, what: str, work: Callable[[], Any], done: Callable[[Any, BaseException | None], None]) -> None:
        """Call `work()` in a new thread, then `done(result, error)` in the loop."""
        self.busy = what

        def finish(result: Any, error: BaseException | None) -> None:
            self.busy = ""
            done(result, error)

        apart(what, work, finish, self.post)

    def deliver(self, _events: int = 0) -> None:
        """The loop's callback: carry out what was posted."""
        try:
            os.eventfd_read(self.fd)
        except BlockingIOError:
            pass
        while self._posts:
            self._posts.pop(0)()
