"""`torpor restart`: start a saved job again on this host, in the foreground or detached."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from torpor import bytecode
from torpor.launch import program
from torpor.launch.run import supervised
from torpor.model.errors import Damaged, Refusal, Refused, UsageError
from torpor.named_tuple import NamedTuple
from torpor.supervise import registry
from torpor.supervise.registry import Entry, Pid
from torpor.supervise.say import say

if TYPE_CHECKING:
    from torpor.checkpoint.lazy.hand_over import Where
    from torpor.checkpoint.molds import Molds
    from torpor.checkpoint.restart import Restarted
    from torpor.checkpoint.whereabouts import Whereabouts
    from torpor.image.manifest import Manifest
    from torpor.launch.among import Among
    from torpor.launch.detach import Report
    from torpor.model.address_map import AddressMap
    from torpor.store import RootInfo, Store
    from torpor.store.load import Load
    from torpor.supervise.membership import Membership
    from torpor.supervise.standing import Standing
    from torpor.supervise.terminal import Terminal
    from torpor.watch.wrapper import Wrapper

Progress = Callable[[str, int, int], None]


class Wishes(NamedTuple):
    """How a checkpoint is to be restarted.

    name: other than the saved one.  clone: also if the job still runs.  stdin, stdout, stderr: files to take
    in place of our own.  files: 'auto' or 'keep'.  changed_files: 'refuse' or 'accept'.  pid_budget: seconds
    that finding the old pids in place may take.  untrusted: also if nobody who is trusted has signed it.
    in_place: without a namespace (None: where there is none to be had).  upkeep: what is to be done for it unasked, in
    place of what the checkpoint says (`upkeep.changed`).  map_path: 'OLD=NEW'
    each, for files that are elsewhere now.  map_host: the same for addresses (model/address_map.py).  stopped: it
    shall stand still before its first instruction.  lazy: memory may arrive while it runs.  policy: what was given for
    this job, as `terms.encode` writes it; new_policy: in place of the sealed one.  wait: seconds to wait for seats, and
    for the end of the same job elsewhere; None for what the policy says.  tell: told what is waited for.  seats: a
    descriptor of whoever keeps its seats (`SeatWatch.hand_over`), -1 for none.  held: of a part of a job over hosts,
    the seats that are held for the whole job.  why: for the log.
    notes: what is to be said once the job runs; before, the restart might cut it off a file again.
    """

    name: str | None = None
    clone: bool = False
    stdin: str | None = None
    stdout: str | None = None
    stderr: str | None = None
    files: str = "auto"
    changed_files: str = "refuse"
    untrusted: bool = False
    pid_budget: float = 5.0
    in_place: bool | None = None
    progress: Progress | None = None
    upkeep: Mapping[str, Any] = {}
    map_path: tuple[str, ...] = ()
    map_host: tuple[str, ...] = ()
    stopped: bool = False
    lazy: bool = False
    policy: str = ""
    new_policy: bool = False
    wait: float | None = None
    tell: Callable[[str], None] | None = None
    seats: int = -1
    held: tuple[str, ...] = ()
    why: str = "command"
    notes: tuple[str, ...] = ()


class Begun(NamedTuple):
    """A job that runs again. info: what is known of the checkpoint now that it was opened.  wrapper: what is around it
    if it is watched.  standing: what it holds outside."""

    entry: Entry
    job: Restarted
    info: RootInfo
    wrapper: Wrapper | None
    standing: Standing


def restart(checkpoint: str | None, store: str, wishes: Wishes, on_running: Callable[[], None] = lambda: None) -> int:
    """Restart a checkpoint in the foreground, in our place. Returns the wait status of its root.

    on_running: called once the job runs, before anything is said. Raises NotFound, Damaged, Refused,
    RestartFailed, UsageError.
    """
    program.hold_standard()
    with logged(checkpoint, store, wishes):
        opened, info = resolve(checkpoint, store)
        entry = claim(info, opened, wishes)
    return _foreground(opened, info, wishes, entry, on_running)


def after_crash(checkpoint: str, entry: Entry, wishes: Wishes, detached: bool, crashes: int) -> int:
    """Restart a job that has crashed, in the process that supervised it. Returns the wait status of its root.

    entry: its entry, which is ours. Raises as `restart`; the entry is then still there.
    """
    program.hold_standard()
    with logged(checkpoint, entry.store, wishes):
        opened, info = resolve(checkpoint, entry.store)
    entry = entry._replace(origin=f"{info.job}@{info.number}")
    return _foreground(opened, info, wishes, entry, lambda: None, detached, crashes)


def _foreground(
    opened: Store, info: RootInfo, wishes: Wishes, entry: Entry, on_running: Callable[[], None],
    detached: bool = False, crashes: int = 0,
) -> int:  # fmt: skip
    """The job under its entry, in this process, from its restart to its end."""
    from torpor.launch.interrupt import Interrupted
    from torpor.supervise.terminal import Terminal, open_terminal

    origin = f"{info.job}@{info.number}"
    try:
        with logged(origin, opened.location, wishes):
            standard = standard_streams(wishes, (0, 1, 2))
            terminal = Terminal(-1 if detached else open_terminal(), relay=not detached)
            try:
                begun = begin(opened, info, wishes, standard, terminal.fd, entry)
            except BaseException:
                terminal.close(lambda: ())
                raise
    except Interrupted as interrupted:
        registry.release(entry)
        say(f"torpor: {interrupted}; {origin} is as it was (torpor restart {origin})")
        return interrupted.status << 8
    except BaseException:
        if not crashes:
            registry.release(entry)
        raise
    on_running()
    for note in (*wishes.notes, *notes_of(begun, wishes)):
        say(f"torpor: {note}")
    return supervise(begun, terminal, standard, None, wishes, detached, crashes)


def restart_part(
    checkpoint: str, store: str, wishes: Wishes, entry: Entry, among: Among, membership: Membership,
    released: Callable[[], None], report: Report | None, standing: Standing | None,
) -> int:  # fmt: skip
    """Restart one part of a checkpoint of several hosts, under an entry that is there already, and supervise it.
    Returns the wait status of its root. released: called once it runs.  report: of a part that goes on by itself.
    standing: what the job holds, of its first part. Raises as
    `restart`, and what `among.together` does; before `released` was called nothing is left of it."""
    from torpor.supervise.terminal import Terminal, open_terminal

    with logged(checkpoint, store, wishes):
        opened, info = _find(checkpoint, store)
        entry = entry._replace(store=opened.location, origin=f"{info.job}@{info.number}")
        standard = standard_streams(wishes, (0, 1, 2))
        terminal = Terminal(open_terminal() if report is None else -1, relay=report is None)
        try:
            begun = begin(opened, info, wishes, standard, terminal.fd, entry, among, standing)
        except BaseException:
            terminal.close(lambda: ())
            raise
    released()
    for note in (*wishes.notes, *notes_of(begun, wishes)):
        say(f"torpor: {note}")
    if report is not None:
        os.chdir("/")
    return supervise(begun, terminal, standard, report, wishes, report is not None, 0, membership)


def resolve(checkpoint: str | None, store: str) -> tuple[Store, RootInfo]:
    """A checkpoint that one host can restart."""
    opened, info = _find(checkpoint, store)
    if info.parts:
        raise UsageError(of_hosts(info))
    return opened, info


def _find(checkpoint: str | None, store: str) -> tuple[Store, RootInfo]:
    from torpor.store import open_store

    opened = open_store(store or None, apart=True)
    info = opened.resolve(checkpoint)
    if info.damaged:
        raise Damaged(info.damaged)
    return opened, info


def of_hosts(info: RootInfo) -> str:
    """Why a checkpoint cannot be restarted by one host."""
    names = ", ".join(part.name for part in info.parts)
    return f"{info.job}@{info.number} was saved on several hosts ({names}), and comes back on several only"


class logged:
    """What goes wrong in here is written into the log of what was done. A request that makes no sense is not."""

    def __init__(self, checkpoint: str | None, store: str, wishes: Wishes) -> None:
        self._told = {"checkpoint": checkpoint, "store": store, "why": wishes.why}

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if error is not None and not isinstance(error, (UsageError, KeyboardInterrupt, SystemExit)):
            from torpor.supervise import audit

            audit.record("restart", error, job=(self._told["checkpoint"] or "").partition("@")[0], **self._told)


def upkeep_of(info: RootInfo, wishes: Wishes) -> str:
    """What is done for the job unasked: what the checkpoint says, but for what is given now."""
    label = str(info.label.get("upkeep", ""))
    if not label and not wishes.upkeep:
        return ""
    from torpor.supervise import upkeep

    try:
        found = upkeep.decode(label)
    except ValueError:
        say(
            f"torpor: {info.job}@{info.number} was saved by another version of torpor: only the options of now are used"
        )
        found = upkeep.Upkeep()
    return upkeep.encode(upkeep.changed(found, wishes.upkeep))


def _stopping(keep_up: str) -> tuple[list[int], int]:
    """The signals that mean: save the job and end it; and the exit status then."""
    if not keep_up:
        return [], 0
    from torpor.supervise import upkeep

    found = upkeep.decode(keep_up)
    return [number for number, action in found.on_signal if action == "checkpoint-stop"], found.stopped_status


def claim(info: RootInfo, store: Store, wishes: Wishes, copies: bool = False) -> Entry:
    """Put the job in under the name it will have. copies: it is one of several; the first free name of NAME-1, NAME-2,
    and so on. Raises Refused if it is still running."""
    origin = f"{info.job}@{info.number}"
    entry = Entry(name="", store=store.location, origin=origin)
    wanted = registry.check_name(wishes.name) if wishes.name else info.job
    if copies:
        found = registry.claim(
            entry, (f"{wanted}-{number}" for number in range(1, 10_000)), lambda name: bool(store.list(name))
        )
        if found is None:
            raise UsageError(f"no name is free: {wanted}-1 and so on are all taken")
        return found
    live = registry.running(info.job)
    same = next((other for other in registry.jobs() if info.identity and other.identity == info.identity), live)
    if same is not None and not wishes.clone:
        where = f"the job is still running here{'' if same.name == info.job else f', as {same.name}'}"
        way_out = "stop it, or restart a copy with --clone"
        error = Refused([Refusal(same.root.pid, info.job, where, way_out)], f"cannot restart {origin}")
        from torpor.supervise import audit

        audit.record("lease", error, do="take", job=info.job, identity=info.identity, store=store.location)
        raise error
    names: Iterator[str] = iter((wanted,))
    taken: Callable[[str], bool] = lambda _: False  # noqa: E731
    if wishes.clone and not wishes.name:
        names = registry.series(wanted)
        taken = (lambda name: name != wanted and bool(store.list(name))) if live is None else (
            lambda name: bool(store.list(name)))  # fmt: skip
    claimed = registry.claim(entry, names, taken)
    if claimed is None:
        raise UsageError(f"a job named {wanted} is running already; use --name")
    return claimed


def absolute(wishes: Wishes) -> Wishes:
    """The same with paths that mean the same in any folder."""
    paths = {name: getattr(wishes, name) for name in ("stdin", "stdout", "stderr")}
    moved = tuple(f"{old}={os.path.abspath(new)}" for old, _, new in (each.partition("=") for each in wishes.map_path))
    found = {name: os.path.abspath(path) for name, path in paths.items() if path is not None}
    return wishes._replace(**found, map_path=moved)


def standard_streams(wishes: Wishes, own: tuple[int, int, int]) -> tuple[int, int, int]:
    """The descriptors that the job gets as its standard ones. Raises UsageError for a file that cannot be
    opened."""
    read = os.O_RDONLY | os.O_CLOEXEC | os.O_NOCTTY
    write = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOCTTY
    out = list(own)
    wanted = ((wishes.stdin, read), (wishes.stdout, write), (wishes.stderr, write))
    for number, (path, flags) in enumerate(wanted):
        if path is None:
            continue
        if number == 2 and path == wishes.stdout:
            out[2] = out[1]
            continue
        try:
            out[number] = os.open(path, flags, 0o666)
        except OSError as error:
            raise UsageError(f"{path}: {error.strerror}") from None
    return out[0], out[1], out[2]


def begin(
    store: Store, info: RootInfo, wishes: Wishes, standard: tuple[int, int, int], terminal: int, entry: Entry,
    among: Among | None = None, held: Standing | None = None, opened: Load | None = None,
    made: Callable[[], None] = lambda: None, ready: Callable[[], None] = lambda: None, molds: Molds | None = None,
) -> Begun:  # fmt: skip
    """Recreate the job and let it go; its entry in the registry is complete before it runs, so that whatever becomes of
    us then, it is found. among: it is one part of several.  opened: the checkpoint, if that was done already.  made:
    called when its files are open.  ready: called when the job is whole and has not run yet.  molds: of one of several
    copies, for which it was looked whether it can be restarted here: memory of its that we have already. Raises
    Interrupted."""
    from torpor.checkpoint.restart import RestartRequest
    from torpor.checkpoint.restart import restart as run
    from torpor.image.seal import Opening
    from torpor.launch import admission
    from torpor.launch.interrupt import Interrupts
    from torpor.model.path_map import PathMap
    from torpor.supervise import lease, state
    from torpor.supervise.parent import become_subreaper
    from torpor.supervise.standing import Standing

    moved = PathMap.parse(wishes.map_path)
    become_subreaper()

    wrapper: Wrapper | None = None

    def wrap(manifest: Manifest, moves: AddressMap | None, tell: Callable[[str], None]) -> Wrapper | None:
        nonlocal wrapper
        watches = admit.watches(manifest)
        if manifest.ledger is not None or moves or wishes.map_host or watches:
            from torpor.launch import watching

            datagrams = any(kept.service == "udp" for kept in manifest.objects)
            prior = watching.again(manifest.ledger, watches, wishes.map_host, moves, datagrams)
            wrapper = watching.wrapper(prior, tell) if prior is not None else None
        return wrapper

    def register(job: Restarted) -> None:
        nonlocal entry
        interrupts.hold()
        entry = registry.update(
            entry._replace(
                holder=Pid.of(wrapper.holder) if wrapper is not None else registry.NOBODY,
                root=Pid.of(job.root),
                root_vpid=job.root_vpid,
                reaper=Pid.of(job.reaper) if job.reaper else registry.NOBODY,
                helpers=tuple(job.helpers),
                bringer=Pid.of(job.bringer[0]) if job.bringer[0] else registry.NOBODY,
                keeper=Pid.of(standing.seats.pid) if standing.seats is not None else registry.NOBODY,
                seats=standing.seats.names if standing.seats is not None else (),
                policy=admit.policy,
                anchor=job.tree.anchor,
                include_anchor=job.tree.include_anchor,
                skip=tuple(job.tree.skip),
                parent_is_reaper=job.parent_is_reaper,
            )
        )
        if standing.seats is not None:
            standing.seats.running((entry.reaper, entry.root))
        ready()

    whereabouts: Whereabouts | None = None
    opening = Opening(wishes.untrusted)
    if among is None:
        load = opened or store.load(info.job, info.number, opening)
    else:
        load, whereabouts = among.open(store, info, opening)
    if wishes.why != "crash":
        if among is None:  # else it is decided for all parts together, in hosts.py
            entry = entry._replace(upkeep=upkeep_of(load.info, wishes))
        entry = entry._replace(inside=str(load.info.label.get("inside", "")))
    if not entry.identity:
        identity = registry.fresh_identity() if wishes.clone else lease.of_checkpoint(info)
        entry = entry._replace(identity=identity)
    standing = held or Standing(entry.identity, entry.name)
    if wishes.seats >= 0:
        standing.kept = entry.seats, wishes.seats, entry.keeper.pid
    name = f"{info.job}@{info.number}"
    hosts = whereabouts.addresses if whereabouts is not None else frozenset()
    admit = admission.Admission(
        standing, entry.name, name, store.location, wishes.policy, wishes.new_policy, hosts,
        None if among is None else wishes.held, wishes.wait, tell_of(wishes),
    )  # fmt: skip
    try:
        if wishes.new_policy:
            admission.refuse_foreign_seal(info)
        if among is None:  # else seen to for all parts together, in whole_admission.py
            admission.sole(standing, store, wishes.wait, wishes.why == "resume", tell_of(wishes))
            if entry.upkeep:
                _hooks(entry, wishes)
        interrupts = Interrupts(*_stopping(entry.upkeep))
        with interrupts:
            job = run(
                RestartRequest(
                    load=load,
                    standard=standard,
                    clone=wishes.clone,
                    files=wishes.files,
                    changed_files=wishes.changed_files,
                    map_path=moved,
                    private=state.provided(entry.name),
                    pid_budget=wishes.pid_budget,
                    terminal=terminal,
                    in_place=wishes.in_place,
                    progress=wishes.progress,
                    before_release=register,
                    wrap=wrap,
                    admit=admit,
                    together=among.together if among is not None else None,
                    whereabouts=whereabouts,
                    names=os.path.join(entry.folder, "hosts"),
                    stopped=wishes.stopped,
                    lazy=_later(store, info, wishes, entry) if wishes.lazy else None,
                    molds=molds,
                    checked=molds is not None,
                    made=made,
                )
            )
        if standing.kept is not None and standing.seats is None:
            os.close(standing.kept[1])  # it has none any more
        return Begun(entry, job, load.info, wrapper, standing)
    except BaseException:
        if held is None:  # else it is closed by whoever has made it
            standing.close()
        raise
    finally:
        load.close()
        store.close()


def _later(store: Store, info: RootInfo, wishes: Wishes, entry: Entry) -> Where:
    """From where memory comes that arrives while the job runs."""
    from torpor.checkpoint.lazy.hand_over import Where
    from torpor.supervise.arriving import FILE

    return Where(store.location, info.job, info.number, wishes.untrusted, f"{entry.folder}/{FILE}")


def tell_of(wishes: Wishes) -> Callable[[str], None]:
    """What is called with what is waited for; now and then with '' (launch/admission.py)."""
    return wishes.tell or (lambda line: say(f"torpor: {line}") if line else None)


def notes_of(begun: Begun, wishes: Wishes) -> tuple[str, ...]:
    """What there is to say of a job that was restarted."""
    entry, job = begun.entry, begun.job
    if not wishes.stopped:
        return job.notes
    how = f"kill -CONT {entry.supervisor.pid} lets it go on; to look at it: gdb -iex 'set sysroot /' -p {job.root}"
    return (*job.notes, f"{entry.name} stands before its first instruction; {how}")


def _hooks(entry: Entry, wishes: Wishes) -> None:
    """Run what is to be run before the job is restarted. Raises HookFailed."""
    from torpor.supervise import hooks, upkeep

    told = {"JOB": entry.name, "CHECKPOINT": entry.origin, "STORE": entry.store, "WHY": wishes.why}
    hooks.run(upkeep.decode(entry.upkeep).hooks, "pre-restart", told)


def supervise(
    begun: Begun, terminal: Terminal, standard: tuple[int, int, int], report: Report | None, wishes: Wishes,
    detached: bool, crashes: int, membership: Membership | None = None,
) -> int:  # fmt: skip
    """The job runs: everything from here on may take its time."""
    entry, job, info, wrapper, standing = begun
    gc.enable()  # see cli/restart.py
    from torpor.launch.run import answered
    from torpor.supervise.signals import Signals
    from torpor.supervise.supervisor import Supervisor

    signals = Signals(answered(entry.upkeep))
    known = info.label.get("seconds")
    seconds = (float(known),) if isinstance(known, (int, float)) else ()
    streams = dict(enumerate(standard))
    supervisor = Supervisor(
        entry, signals, terminal, streams, job.events, seconds, crashes, wrapper, membership,
        job.bringer[1],
    )  # fmt: skip
    supervisor.stand(standing)
    supervisor.root.held = tuple(Pid.of(pid) for pid in job.held)
    if report is not None:
        from torpor.launch.detach import Started

        notes = (*wishes.notes, *notes_of(begun, wishes))
        report.started(Started(entry.name, job.root, job.root_vpid, entry.log, notes, job.seconds))
    from torpor.supervise import audit

    audit.record(
        "restart", job=entry.name, checkpoint=entry.origin, why=wishes.why, store=entry.store,
        seconds=round(job.seconds, 4), bytes_total=info.bytes_total,
    )  # fmt: skip
    bytecode.keep()
    return supervised(supervisor, detached, wishes._asdict())
