"""Restarts without a terminal, their output going to the jobs' logs: of one job, or of several copies of it."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from torpor.launch.detach import Enough, Report, Started, begin, detach, hear
from torpor.launch.restart import Wishes, absolute, claim, logged, resolve, standard_streams, supervise, tell_of
from torpor.launch.restart import begin as restart
from torpor.model.errors import RestartFailed, TorporError, UsageError
from torpor.named_tuple import NamedTuple
from torpor.supervise import registry, state
from torpor.supervise.registry import Entry, Pid

if TYPE_CHECKING:
    from torpor.checkpoint.molds import Molds
    from torpor.store import RootInfo, Store
    from torpor.store.load import Load
    from torpor.supervise.protocol import Message

SHARE = 4
"""What copies have in common is read once if it fits into that part of the memory that is free."""


def restart_detached(checkpoint: str | None, store: str, wishes: Wishes) -> Started:
    """Restart a checkpoint without a terminal, its output going to the job's log; returns once it runs."""
    with logged(checkpoint, store, wishes):
        opened, info = resolve(checkpoint, store)
        entry = claim(info, opened, wishes)
    entry, log = _with_log(entry)
    try:
        with logged(f"{info.job}@{info.number}", opened.location, wishes):
            return detach(_body(opened, info, wishes, entry), log, lambda message: _pass_on(message, wishes))
    except BaseException:
        _give_up(entry)
        raise


def restart_copies(checkpoint: str | None, store: str, wishes: Wishes, count: int) -> list[Started]:
    """Restart so many copies of a checkpoint, each a job of its own, named NAME-1, NAME-2 and so on (those that are
    free). The checkpoint is read, verified and decompressed once, if there is room for that in memory.

    All or none: none runs before all are whole, and if one fails, none is left. Raises as `restart_detached`.
    """
    with logged(checkpoint, store, wishes):
        opened, info = resolve(checkpoint, store)
    with logged(f"{info.job}@{info.number}", opened.location, wishes):
        load, molds = _read_once(opened, info, wishes, count)
        entries: list[Entry] = []
        heard: list[int] = []
        go, sign = os.pipe()
        turn = os.memfd_create("torpor-turn")
        some = len(os.sched_getaffinity(0))
        try:
            for _ in range(count):
                entries.append(claim(info, opened, wishes, copies=True))
            for at, entry in enumerate(entries):
                entries[at], log = _with_log(entry)
                among = _Among(load, molds, turn, go, (sign, *heard))
                molds.hand_on()
                heard.append(begin(_body(opened, info, wishes, entries[at], among), log))
                if at >= some:
                    _until_whole(heard[at - some], wishes)
            for reading in heard[-some:]:
                _until_whole(reading, wishes)
            os.write(sign, bytes(count))
            started = [hear(reading, lambda message: None) for reading in heard]
        except BaseException:
            os.close(sign)
            sign = -1
            for reading in heard:
                while os.read(reading, 1 << 16):
                    pass  # until it has taken back what it made
            for entry in entries:
                _end(entry)
            raise
        finally:
            for fd in (go, turn, sign, *heard):
                if fd >= 0:
                    os.close(fd)
            if load is not None:
                load.close()
            molds.drop()
    return started


class _Among(NamedTuple):
    """What a copy gets from whoever makes all. load: the checkpoint, None if it has to read that itself.  molds: memory
    that all share.  turn: a file that is locked by who opens the job's files: two might cut back the same one.  go:
    where the sign to run comes from.  not_its_own: descriptors to be closed."""

    load: Load | None
    molds: Molds
    turn: int
    go: int
    not_its_own: Sequence[int]


def _read_once(opened: Store, info: RootInfo, wishes: Wishes, count: int) -> tuple[Load | None, Molds]:
    """The checkpoint, in memory that copies will share, None if that would be too much; and what they have in common.
    Raises UsageError where there is no room for the copies themselves."""
    from torpor.checkpoint import fill, molds, restart, room, takeover  # noqa: F401  what all of them need
    from torpor.image.seal import Opening
    from torpor.supervise import supervisor  # noqa: F401

    free = room.memory_free() + room.swap_free()
    if count > 1 and count * info.bytes_total > free:
        raise UsageError(
            f"{count} copies of {info.job}@{info.number} may need {count * info.bytes_total >> 20} MiB of memory, and "
            f"{free >> 20} MiB are free: --count {max(1, free // info.bytes_total)}"
        )
    if count == 1:
        return None, molds.Molds({}, {})
    load = opened.load(info.job, info.number, Opening(wishes.untrusted))
    manifest = restart.read(load)
    shared = molds.cast(manifest, load)
    if load.keep(room.memory_free() // SHARE, shared.chunks(manifest)):
        return load, shared
    load.close()
    return None, shared


def _body(
    opened: Store, info: RootInfo, wishes: Wishes, entry: Entry, among: _Among | None = None
) -> Callable[[Report], None]:
    """What the detached process does. among: it is one of several copies."""

    def body(report: Report) -> None:
        from torpor.supervise.terminal import Terminal

        def progress(phase: str, done: int, total: int) -> None:
            report.event({"event": "progress", "phase": phase, "done": done, "total": total})

        def tell(line: str) -> None:
            if not report.event({"event": "waiting", "line": line}):
                raise RestartFailed("whoever wanted it restarted has gone")

        def ready() -> None:
            if among is not None:
                report.event({"event": "whole"})
                if not os.read(among.go, 1):
                    raise RestartFailed("another copy could not be restarted")
                os.close(among.go)

        def made() -> None:
            if among is not None:
                os.close(among.turn)  # which lets go of the lock

        store = opened
        if among is not None:
            from torpor.store import open_store

            among.molds.hold()
            for fd in among.not_its_own:
                os.close(fd)
            store = open_store(opened.location, apart=True)  # the other connection is not ours alone
            fcntl.lockf(among.turn, fcntl.LOCK_EX)
        mine = registry.update(entry._replace(supervisor=Pid.of(os.getpid())))
        standard = standard_streams(wishes, (0, 1, 2))
        asked = wishes._replace(progress=progress, tell=tell)
        load, molds = (among.load, among.molds) if among is not None else (None, None)
        begun = restart(store, info, asked, standard, -1, mine, opened=load, made=made, ready=ready, molds=molds)
        lasting = absolute(wishes)
        os.chdir("/")
        supervise(begun, Terminal(-1, relay=False), standard, report, lasting, True, 0)

    return body


def _with_log(entry: Entry) -> tuple[Entry, int]:
    """The entry with its log, and a descriptor of that. Raises TorporError, and the entry is gone."""
    try:
        log, path = state.open_log(entry.name, fresh=False)
    except OSError as error:
        registry.release(entry)
        raise TorporError(f"no log for {entry.name}: {error.strerror}: {error.filename}") from None
    return entry._replace(log=path), log


def _pass_on(message: Message, wishes: Wishes) -> None:
    """What a restart says of itself, to whoever wanted it."""
    if wishes.progress is not None and message.get("event") == "progress":
        wishes.progress(str(message["phase"]), int(str(message["done"])), int(str(message["total"])))
    elif message.get("event") == "waiting" and message["line"]:
        tell_of(wishes)(str(message["line"]))


def _until_whole(reading: int, wishes: Wishes) -> None:
    """Wait until a copy is whole. Raises what it failed with."""

    def on_event(message: Message) -> None:
        if message.get("event") == "whole":
            raise Enough
        _pass_on(message, wishes)

    try:
        hear(reading, on_event)
    except Enough:
        pass


def _give_up(entry: Entry) -> None:
    """The entry of a job that does not run is not needed any more."""
    left = registry.read(entry.folder)
    if left is not None and not left.root.alive:
        registry.release(left)


def _end(entry: Entry) -> None:
    """The same; and if it does run, it is ended: it is one of several that shall run all or not at all."""
    import signal

    left = registry.read(entry.folder)
    if left is not None and left.root.alive:
        from torpor.supervise.job import Job

        Job(left).stop(signal.SIGKILL, 0.0)
    _give_up(entry)
