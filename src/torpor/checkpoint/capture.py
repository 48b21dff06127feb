"""From a frozen job to its manifest: every service is asked, nothing is changed."""

from __future__ import annotations

import os
import struct
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import msgspec

from torpor import __version__
from torpor.checkpoint import descriptors, machine, memory
from torpor.checkpoint.copies import Copies
from torpor.checkpoint.together import SavedTogether
from torpor.checkpoint.tree import Tree
from torpor.checkpoint.turns import Turns
from torpor.checkpoint.view import Far, View
from torpor.image.manifest import (
    ClockRecord,
    DescriptorRecord,
    FileRecord,
    Manifest,
    ObjectRecord,
    ProcessRecord,
    Services,
    TerminalRecord,
    ThreadRecord,
)
from torpor.linux import proc
from torpor.linux.arch.x86_64 import NR
from torpor.model.data import Sink
from torpor.model.errors import CheckpointFailed, Refusal, Refused
from torpor.model.ledger import Ledger
from torpor.model.terms import Terms
from torpor.posix import (
    cpu,
    descriptor_services,
    inet_far,
    owner,
    paths,
    prctls,
    regular,
    scratch,
    seccomp_filters,
    terminal,
    turnover,
)
from torpor.posix.backlog import Backlogs, Turning
from torpor.posix.contents import store_file
from torpor.posix.job_services import job_services
from torpor.posix.memory import layout, vdso
from torpor.posix.memory.area import FILE, PROT_WRITE, AreaRecord
from torpor.posix.memory.forget import Forget
from torpor.posix.process_services import PROCESS_SERVICES, THREAD_SERVICES
from torpor.posix.scratch import Scratch
from torpor.posix.service import Job, Stream, ThreadService
from torpor.tracee.call import Answer, Call, Out, call
from torpor.tracee.freeze import Frozen
from torpor.tracee.process import LivingProcess, Process
from torpor.tracee.snapshot import Snapshot
from torpor.tracee.task import Task

if TYPE_CHECKING:
    from torpor.checkpoint.shortage import Shortage
    from torpor.checkpoint.tracking import Unchanged


class _Files:
    """Files that are mapped or run, or of which there are to be copies, each listed once in the manifest."""

    def __init__(self, copies: Copies) -> None:
        self._copies = copies
        self.found: list[paths.FileIdentity] = []
        self._number: dict[str, int] = {}

    def records(self, view: Job, areas: Iterable[AreaRecord]) -> tuple[FileRecord, ...]:
        """For the manifest; a file counts as written if the job could write to it in any way."""
        open_for_writing = {(seen.dev, seen.ino) for seen in view.descriptors if seen.access}
        shared = [area for area in areas if area.kind == FILE and area.shared]
        mapped = {area.what for area in shared if area.prot & PROT_WRITE}
        records = tuple(
            self._record(view, file, (file.dev, file.ino) in open_for_writing or number in mapped)
            for number, file in enumerate(self.found)
        )
        may_write = {area.what for area in shared if area.may_write}
        for number, record in enumerate(records):
            if not (record.written or record.restored or number in may_write):
                self._copies.add(number, record.identity)
        return records

    def _record(self, view: Job, file: paths.FileIdentity, written: bool) -> FileRecord:
        if view.in_saved_folder(file.path):
            return FileRecord(file, written, restored=True)
        in_memory = view.files != "keep" and regular.is_shared_memory(os.getpid(), file.dev, file.ino, view)
        if not in_memory and not (written and view.save_contents(file.path)):
            return FileRecord(file, written)
        same = [seen for seen in view.descriptors if (seen.dev, seen.ino) == (file.dev, file.ino)]
        if any(not seen.flags & os.O_PATH and (in_memory or seen.access) for seen in same):
            return FileRecord(file, written, restored=True)
        try:
            fd = os.open(file.path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            thing = f"the mapped file {file.path} cannot be read ({error.strerror})"
            raise Refused([Refusal(0, "", thing, "run torpor as its owner or as root")]) from error
        try:
            return FileRecord(file, written, store_file(fd, view.sink), restored=True)
        finally:
            os.close(fd)

    def number(self, path: str) -> int:
        """The place of a path in Manifest.files. Raises OSError."""
        if path not in self._number:
            self._number[path] = len(self.found)
            self.found.append(paths.identity(path))
        return self._number[path]


class Captured(NamedTuple):
    """A manifest but for parts that can wait until the job goes on; by number of the object, and the memory of
    processes (by host pid, in the order of the manifest). notes: for the user."""

    manifest: Manifest
    parts: dict[int, Callable[[], msgspec.Struct]]
    scratch: Callable[[], Scratch]
    files: Callable[[tuple[FileRecord, ...]], tuple[FileRecord, ...]]
    memory: memory.Held
    pids: tuple[int, ...]
    notes: tuple[str, ...]

    def told(self, ledger: Ledger | None, terms: Terms | None) -> Captured:
        """With what the job has asked for outside, and on what terms."""
        return self._replace(manifest=msgspec.structs.replace(self.manifest, ledger=ledger, terms=terms))

    def complete(self, shortage: Shortage | None) -> Manifest:
        """The whole manifest. shortage: see memory.Held.finish. Raises CheckpointFailed (memory.Unlike), OSError."""
        saved = self.memory.finish(shortage)
        processes = [
            msgspec.structs.replace(record, areas=saved.areas[pid], pages=saved.pages[pid], guards=saved.guards[pid])
            if pid in saved.areas
            else record
            for pid, record in zip(self.pids, self.manifest.processes)
        ]
        objects = list(self.manifest.objects)
        for number, make in self.parts.items():
            objects[number] = ObjectRecord(objects[number].service, _raw(make()))
        files = self.files(self.manifest.files)
        return msgspec.structs.replace(
            self.manifest,
            processes=tuple(processes),
            objects=tuple(objects),
            scratch=self.scratch(),
            files=files,
            forgotten=self._forgotten(),
        )

    def left_out(self) -> tuple[str, ...]:
        """What there is to be said about what was left out by choice, once the manifest is complete."""
        return (*(f"left out: {line}" for line in self._forgotten()), *self.memory.forget.remarks())

    def _forgotten(self) -> tuple[str, ...]:
        return self.memory.forget.told(zip(self.pids, (record.pid for record in self.manifest.processes)))


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
    flags: memory.Flags | None = None,
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
    order = [pid for pid in tree.find() if pid in frozen.processes or pid in frozen.zombies]
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
    clocks = _clocks(frozen.processes[view.pids[0]])
    files = _Files(copies)
    for path in read_files:
        files.number(path)
    asked = {pid: _ask(process) for pid, process in frozen.processes.items()}
    services = _job_services(view, [frozen.processes[pid] for pid in order if pid in frozen.processes])
    alone = {} if snapshot is None else _not_copied(frozen, order, asked, tree.watched)
    held = memory.save(
        frozen, looks, view, files.number, sink, progress, snapshot, alone, forget or Forget(()), look_at_writes
    )
    records = [_process(pid, tree, view, frozen, asked.get(pid), files) for pid in order]
    manifest = Manifest(
        job=job,
        created=time.time(),
        torpor=__version__,
        machine=machine.look(max((len(t.cpu.xstate) for r in records for t in r.threads), default=0)),
        clocks=clocks,
        root=view.vpid(proc.face(tree.root)) or records[0].pid,
        parent_is_reaper=parent_is_reaper,
        processes=tuple(records),
        objects=tuple(objects),
        memory=held.objects,
        files=files.records(view, [area for found in held.areas.values() for area in found]),
        terminal=_terminal(order, view),
        services=services,
        vdso=_vdso(frozen, held),
    )
    return Captured(
        manifest,
        view.parts,
        finish_scratch,
        lambda records: copies.read(records, sink),
        held,
        tuple(order),
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
            service = descriptor_services.service_for(seen, view)
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
            _ask(process)
    lines: list[tuple[Turning, Any]] = []
    for seen in view.backlogs.noted.values():
        service = cast(Turning, descriptor_services.service_for(seen, view))
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


class _Asked(NamedTuple):
    """What the tasks of a process have answered."""

    services: Services
    threads: tuple[ThreadRecord, ...]
    layout: layout.LayoutRecord


def _not_copied(frozen: Frozen, order: Sequence[int], asked: Mapping[int, _Asked], watched: bool) -> dict[int, str]:
    """Which processes (host pids) are not to make copies of themselves, and why."""
    found: dict[int, str] = {}
    reapers: set[int] = set()
    for pid in order:
        process = frozen.processes.get(pid)
        if process is None:
            continue
        if process.vpid == 1 or prctls.is_subreaper(asked[pid].services):
            found[pid] = "it takes in orphans, and a copy would be one"
            reapers.add(process.tgid)
        elif proc.stat(pid).ppid in reapers:
            found[pid] = "another process of the job takes in orphans, and a copy would be one"
            reapers.add(process.tgid)
        elif seccomp_filters.of_its_own(process.status, watched):
            found[pid] = "it has filters for system calls (seccomp)"
    return found


def _stood(held: memory.Held, frozen: Frozen) -> Iterable[str]:
    """One line for processes that stood still until all of their memory was saved, although it was not to be so."""
    if held.why:
        pid, why = next(iter(held.why.items()))
        others = f" (and {len(held.why) - 1} more)" if len(held.why) > 1 else ""
        yield f"process {pid} ({frozen.processes[pid].comm}){others} was saved while it was stopped: {why}"


def _process(pid: int, tree: Tree, view: View, frozen: Frozen, asked: _Asked | None, files: _Files) -> ProcessRecord:
    """The record of one process, but for its memory."""
    stat = proc.stat(pid)
    fields = proc.status(pid)
    parent = view.vpid(proc.face(stat.ppid))
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
    stop = process.leader.stop_signal or _stopping(process)
    return msgspec.structs.replace(
        record,
        state="stopped" if stop else "running",
        exit_code=0,
        stop_signal=stop,
        # While a process is stopped, field 52 of stat is what its parent's wait has yet to report (fs/proc/array.c).
        stop_reported=bool(stop) and stat.exit_code == 0,
        leader_exited=process.tgid != pid,
        threads=asked.threads,
        descriptors=_descriptors_of(view, pid),
        layout=asked.layout,
        exe=files.number(asked.layout.exe),
        services=asked.services,
    )


def _stopping(process: Process) -> int:
    """SIGSTOP, if one reached the process while calls ran in it; 0 otherwise."""
    return 19 if any(info[:4] == b"\x13\0\0\0" for task in process.tasks for info in task.held) else 0


def _clocks(process: Process) -> ClockRecord:
    """The clocks as the job sees them, which may be in a time namespace of its own."""
    answers = process.run([call(NR.clock_gettime, clock, Out(16)) for clock in (0, 1, machine.CLOCK_BOOTTIME)])
    return ClockRecord(*(s * 10**9 + ns for s, ns in (struct.unpack("<qq", answer.outs[0]) for answer in answers)))


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
    for seen in view.descriptors:
        if seen.pid == pid:
            number = view.object_of(pid, seen.number)
            assert number is not None
            found.append(DescriptorRecord(seen.number, number, bool(seen.flags & descriptors.O_CLOEXEC)))
    return tuple(found)


def _ask(process: LivingProcess) -> _Asked:
    """Everything that the services keep for a process and its threads: one batch per task."""
    plans = [(service, list(service.ask(process))) for service in PROCESS_SERVICES]
    calls = [question for _, asked in plans for question in asked]
    own = layout.questions()
    kept: Services = {}
    threads = []
    brk = 0
    for i, task in enumerate(process.tasks):
        thread_plans = [(service, list(service.ask(task))) for service in THREAD_SERVICES]
        thread_calls = [question for _, asked in thread_plans for question in asked]
        if i:
            answers = task.run(thread_calls)
        else:
            answers = task.run([*calls, *own, *thread_calls])
            at = 0
            for service, asked in plans:
                record = service.capture(process, answers[at : at + len(asked)])
                at += len(asked)
                if record is not None:
                    kept[service.name] = _raw(record)
            brk = answers[at].value
            answers = answers[at + len(own) :]
        threads.append(_thread(process, task, thread_plans, answers))
    exe = os.readlink(f"/proc/{process.pid}/exe")
    return _Asked(kept, tuple(threads), layout.capture(process.pid, process.leader.tid, brk, exe))


def _thread(
    process: Process, task: Task, plans: Sequence[tuple[ThreadService, list[Call]]], answers: Sequence[Answer]
) -> ThreadRecord:
    at = 0
    kept: Services = {}
    for service, asked in plans:
        record = service.capture(task, answers[at : at + len(asked)])
        at += len(asked)
        if record is not None:
            kept[service.name] = _raw(record)
    return ThreadRecord(task.vtid, cpu.capture(process, task), kept)


def _parent_number(ppid: int, fields: dict[str, str]) -> int:
    """What getppid() tells a process whose parent is not in the job.

    In a namespace of its own the parent's number there counts; a parent outside of it shows as 0.
    """
    depth = len(fields["NSpid"].split())
    if depth == 1 or not ppid:
        return ppid
    numbers = proc.status(ppid)["NSpid"].split()
    return int(numbers[-1]) if len(numbers) == depth else 0


def _terminal(order: Sequence[int], view: View) -> TerminalRecord | None:
    """The terminal of the job's first process, if it has one."""
    for pid in order:
        stat = proc.stat(pid)
        if stat.tty_nr:
            foreground = 0
            for other in order:
                if proc.stat(other).pgrp == stat.tpgid:
                    foreground = proc.inner_pid(proc.status(other), "NSpgid")
                    break
            return TerminalRecord(foreground, terminal.settings_of(view, terminal.device_of(stat.tty_nr)))
    return None
