"""The pipeline that starts a saved job again: check, plan, recreate, plant, take over, fill, release."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import msgspec

from torpor import bytecode
from torpor.checkpoint import machine, plant
from torpor.checkpoint.anew import Namespaces
from torpor.checkpoint.plan import Plan, plan
from torpor.checkpoint.plant import Ground, Planted
from torpor.checkpoint.recreate import Inventory
from torpor.checkpoint.relocate import relocate
from torpor.checkpoint.required import check
from torpor.checkpoint.tree import Tree
from torpor.image import codec
from torpor.image.manifest import Manifest
from torpor.linux import namespaces, proc
from torpor.model.errors import Refused, RestartFailed
from torpor.model.path_map import PathMap
from torpor.model.wrapping import Wrapping
from torpor.named_tuple import NamedTuple
from torpor.posix import host_names, terminal
from torpor.posix.job_services import job_services
from torpor.store.parts import whole
from torpor.tracee.call import CallFailed
from torpor.tracee.task import Gone
from torpor.tracee.together import together

if TYPE_CHECKING:
    from torpor.checkpoint.footing import Footing
    from torpor.checkpoint.lazy.hand_over import Late, Where
    from torpor.checkpoint.molds import Molds
    from torpor.checkpoint.opened import Opened
    from torpor.checkpoint.own_fill import OwnFill
    from torpor.checkpoint.ports import Held
    from torpor.checkpoint.rehearse import Rehearsal
    from torpor.checkpoint.takeover import Takeover
    from torpor.checkpoint.together import RestartedTogether
    from torpor.checkpoint.whereabouts import Whereabouts
    from torpor.model.address_map import AddressMap

Progress = Callable[[str, int, int], None]


class RestartRequest(msgspec.Struct, kw_only=True):
    """What to start, and how.

    standard: descriptors for the job's standard streams. files: 'auto' (cut back what was written since) or 'keep'.
    changed_files: 'refuse' or 'accept' files that were only read and differ now. terminal: a descriptor of our
    controlling terminal, -1 if there is none or the job shall not have it. before_release:
    called when the job is whole and has not run yet, so that it can be written down before it does; what it raises
    fails the restart. map_path: where the job's files are now. private: a
    folder for files that are missing and that the checkpoint carries; it need not exist. wrap: what is to be put around
    the job, and what there is to say about that. admit: whether the job may go on, asked when nothing of it was made
    yet; it returns connections that were made anew to outside, by inode number, and raises Refused. rehearsal: what is
    restarted is cut loose from the world outside; `before_release` then has to raise. together: the other hosts of the
    job, if this is a part of one. whereabouts: where they all are, None for where they were. names: where a file with
    their names may be made. stopped: the job is stopped, as by SIGSTOP, before its first instruction. lazy: where
    memory is fetched from that may arrive while the job runs, None if all of it is to be there. molds: memory of the
    job that we have, and its processes shall share with us. Not with lazy. checked: that `check` finds nothing was
    seen a moment ago. made: called when its files have been opened, and cut back.
    """

    load: Opened
    standard: tuple[int, int, int] = (0, 1, 2)
    clone: bool = False
    files: str = "auto"
    changed_files: str = "refuse"
    pid_budget: float = 5.0
    private: str = ""
    map_path: PathMap = msgspec.field(default_factory=PathMap)
    terminal: int = -1
    in_place: bool | None = None
    progress: Progress | None = None
    before_release: Callable[[Restarted], None] | None = None
    wrap: Callable[[Manifest, AddressMap | None, Callable[[str], None]], Wrapping | None] = (
        lambda manifest, moves, say: None
    )
    admit: Callable[[Manifest, Callable[[str], None]], dict[int, int]] = lambda manifest, say: {}
    rehearsal: Rehearsal | None = None
    together: RestartedTogether | None = None
    whereabouts: Whereabouts | None = None
    names: str = ""
    stopped: bool = False
    lazy: Where | None = None
    molds: Molds | None = None
    checked: bool = False
    made: Callable[[], None] = lambda: None


class Restarted(msgspec.Struct, kw_only=True):
    """A job that runs again. root: host pid of its first process. reaper: PID 1 of its namespace. helpers: torpor's own
    processes in the tree. events: see checkpoint/plant.py. held: host pids of those that are stopped because that was
    asked for, not of themselves."""

    root: int
    root_vpid: int
    reaper: int
    helpers: tuple[int, ...]
    tree: Tree
    events: int
    notes: tuple[str, ...]
    seconds: float
    parent_is_reaper: bool = False
    held: tuple[int, ...] = ()
    foreground: int = 0
    """Host number of the process group that was put in front of the terminal, 0 for none."""
    bringer: tuple[int, int] = (0, -1)
    """Who brings memory that is not there yet: its pid, and a descriptor on which it tells how far it is."""


def read(load: Opened) -> Manifest:
    """The manifest of an opened checkpoint. Raises Damaged."""
    return codec.decode(load.body, Manifest, f"checkpoint {load.info.job}@{load.info.number}")


def restart(request: RestartRequest) -> Restarted:
    """Start a saved job. Raises Refused (before anything was done), RestartFailed or Damaged (nothing is left behind).

    To be called in one thread, while this process has no other threads. The caller becomes the parent of the job's
    PID 1.
    """
    began = time.perf_counter()
    manifest = relocate(read(request.load), request.map_path)
    if request.rehearsal is not None:
        manifest = request.rehearsal.manifest(manifest)
    refusals = [] if request.checked else check(manifest, request.changed_files, request.files)
    if refusals:
        raise Refused(refusals, "cannot restart")
    keep_session = request.terminal >= 0 and manifest.terminal is not None
    notes: list[str] = []
    footing, births = _footing(manifest, request, keep_session, notes.append)
    notes += [f"left out when it was saved: {line}" for line in manifest.forgotten]
    name = f"{whole(request.load.info.job)}@{request.load.info.number}"
    met = _meet(manifest, request, notes.append)
    try:
        saved, manifest = manifest, met.manifest
        wrapping = request.wrap(manifest, met.moves, notes.append)
    except BaseException:
        met.close()
        raise
    inventory = Inventory(
        manifest, request.load, name, request.standard, request.files, request.changed_files, notes.append,
        footing.inherits, request.private,
        (lambda: plant.early(births, manifest, footing, wrapping)) if footing.chooses else None,
    )  # fmt: skip
    planted: Planted | None = None
    late: Late | None = None
    try:
        late = _late(manifest, request, footing, notes.append)
        inventory.connected = met.connected
        # By the addresses that it had: what it has asked for is written down by these.
        inventory.connected.update(request.admit(saved, notes.append))
        inventory.make()
        request.made()
        met.release()
        ground = _ground(manifest, inventory, request)
        planted = plant.plant(births, manifest, ground, footing, inventory.pioneer, wrapping, _bring)
        notes += planted.notes
        inventory.hosts = planted.hosts
        takeovers = _take_over(manifest, inventory, births, planted, footing, request, late)
        root = planted.hosts[manifest.root]
        job = Restarted(
            root=root,
            root_vpid=manifest.root,
            reaper=planted.init,
            helpers=planted.helpers,
            tree=Tree(anchor=planted.init, include_anchor=False, root=root, skip=planted.helpers),
            events=planted.events,
            notes=tuple(notes),
            seconds=time.perf_counter() - began,
            held=tuple(each.process.pid for each in takeovers if each.held),
            parent_is_reaper=births.parent.subreaper or births.parent is births.init,
            foreground=_to_the_front(request.terminal, manifest, planted) if keep_session else 0,
            bringer=(late.pid, late.link.detach()) if late is not None else (0, -1),
        )
        if request.before_release is not None:
            request.before_release(job)
        if request.together is not None:
            request.together.filled()
        for do in inventory.last:
            do()
        _let_go(takeovers)
    except BaseException as error:
        if planted is not None:
            _uproot(planted, footing)
        elif inventory.pioneer is not None:
            footing.uproot(inventory.pioneer.pid)
        met.release()
        if late is not None:
            late.close()
        inventory.undo()
        if isinstance(error, (CallFailed, Gone, ProcessLookupError, FileNotFoundError)):
            raise RestartFailed(f"{name} could not be recreated: {error}") from error
        raise
    os.write(planted.release, bytes(len(planted.helpers) + 1))
    os.close(planted.release)
    return job


class _Met(NamedTuple):
    """What came of meeting the other hosts. manifest: with the addresses of now.  moves: from those that the job
    believes in, None for a job of one host.  connected: our descriptors, by the inode numbers that these ends had.
    held: ports that are kept for the job's sockets."""

    manifest: Manifest
    moves: AddressMap | None = None
    connected: dict[int, int] = {}
    held: Held | None = None

    def release(self) -> None:
        """The job's sockets have their ports."""
        if self.held is not None:
            self.held.close()

    def close(self) -> None:
        self.release()
        for fd in self.connected.values():
            os.close(fd)


def _meet(manifest: Manifest, request: RestartRequest, say: Callable[[str], None]) -> _Met:
    """Connect to the other hosts of the job, if it has any, and learn where they are. Raises RestartFailed, GivenUp."""
    together, whereabouts = request.together, request.whereabouts
    if together is None:
        return _Met(manifest)
    # These bring all of TCP and UDP along.
    from torpor.checkpoint.ports import Held
    from torpor.checkpoint.resettle import resettle
    from torpor.checkpoint.reunion import Reunion, far_ends
    from torpor.model.address_map import AddressMap

    held = Held(whereabouts.crowded(), whereabouts.taken) if whereabouts is not None else Held((), ())
    met = _Met(manifest, held=held)
    try:
        for old, new in held.now.items():
            say(f"port {old} is {new} now: another part of the job has it on this host")
        found = far_ends(manifest, request.load)
        reunion = Reunion(found, together.code, say)
        try:
            port, waits = reunion.wait()
            reached = together.recreated(port, waits, [end.name for end in found if end.calls], held.now)
            met = met._replace(connected=reunion.meet(reached.places))
        finally:
            reunion.close()
        together.connected()
    except BaseException:
        met.close()
        raise
    if whereabouts is None:
        return met
    before = AddressMap.parse(manifest.ledger.moved if manifest.ledger is not None else ())
    return met._replace(
        manifest=resettle(manifest, whereabouts.moves(reached.shifts)),
        moves=whereabouts.believed(before, reached.shifts),
    )


def _footing(
    manifest: Manifest, request: RestartRequest, keep_session: bool, say: Callable[[str], None]
) -> tuple[Footing, Plan]:
    """New namespaces, or in place where it is wanted or none can be made. Raises Refused."""
    user = os.geteuid() != 0
    why = "as asked for" if request.in_place else namespaces.refused(user) if request.in_place is None else ""
    if not why:
        own = _own_fill(manifest, request)
        return Namespaces(user, _own_ipc(manifest, say), request.molds, own), plan(manifest, keep_session)
    from torpor.checkpoint import inplace_plan

    say(f"restarted in place: {why}")
    footing = inplace_plan.prepare(manifest, keep_session, request.pid_budget, say, request.progress)
    return footing, footing.births


def _own_fill(manifest: Manifest, request: RestartRequest) -> OwnFill | None:
    """What processes put in themselves, if there is anything like that. What may arrive later is not put in."""
    near = None if request.lazy is not None else request.load.near
    if near is None or not any(area.huge for record in manifest.processes for area in record.areas):
        return None
    from torpor.checkpoint import own_fill

    progress = request.progress
    return own_fill.OwnFill(manifest, near, (lambda done, total: progress("memory", done, total)) if progress else None)


def _own_ipc(manifest: Manifest, say: Callable[[str], None]) -> bool:
    """Shall the job have an IPC namespace of its own? System V objects need one, message queues are better off."""
    open_queues = [kept.state for kept in manifest.objects if kept.service == "mqueue"]
    if manifest.services or not open_queues:
        return bool(manifest.services)
    from torpor.posix import mqueue

    if mqueue.fit_anew(msgspec.msgpack.decode(state, type=mqueue.OpenQueue) for state in open_queues):
        return True
    say("the message queues are the host's: a new IPC namespace does not allow such large ones")
    return False


def _ground(manifest: Manifest, inventory: Inventory, request: RestartRequest) -> Ground:
    """Raises RestartFailed."""
    now = machine.clocks()
    saved = manifest.clocks
    host = names = ""
    if request.whereabouts is not None:
        host = request.whereabouts.me.face.name
        if request.names and request.whereabouts.elsewhere:
            names = request.names
            try:
                host_names.write(names, request.whereabouts.names())
            except OSError as error:
                raise RestartFailed(f"{names}: {error.strerror}") from None
    return Ground(
        clocks=(saved.monotonic - now.monotonic, saved.boottime - now.boottime),
        terminals={leader: fd for leader, (fd, _) in inventory.terminals.items()},
        devpts=inventory.instance,
        names=names,
        host=host if host != os.uname().nodename else "",
    )


def _bring() -> None:
    """Import what is needed once the tree is there: that takes about as long as the tree takes to grow."""
    bytecode.bring("takeover", ("torpor.checkpoint.fill", "torpor.checkpoint.takeover"), "restart")


def _take_over(
    manifest: Manifest, inventory: Inventory, births: Plan, planted: Planted, footing: Footing, request: RestartRequest,
    late_memory: Late | None,
) -> list[Takeover]:  # fmt: skip
    """Every step for all processes, then the next, up to the last before the release."""
    from torpor.checkpoint.fill import fill
    from torpor.checkpoint.takeover import Takeover

    living = [record for record in manifest.processes if record.state != "zombie"]
    takeovers = [
        Takeover(record, planted.hosts[record.pid], inventory, request.stopped, footing.there(record.pid))
        for record in living
    ]
    for each in takeovers:
        each.seize()
    together(each.settle() for each in takeovers)
    if footing.executes:
        for note in dict.fromkeys(each.execute() for each in takeovers):
            if note:
                inventory.say(note)
    groups = births.numbers()
    together(each.join(groups) for each in takeovers)
    for each in takeovers:
        each.attend(inventory.terminals)
    reapers = {ghost: proc.stat(planted.hosts[ghost]).ppid for ghost in planted.ghosts}
    os.close(planted.gate)
    planted.gate = -1  # the number may soon be somebody else's
    for each in takeovers:
        each.reap([ghost for ghost, parent in reapers.items() if parent == each.process.pid])
    late = inventory.make_late()
    for each in takeovers:
        each.receive(late)
    placed: set[int] = set()
    for each in takeovers:
        each.place(placed)
    stubs = {each.record.pid: each.process for each in takeovers}
    job = [
        (service, msgspec.msgpack.decode(manifest.services[service.name], type=service.record))
        for service in job_services(manifest.services)
    ]
    for service, state in job:
        service.create(state, stubs, request.load)
    for each in takeovers:
        each.memory.attach()
    together(each.memory.map() for each in takeovers)
    progress = request.progress
    less = late_memory.early if late_memory is not None else footing.rest
    records = [less(each.record) for each in takeovers]
    there = (
        0
        if late_memory is not None
        else sum(each.record.pages.size for each in takeovers) - sum(record.pages.size for record in records)
    )
    faults: dict[int, int] = {}
    try:
        if late_memory is None:
            together(each.memory.hand_out(record.pages, faults) for record, each in zip(records, takeovers))
        fill(
            [(record, each.process.pid) for record, each in zip(records, takeovers)], request.load,
            (lambda done, total: progress("memory", there + done, there + total)) if progress else None, faults,
        )  # fmt: skip
    finally:
        for fd in faults.values():
            os.close(fd)
    if late_memory is not None:
        at_once = {each.record.pid: (each.record, each.process.pid) for each in takeovers}
        late_memory.begin(
            stubs, planted.init,
            lambda number, pages: fill(
                [(msgspec.structs.replace(at_once[number][0], pages=pages), at_once[number][1])], request.load
            ),
        )  # fmt: skip
    together(each.furnish() for each in takeovers)
    footing.make_threads([(each.process, each.others()) for each in takeovers])
    together(each.threaded() for each in takeovers)
    together((work for each in takeovers for work in each.threads()), alone=False)
    for each in takeovers:
        # Some things are for a thread, by its number.
        inventory.hosts.update((task.vtid, task.tid) for task in each.process.tasks)
    for each in takeovers:
        each.halt()
    for each in takeovers:
        pid = each.record.pid
        each.know_stops([child for child in takeovers if child.record.parent == pid and child.halted])
    for service, state in job:
        service.finish(state, stubs)
    for each in takeovers:
        each.late()
    inventory.finish()
    asked: set[int] = set()
    for each in takeovers:
        each.ask_for_signals(asked)
    together((work for each in takeovers for work in each.clocks()), alone=False)
    together((work for each in takeovers for work in each.last_of_others()), alone=False)
    together(each.last() for each in takeovers)
    for each in takeovers:
        each.dress()
    # Were our copies still open when the job runs, it would see pipes with a writer that is not there.
    inventory.close()
    return takeovers


def _late(manifest: Manifest, request: RestartRequest, footing: Footing, say: Callable[[str], None]) -> Late | None:
    """Memory that comes later, if that was asked for and can be had."""
    if request.lazy is None:
        return None
    from torpor.checkpoint.lazy import hand_over

    why = hand_over.refused(footing, request.together is None and request.rehearsal is None)
    if why:
        say(f"all memory is there already (--lazy): {why}")
        return None
    return hand_over.prepare(manifest, request.lazy, say)


def _let_go(takeovers: list[Takeover]) -> None:
    """The release."""
    # What is stopped is so before anybody who might look at it runs.
    stopped = [each for each in takeovers if each.stands]
    for each in stopped:
        each.release()
    for each in stopped:
        proc.await_state(each.process.pid, "T")
    for each in takeovers[::-1]:
        if each not in stopped:
            each.release()


def _to_the_front(tty: int, manifest: Manifest, planted: Planted) -> int:
    """Put the job's foreground group in front of our terminal, with the job's settings, if we are in front
    ourselves."""
    saved = manifest.terminal
    if saved is None:
        return 0
    try:
        if os.tcgetpgrp(tty) != os.getpgrp():
            return 0
        group = planted.hosts.get(saved.foreground, 0)
        terminal.apply(tty, saved.termios)
        if group:
            os.tcsetpgrp(tty, group)
            os.killpg(group, signal.SIGWINCH)
        return group
    except OSError:
        return 0


def _uproot(planted: Planted, footing: Footing) -> None:
    """Nothing of a failed restart may remain."""
    for fd in (planted.release, planted.gate, planted.events):
        try:
            os.close(fd)
        except OSError:
            pass
    footing.uproot(planted.init)
