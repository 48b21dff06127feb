"""From a frozen job to its manifest: every service is asked, nothing is changed."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import msgspec

from torpor import __version__
from torpor.checkpoint import descriptors, memory
from torpor.checkpoint.asking import Asked
from torpor.checkpoint.asking import ask as ask_one
from torpor.checkpoint.beforehand import Flags
from torpor.checkpoint.captured import Captured, Half
from torpor.checkpoint.copies import Copies
from torpor.checkpoint.mapped_files import MappedFiles
from torpor.checkpoint.together import SavedTogether
from torpor.checkpoint.tree import Tree
from torpor.checkpoint.turns import Turns
from torpor.checkpoint.view import Far, View
from torpor.image.manifest import (
    DescriptorRecord,
    Manifest,
    ObjectRecord,
    ProcessRecord,
    Services,
    TerminalRecord,
)
from torpor.linux import proc, ptrace, siginfo
from torpor.model.data import Sink
from torpor.model.errors import CheckpointFailed, Refusal, Refused
from torpor.named_tuple import NamedTuple
from torpor.posix import (
    descriptor_services,
    inet_far,
    owner,
    prctls,
    regular,
    scratch,
    seccomp_filters,
    terminal,
    turnover,
)
from torpor.posix.backlog import Backlogs, Turning
from torpor.posix.job_services import job_services
from torpor.posix.memory import vdso
from torpor.posix.memory.forget import Forget
from torpor.posix.scratch import Scratch
from torpor.posix.service import Stream
from torpor.tracee.freeze import Frozen
from torpor.tracee.process import LivingProcess, Process
from torpor.tracee.snapshot import Snapshot

if TYPE_CHECKING:
    from torpor.checkpoint.tracking import Unchanged


def capture(
    frozen: Frozen,
    sink: Sink,
    job: str,
    tree: Tree,
    streams: Sequence[Stream],
    files_policy: str,
    parent_is_reaper: bool,
    progress: memory.Progress | None,
    copies: Copies,
    backlogs: Backlogs,
    together: SavedTogether | None = None,
    flags: Flags | None = None,
    snapshot: Snapshot | None = None,
    forget: Forget | None = None,
    look_at_writes: Callable[[Iterable[int]], Unchanged] | None = None,
) -> Captured:
    """What there is to say of a frozen job; its bulk data goes to the sink. flags, snapshot: what can wait is left in
    copies of the processes (memory.look, memory.save); None for everything now. forget: what is left out.
    backlogs: what is to be known of connections that wait to be accepted, and may be done for it; closed at the end.
    together: the other hosts of the job, if it is not alone; they are waited for at "frozen" and
    "settled".  look_at_writes: see tracking.Tracker.look.

    Raises Refused before anything was run in the job, CheckpointFailed, and whatever shows that the job changed.
    """
    order = [pid for pid in frozen.found if pid in frozen.processes or pid in frozen.zombies]
    far = Far()
    turns = Turns(together) if together is not None else None

    def look() -> View:
        return View(frozen, order, streams, files_policy, sink, tree.watched, backlogs, far)

    try:
        view = look()
        if not view.pids:
            raise CheckpointFailed("the job has ended")
        if together is not None and turns is not None:
            if inet_far.await_calls(view, together.others):
                view = look()
            far = _settle(view, together, turns)
            view = look()  # connections have come into other states
        found = _objects(view, copies)
        if backlogs.noted or (turns is not None and turns.needed(view)):
            # Once more, when it is known what waits; and before that, all else that may stand in the way.
            turned = _turn_over(view, frozen, turns)
            if turned or backlogs.pending:
                view = look()
                found = _objects(view, copies)
    finally:
        backlogs.close()
        if turns is not None:
            turns.close()
    objects, read_files, finish_scratch = found
    looks = memory.look(frozen, flags)
    files = MappedFiles(copies)
    for path in read_files:
        files.number(path)
    services = _job_services(view, [frozen.processes[pid] for pid in view.pids])
    asked: dict[int, Asked] = {}
    reapers: set[int] = set()

    def ask(processes: Sequence[LivingProcess]) -> Iterator[str]:
        # All at once, as far as it goes: while one does what it was asked, we turn to the others.
        for process in processes:
            asked[process.pid] = Asked(process)
        for process in processes:
            asked[process.pid].send()
        for process in processes:
            yield _no_copy(process, asked[process.pid].hear(), reapers, tree.watched)

    held = memory.save(
        frozen,
        view.pids,
        looks,
        view,
        files.number,
        sink,
        progress,
        snapshot,
        ask,
        forget or Forget(()),
        look_at_writes,
    )
    records = [_process(pid, view, frozen, asked.get(pid), files) for pid in order]
    draft = partial(
        Manifest,
        job=job,
        created=time.time(),
        torpor=__version__,
        clocks=asked[view.pids[0]].clocks(),
        root=view.vpid(view.face(tree.root)) or records[0].pid,
        parent_is_reaper=parent_is_reaper,
        memory=held.objects,
        terminal=_terminal(order, frozen, view),
        services=services,
        vdso=_vdso(frozen, held),
    )
    return Captured(
        draft,
        [Half(pid, record, asked.get(pid)) for pid, record in zip(order, records)],
        objects,
        files.records(view, [area for found in held.areas.values() for area in found]),
        view.parts,
        finish_scratch,
        lambda records: copies.read(records, sink),
        held,
        (*view.notes, *_stood(held, frozen)),
    )


def _settle(view: View, together: SavedTogether, turns: Turns) -> Far:
    """Find out which connections lead to other hosts of the job, and let what is under way on them arrive. Raises
    Refused, GivenUp."""
    found = inet_far.ends(view)
    door = turns.open_door() if any(end.waiting for end in found) else 0
    told = together.frozen(found, inet_far.addresses(found), door)
    by_ino = {one.key: one for one in told}
    with inet_far.Settling(view, by_ino) as settling:
        settling.arrive()
        together.settled()
    return Far(by_ino, inet_far.waiting(found, told), together.others)


class _Objects(NamedTuple):
    """The open file descriptions of a job. read_files: paths of which there are to be copies."""

    records: list[ObjectRecord]
    read_files: list[str]
    scratch: Callable[[], Scratch]


def _objects(view: View, copies: Copies) -> _Objects:
    """Ask the services for every open file description. Raises Refused."""
    try:
        view.look_inside()
        refusals = view.refusals()
        if refusals:
            raise Refused(refusals)
        objects = []
        saved_files: list[bytes] = []
        read_files: list[str] = []
        for number, group in enumerate(view.groups):
            seen = group[0]
            view.at = number
            service = view.service(seen)
            held = view.hold(seen.pid, seen.number)
            record = service.capture(held, seen, view)
            objects.append(ObjectRecord(service.name, _raw(record), owner.capture(held, view)))
            if isinstance(record, regular.OpenFile) and record.holder >= 0 and not record.deleted:
                saved_files.append(record.file.name)
            if isinstance(record, regular.OpenFile) and record.only_read and copies.wanted(record.file):
                read_files.append(record.file.path)
        return _Objects(objects, read_files, _scratch(view, saved_files))
    finally:
        view.close()


def _turn_over(view: View, frozen: Frozen, turns: Turns | None) -> bool:
    """Look into what waits to be accepted, here and (turns) with other hosts; was that anything? Raises Refused before
    anything was changed here, CheckpointFailed."""
    if view.backlogs.noted or view.backlogs.pending:
        memory.look(frozen, None)
        for process in frozen.processes.values():
            ask_one(process).told()
    lines: list[tuple[Turning, Any]] = []
    for seen in view.backlogs.noted.values():
        service = cast(Turning, view.service(seen))
        line = service.plan_turns(seen, view)
        lines.append((service, line))
        turnover.refuse_stopped(frozen.processes[pid] for pid in line.processes)
    far_lines = [(service, line) for service, line in lines if getattr(line, "hosts", ())]
    for service, line in lines:
        if (service, line) not in far_lines:
            service.turn(line, frozen.processes, view, view.backlogs)
    turned = turns is not None and turns.carry_out(far_lines, frozen.processes, view, view.backlogs)
    view.backlogs.known = True
    return turned or bool(lines)


def _scratch(view: View, saved: Iterable[bytes]) -> Callable[[], Scratch]:
    """Files that belong to the job without being open. Raises Refused."""
    try:
        return scratch.capture(view.folders, saved, view)
    except OSError as error:
        thing = f"{error.filename} cannot be read ({error.strerror})"
        raise Refused([Refusal(0, "", thing, "run torpor as its owner or as root, or name another folder")]) from error


def end(frozen: Frozen, manifest: Manifest) -> None:
    """Tell the services that a saved job is about to be ended by us. Some leave the world tidier then: a descriptor
    service may offer `ended(fd, record)`, with our own copy of the descriptor."""
    told: set[int] = set()
    hosts = {process.vpid: process for process in frozen.processes.values()}
    for record in manifest.processes:
        for one in record.descriptors:
            kept = manifest.objects[one.object]
            service = descriptor_services.service_named(kept.service)
            ended = getattr(service, "ended", None)
            if ended is None or service is None or one.object in told or record.pid not in hosts:
                continue
            told.add(one.object)
            ended(hosts[record.pid].fd(one.number), msgspec.msgpack.decode(kept.state, type=service.record))


def _job_services(view: View, processes: Sequence[Process]) -> Services:
    """What the kernel keeps for the whole job."""
    found = [(service.name, service.capture(view, processes)) for service in job_services()]
    return {name: _raw(record) for name, record in found if record is not None}


def _no_copy(process: Process, asked: Asked, reapers: set[int], watched: bool) -> str:
    """Why a process is not to make a copy of itself, '' if it may. Its parent has been looked at before it. reapers:
    those (as the kernel knows them) that take in orphans, and what is below them; grows."""
    if process.vpid == 1 or prctls.is_subreaper(asked.early):
        reapers.add(process.tgid)
        return "it takes in orphans, and a copy would be one"
    if process.stat.ppid in reapers:
        reapers.add(process.tgid)
        return "another process of the job takes in orphans, and a copy would be one"
    if seccomp_filters.of_its_own(process.status, watched):
        return "it has filters for system calls (seccomp)"
    return ""


def _stood(held: memory.Held, frozen: Frozen) -> Iterable[str]:
    """One line for processes that stood still until all of their memory was saved, although it was not to be so."""
    if held.why:
        pid, why = next(iter(held.why.items()))
        others = f" (and {len(held.why) - 1} more)" if len(held.why) > 1 else ""
        yield f"process {pid} ({frozen.processes[pid].comm}){others} was saved while it was stopped: {why}"


def _process(pid: int, view: View, frozen: Frozen, asked: Asked | None, files: MappedFiles) -> ProcessRecord:
    """The record of one process, but for its memory and what its services have to say."""
    known = frozen.processes.get(pid)
    stat = proc.stat(pid) if known is None else known.stat
    fields = proc.status(pid) if known is None else known.status
    parent = view.vpid(stat.ppid)
    record = ProcessRecord(
        pid=view.vpid(pid),
        parent=parent or _parent_number(stat.ppid, fields),
        outside=not parent,
        pgid=proc.inner_pid(fields, "NSpgid"),
        sid=proc.inner_pid(fields, "NSsid"),
        comm=stat.comm,
        has_terminal=stat.tty_nr != 0,
        state="zombie",
        exit_code=stat.exit_code,
    )
    if asked is None:
        return record
    process = frozen.processes[pid]
    stop, reported = stop_of(process)
    return msgspec.structs.replace(
        record,
        state="stopped" if stop else "running",
        exit_code=0,
        stop_signal=stop,
        stop_reported=reported,
        continued=bool(parent and not stop) and ptrace.has_continued(process.leader.tid),
        leader_exited=process.tgid != pid,
        descriptors=_descriptors_of(view, pid),
        exe=files.number(asked.exe),
    )


def stop_of(process: Process) -> tuple[int, bool]:
    """The signal of the group stop that a process is in, 0 for none; and has its parent seen it?"""
    stop = process.leader.stop_signal
    if stop:
        # While a process is stopped, field 52 of stat is what its parent's wait has yet to report (fs/proc/array.c).
        return stop, process.stat.exit_code == 0
    # One that reached it when it stood still already, or while calls ran in it: it would have stopped next.
    held = any(siginfo.number(info) == siginfo.SIGSTOP for task in process.tasks for info in task.held)
    return (siginfo.SIGSTOP if held else 0), False


def _vdso(frozen: Frozen, held: memory.Held) -> bytes:
    """The kernel's own code: the same in every process."""
    for pid, areas in held.areas.items():
        for area in areas:
            if area.name == vdso.CODE:
                return frozen.processes[pid].read(area.start, area.size)
    return b""


def _raw(record: msgspec.Struct) -> msgspec.Raw:
    return msgspec.Raw(msgspec.msgpack.encode(record))


def _descriptors_of(view: View, pid: int) -> tuple[DescriptorRecord, ...]:
    found = []
    for seen in view.of_process.get(pid, ()):
        number = view.object_of(pid, seen.number)
        assert number is not None
        found.append(DescriptorRecord(seen.number, number, bool(seen.flags & descriptors.O_CLOEXEC)))
    return tuple(found)


def _parent_number(ppid: int, fields: Mapping[str, str]) -> int:
    """What getppid() tells a process whose parent is not in the job.

    In a namespace of its own the parent's number there counts; a parent outside of it shows as 0.
    """
    depth = len(fields["NSpid"].split())
    if depth == 1 or not ppid:
        return ppid
    numbers = proc.status(ppid)["NSpid"].split()
    return int(numbers[-1]) if len(numbers) == depth else 0


def _terminal(order: Sequence[int], frozen: Frozen, view: View) -> TerminalRecord | None:
    """The terminal of the job's first process, if it has one."""
    stats = {pid: frozen.processes[pid].stat if pid in frozen.processes else proc.stat(pid) for pid in order}
    for stat in stats.values():
        if stat.tty_nr:
            foreground = 0
            for other, theirs in stats.items():
                if theirs.pgrp == stat.tpgid:
                    foreground = proc.inner_pid(proc.status(other), "NSpgid")
                    break
            return TerminalRecord(foreground, terminal.settings_of(view, terminal.device_of(stat.tty_nr)))
    return None
