"""Several copies of one saved job, all or none.

One process, which has left the terminal (`detach.leave`), does once what is the same for all of them: it reads the
checkpoint, looks whether it can be restarted here, takes in memory that they share (checkpoint/molds.py), and imports
what all of them need. Then it forks them, as many at a time as there are processors. Its children stay behind when it
ends: their session is the one that it has made, which nobody leads any more.
"""

from __future__ import annotations

import fcntl
import gc
import os
import signal
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torpor.launch.detach import Enough, Report, Started, begin, hear, leave
from torpor.launch.detached import body, give_up, pass_on, restart_claimed, with_log
from torpor.launch.restart import Wishes, claim, logged, resolve
from torpor.model.errors import Refused, RestartFailed, UsageError
from torpor.named_tuple import NamedTuple
from torpor.supervise import registry

if TYPE_CHECKING:
    from torpor.checkpoint.molds import Molds
    from torpor.image.manifest import Manifest
    from torpor.store import RootInfo, Store
    from torpor.store.load import Load
    from torpor.supervise.protocol import Message
    from torpor.supervise.registry import Entry

SHARE = 4
"""What copies have in common is read once if it fits into that part of the memory that is free."""


def restart_copies(checkpoint: str | None, store: str, wishes: Wishes, count: int) -> list[Started]:
    """Restart so many copies of a checkpoint, each a job of its own, named NAME-1, NAME-2 and so on (those that are
    free). The checkpoint is read, verified and decompressed once, if there is room for that in memory.

    All or none: none runs before all are whole, and if one fails, none is left. Raises as `detached.restart_detached`.
    """
    with logged(checkpoint, store, wishes):
        opened, info = resolve(checkpoint, store)
        if count == 1:
            return [restart_claimed(opened, info, wishes, claim(info, opened, wishes, copies=True))]
    started: list[Started] = []

    def on_event(message: Message) -> None:
        if message.get("event") == "started":
            started.extend(Started(**{**job, "notes": tuple(job["notes"])}) for job in message["jobs"])
            raise Enough
        pass_on(message, wishes)

    with logged(f"{info.job}@{info.number}", opened.location, wishes):
        maker, reading = leave(lambda report: _make(opened, info, wishes, count, report))
        try:
            hear(reading, on_event)
        except Enough:
            pass
        except BaseException:
            os.kill(maker, signal.SIGINT)
            while os.read(reading, 1 << 16):
                pass  # until it has taken back what it made
            raise
        finally:
            os.close(reading)
            os.waitpid(maker, 0)
    return started


class Among(NamedTuple):
    """What a copy gets from whoever makes all. load: the checkpoint, None if it has to read that itself.  molds: memory
    that all share.  turn: a file that is locked by who opens the job's files: two might cut back the same one.  go:
    where the sign to run comes from.  not_its_own: descriptors to be closed.  interrupt: what SIGINT does to it.
    in_place: as in Wishes, now that it was looked up."""

    load: Load | None
    molds: Molds
    turn: int
    go: int
    not_its_own: Sequence[int]
    interrupt: Any
    in_place: bool | None

    def enter(self, opened: Store) -> Store:
        """In the copy's process, first of all: the store, opened again, as the other connection is not ours alone."""
        from torpor.store import open_store

        signal.signal(signal.SIGINT, self.interrupt)
        self.molds.hold()
        for fd in self.not_its_own:
            os.close(fd)
        store = open_store(opened.location, apart=True)
        fcntl.lockf(self.turn, fcntl.LOCK_EX)
        return store

    def made(self) -> None:
        """The job's files are open."""
        os.close(self.turn)  # which lets go of the lock

    def whole(self, report: Report) -> None:
        """The job is whole: wait until all are."""
        report.event({"event": "whole"})
        if not os.read(self.go, 1):
            raise RestartFailed("another copy could not be restarted")
        os.close(self.go)


def _make(opened: Store, info: RootInfo, wishes: Wishes, count: int, report: Report) -> None:
    """Make the copies, and tell when they run. Until then it is interrupted when the command ends."""
    from torpor.linux import namespaces

    interrupt = signal.signal(signal.SIGINT, signal.default_int_handler)
    namespaces.die_with_parent(signal.SIGINT)
    wishes = wishes._replace(progress=None, tell=None)
    load, molds = _read_once(opened, info, wishes, count)
    in_place = None if namespaces.refused(os.geteuid() != 0) else False
    entries: list[Entry] = []
    heard: list[int] = []
    go, sign = os.pipe()
    turn = os.memfd_create("torpor-turn")
    some = len(os.sched_getaffinity(0))
    try:
        for _ in range(count):
            entries.append(claim(info, opened, wishes, copies=True))
        gc.freeze()  # so that no collection writes to what all of them share
        for at, entry in enumerate(entries):
            entries[at], log = with_log(entry)
            among = Among(load, molds, turn, go, (sign, *report.descriptors(), *heard), interrupt, in_place)
            molds.hand_on()
            heard.append(begin(body(opened, info, wishes, entries[at], among), log, left=True))
            if at >= some:
                _until_whole(heard[at - some], report)
        for reading in heard[-some:]:
            _until_whole(reading, report)
        if not report.event({"event": "whole"}):
            raise RestartFailed("whoever wanted it restarted has gone")
        os.write(sign, bytes(count))
        started = [hear(reading, lambda message: None) for reading in heard]
        report.event({"event": "started", "jobs": [job._asdict() for job in started]})
    except BaseException:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        os.close(sign)
        for reading in heard:
            while os.read(reading, 1 << 16):
                pass  # until it has taken back what it made
        for entry in entries:
            _end(entry)
        raise


def _read_once(opened: Store, info: RootInfo, wishes: Wishes, count: int) -> tuple[Load | None, Molds]:
    """The checkpoint, in memory that copies will share, None if that would be too much; and what they have in common.
    Raises UsageError where there is no room for the copies themselves, Refused, Damaged."""
    from torpor.checkpoint import molds, restart, room
    from torpor.checkpoint.relocate import relocate
    from torpor.checkpoint.required import check
    from torpor.image.seal import Opening
    from torpor.model.path_map import PathMap

    free = room.memory_free() + room.swap_free()
    if count * info.bytes_total > free:
        raise UsageError(
            f"{count} copies of {info.job}@{info.number} may need {count * info.bytes_total >> 20} MiB of memory, and "
            f"{free >> 20} MiB are free: --count {max(1, free // info.bytes_total)}"
        )
    load = opened.load(info.job, info.number, Opening(wishes.untrusted))
    manifest = restart.read(load)
    refusals = check(relocate(manifest, PathMap.parse(wishes.map_path)), wishes.changed_files, wishes.files)
    if refusals:
        raise Refused(refusals, "cannot restart")
    _bring(manifest)
    shared = molds.cast(manifest, load)
    if load.keep(room.memory_free() // SHARE, shared.chunks(manifest)):
        return load, shared
    load.close()
    return None, shared


def _bring(manifest: Manifest) -> None:
    """Import what all copies need."""
    import pwd  # noqa: F401
    import threading  # noqa: F401

    from torpor.checkpoint import fill, takeover  # noqa: F401
    from torpor.launch import admission, interrupt  # noqa: F401
    from torpor.posix import descriptor_services
    from torpor.posix.job_services import job_services
    from torpor.store import tier  # noqa: F401
    from torpor.supervise import audit, supervisor, terminal  # noqa: F401

    for record in manifest.objects:
        descriptor_services.service_named(record.service)
    list(job_services(manifest.services))


def _until_whole(reading: int, report: Report) -> None:
    """Wait until a copy is whole. Raises what it failed with."""

    def on_event(message: Message) -> None:
        if message.get("event") == "whole":
            raise Enough
        if not report.event(message):
            raise RestartFailed("whoever wanted it restarted has gone")

    try:
        hear(reading, on_event)
    except Enough:
        pass


def _end(entry: Entry) -> None:
    """The entry of a copy is not needed; and if the copy does run, it is ended: all shall run, or none."""
    left = registry.read(entry.folder)
    if left is not None and left.root.alive:
        from torpor.supervise.job import Job

        Job(left).stop(signal.SIGKILL, 0.0)
    give_up(entry)
