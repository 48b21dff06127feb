"""Restarts without a terminal, their output going to the jobs' logs."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING

from torpor.launch.detach import Report, Started, detach
from torpor.launch.restart import Wishes, absolute, claim, logged, resolve, standard_streams, supervise, tell_of
from torpor.launch.restart import begin as restart
from torpor.model.errors import RestartFailed, TorporError
from torpor.supervise import registry, state
from torpor.supervise.registry import Entry, Pid

if TYPE_CHECKING:
    from torpor.launch.clones import Among
    from torpor.store import RootInfo, Store
    from torpor.supervise.protocol import Message


def restart_detached(checkpoint: str | None, store: str, wishes: Wishes) -> Started:
    """Restart a checkpoint without a terminal, its output going to the job's log; returns once it runs."""
    with logged(checkpoint, store, wishes):
        opened, info = resolve(checkpoint, store)
        entry = claim(info, opened, wishes)
    return restart_claimed(opened, info, wishes, entry)


def restart_claimed(opened: Store, info: RootInfo, wishes: Wishes, entry: Entry) -> Started:
    """The same of a checkpoint that was opened, under an entry that is there. If it fails, that is gone."""
    entry, log = with_log(entry)
    try:
        with logged(f"{info.job}@{info.number}", opened.location, wishes):
            return detach(body(opened, info, wishes, entry), log, lambda message: pass_on(message, wishes))
    except BaseException:
        give_up(entry)
        raise


def body(
    opened: Store, info: RootInfo, wishes: Wishes, entry: Entry, among: Among | None = None
) -> Callable[[Report], None]:
    """What the detached process does. among: it is one of several copies."""

    def run(report: Report) -> None:
        from torpor.supervise.terminal import Terminal

        def progress(phase: str, done: int, total: int) -> None:
            report.event({"event": "progress", "phase": phase, "done": done, "total": total})

        def tell(line: str) -> None:
            if not report.event({"event": "waiting", "line": line}):
                raise RestartFailed("whoever wanted it restarted has gone")

        store = opened if among is None else among.enter(opened)
        mine = registry.update(entry._replace(supervisor=Pid.of(os.getpid())))
        standard = standard_streams(wishes, (0, 1, 2))
        asked = wishes._replace(progress=progress, tell=tell)
        if among is None:
            begun = restart(store, info, asked, standard, -1, mine)
        else:
            begun = restart(
                store, info, asked._replace(in_place=among.in_place), standard, -1, mine, opened=among.load,
                made=among.made, ready=lambda: among.whole(report), molds=among.molds,
            )  # fmt: skip
        lasting = absolute(wishes)
        os.chdir("/")
        supervise(begun, Terminal(-1, relay=False), standard, report, lasting, True, 0)

    return run


def with_log(entry: Entry) -> tuple[Entry, int]:
    """The entry with its log, and a descriptor of that. Raises TorporError, and the entry is gone."""
    try:
        log, path = state.open_log(entry.name, fresh=False)
    except OSError as error:
        registry.release(entry)
        raise TorporError(f"no log for {entry.name}: {error.strerror}: {error.filename}") from None
    return entry._replace(log=path), log


def pass_on(message: Message, wishes: Wishes) -> None:
    """What a restart says of itself, to whoever wanted it."""
    if wishes.progress is not None and message.get("event") == "progress":
        wishes.progress(str(message["phase"]), int(str(message["done"])), int(str(message["total"])))
    elif message.get("event") == "waiting" and message["line"]:
        tell_of(wishes)(str(message["line"]))


def give_up(entry: Entry) -> None:
    """The entry of a job that does not run is not needed any more."""
    left = registry.read(entry.folder)
    if left is not None and not left.root.alive:
        registry.release(left)
