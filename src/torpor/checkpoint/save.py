"""The pipeline that saves a job: find, survey, freeze, capture, store, release, commit."""

from __future__ import annotations

import contextlib
import os
import struct
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

import msgspec

from torpor import __version__
from torpor.checkpoint import descriptors, machine, memory
from torpor.checkpoint.survey import Survey
from torpor.checkpoint.tree import Tree
from torpor.image import codec
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
from torpor.model.data import Buffer, Ref, Sink
from torpor.model.errors import CheckpointFailed, Refused
from torpor.posix import cpu, descriptor_services, paths, terminal
from torpor.posix.memory import layout
from torpor.posix.memory.area import FILE, PROT_WRITE, AreaRecord
from torpor.posix.process_services import PROCESS_SERVICES, THREAD_SERVICES
from torpor.posix.service import Descriptor, Job, Stream
from torpor.tracee.call import CallFailed, Out, call
from torpor.tracee.freeze import Frozen, freeze
from torpor.tracee.process import LivingProcess, Process
from torpor.tracee.task import Gone, Task

if TYPE_CHECKING:
    from torpor.store.save import Save
    from torpor.store.store import Store

Progress = Callable[[str, int, int], None]


class SaveRequest(msgspec.Struct, kw_only=True):
    """What to save and where.

    name: the job's name. files: 'auto', 'keep', 'save' or 'save:PATH,...'. streams: what the job inherited, with our own
    descriptors for it. progress: called with (phase, bytes done, bytes in all). guard: held from the freeze to the release;
    whoever waits for the job's processes must not do so meanwhile. stop: end the job once it is saved.
    """

    name: str
    tree: Tree
    store: Store
    stop: bool = False
    files: str = "auto"
    streams: Sequence[Stream] = ()
    parent_is_reaper: bool = False
    progress: Progress | None = None
    guard: AbstractContextManager[object] = msgspec.field(default_factory=contextlib.nullcontext)


class SaveReport(msgspec.Struct, frozen=True, kw_only=True):
    """What was saved: sizes in bytes, times in seconds."""

    job: str
    number: int
    bytes_total: int
    bytes_new: int
    seconds: float
    pause_seconds: float
    location: str
    processes: int
    threads: int
    notes: tuple[str, ...] = ()


def save(request: SaveRequest) -> SaveReport:
    """Save a job. To be called in one thread from start to end: a tracee belongs to the thread that attached to it.

    Raises Refused, CheckpointFailed; the job then runs on, and earlier checkpoints are whole.
    """
    began = time.perf_counter()
    pids = request.tree.find()
    if not pids:
        raise CheckpointFailed("the job has no processes any more")
    refusals = Survey(pids, request.streams, request.files).refusals()
    if refusals:
        raise Refused(refusals)
    saving = request.store.begin(request.name)
    try:
        with request.guard:
            paused = time.perf_counter()
            with freeze(request.tree.find) as frozen:
                try:
                    manifest = _capture(request, frozen, saving)
                except (CallFailed, Gone, ProcessLookupError, FileNotFoundError) as error:
                    raise CheckpointFailed(f"the job changed while it was being saved ({error}); it runs on") from error
                if request.stop:
                    info = _commit(saving, manifest)
                    frozen.kill()
            resumed = time.perf_counter()
        if not request.stop:
            info = _commit(saving, manifest)
    except BaseException:
        saving.abort()
        raise
    return SaveReport(
        job=info.job,
        number=info.number,
        bytes_total=info.bytes_total,
        bytes_new=info.bytes_new,
        seconds=time.perf_counter() - began,
        pause_seconds=resumed - paused,
        location=request.store.location,
        processes=len(manifest.processes),
        threads=sum(len(process.threads) for process in manifest.processes),
    )


def _commit(saving: Save, manifest: Manifest):  # type: ignore[no-untyped-def]
    label: dict[str, str | int | float] = {
        "created": manifest.created,
        "host": manifest.machine.host,
        "processes": len(manifest.processes),
        "threads": sum(len(process.threads) for process in manifest.processes),
        "command": manifest.processes[0].comm,
    }
    return saving.commit(codec.encode(manifest), label)


class _JobView(Survey):
    """The `Job` that services are shown while a frozen job is captured."""

    def __init__(self, request: SaveRequest, frozen: Frozen, sink: Sink) -> None:
        super().__init__(list(frozen.processes), request.streams, request.files)
        self.sink: Sink = sink  # type: ignore[assignment]
        self._frozen = frozen
        self.groups = descriptors.group(self.descriptors)
        self.groups = [part for whole in self.groups for part in self._by_role(whole)]
        self._object = {(seen.pid, seen.number): number for number, group in enumerate(self.groups) for seen in group}

    def _by_role(self, whole: list[Descriptor]) -> list[list[Descriptor]]:
        """Standard streams that share one open file description may be given different files at the restart."""
        parts: dict[int, list[Descriptor]] = {}
        for seen in whole:
            parts.setdefault(descriptor_services.role(seen, self), []).append(seen)
        return list(parts.values())

    def vpid(self, pid: int) -> int:
        process = self._frozen.processes.get(pid)
        if process is not None:
            return process.vpid
        return proc.inner_pid(proc.status(pid)) if pid in self._frozen.zombies else 0

    def object_of(self, pid: int, number: int) -> int | None:
        return self._object.get((pid, number))

    def hold(self, pid: int, number: int) -> int:
        return self._frozen.processes[pid].fd(number)


class _Files:
    """Files that are mapped or run, each listed once in the manifest."""

    def __init__(self) -> None:
        self.found: list[paths.FileIdentity] = []
        self._number: dict[str, int] = {}

    def records(self, view: Job, areas: Iterable[AreaRecord]) -> tuple[FileRecord, ...]:
        """For the manifest; a file counts as written if the job could write to it in any way."""
        open_for_writing = {(seen.dev, seen.ino) for seen in view.descriptors if seen.access}
        mapped = {area.what for area in areas if area.kind == FILE and area.shared and area.prot & PROT_WRITE}
        return tuple(
            FileRecord(file, (file.dev, file.ino) in open_for_writing or number in mapped)
            for number, file in enumerate(self.found)
        )

    def number(self, path: str) -> int:
        """The place of a path in Manifest.files. Raises OSError."""
        if path not in self._number:
            self._number[path] = len(self.found)
            self.found.append(paths.identity(path))
        return self._number[path]


def _capture(request: SaveRequest, frozen: Frozen, sink: Sink) -> Manifest:
    view = _JobView(request, frozen, sink)
    refusals = view.refusals()
    if refusals:
        raise Refused(refusals)
    clocks = _clocks(next(iter(frozen.processes.values())))
    files = _Files()
    objects = []
    for group in view.groups:
        seen = group[0]
        service = descriptor_services.service_for(seen, view)
        record = service.capture(view.hold(seen.pid, seen.number), seen, view)
        objects.append(ObjectRecord(service.name, _raw(record)))
    by_pid = {pid: _descriptors_of(view, pid) for pid in frozen.processes}
    asked = {pid: _ask(process) for pid, process in frozen.processes.items()}
    saved = memory.save(frozen, view, files.number, sink, request.progress)
    order = [pid for pid in request.tree.find() if pid in frozen.processes or pid in frozen.zombies]
    records = []
    for pid in order:
        common = _kinship(pid, request.tree, view)
        if pid in frozen.zombies:
            records.append(ProcessRecord(**common, state="zombie", exit_code=proc.stat(pid).exit_code))
            continue
        process = frozen.processes[pid]
        kept, threads, the_layout, exe = asked[pid]
        stop = process.leader.stop_signal or _stopping(process)
        records.append(
            ProcessRecord(
                **common,
                state="stopped" if stop else "running",
                stop_signal=stop,
                leader_exited=process.leader.tid != pid,
                threads=threads,
                descriptors=by_pid[pid],
                areas=saved.areas[pid],
                pages=saved.pages[pid],
                layout=the_layout,
                exe=files.number(exe),
                services=kept,
            )
        )
    here = machine.look(max((len(t.cpu.xstate) for r in records for t in r.threads), default=0))
    root = view.vpid(request.tree.root)
    return Manifest(
        job=request.name,
        created=time.time(),
        torpor=__version__,
        machine=here,
        clocks=clocks,
        root=root or records[0].pid,
        parent_is_reaper=request.parent_is_reaper,
        processes=tuple(records),
        objects=tuple(objects),
        memory=saved.objects,
        files=files.records(view, (area for found in saved.areas.values() for area in found)),
        terminal=_terminal(order, view),
    )


def _stopping(process: Process) -> int:
    """SIGSTOP, if one reached the process while calls ran in it; 0 otherwise."""
    return 19 if any(info[:4] == b"\x13\0\0\0" for task in process.tasks for info in task.held) else 0


def _clocks(process: Process) -> ClockRecord:
    """The clocks as the job sees them, which may be in a time namespace of its own."""
    answers = process.run([call(NR.clock_gettime, clock, Out(16)) for clock in (0, 1, machine.CLOCK_BOOTTIME)])
    return ClockRecord(*(s * 10**9 + ns for s, ns in (struct.unpack("<qq", answer.outs[0]) for answer in answers)))


def _raw(record: msgspec.Struct) -> msgspec.Raw:
    return msgspec.Raw(msgspec.msgpack.encode(record))


def _descriptors_of(view: _JobView, pid: int) -> tuple[DescriptorRecord, ...]:
    found = []
    for seen in view.descriptors:
        if seen.pid == pid:
            number = view.object_of(pid, seen.number)
            assert number is not None
            found.append(DescriptorRecord(seen.number, number, bool(seen.flags & descriptors.O_CLOEXEC)))
    return tuple(found)


def _ask(process: LivingProcess) -> tuple[Services, tuple[ThreadRecord, ...], layout.LayoutRecord, str]:
    """Everything that the services keep for a process and its threads: one batch per task."""
    plans = [(service, list(service.ask(process))) for service in PROCESS_SERVICES]
    own = layout.questions()
    calls = [question for _, asked in plans for question in asked] + own
    kept: Services = {}
    threads = []
    for i, task in enumerate(process.tasks):
        asked_here = [(service, list(service.ask(task))) for service in THREAD_SERVICES]
        thread_calls = [question for _, asked in asked_here for question in asked]
        if i == 0:
            answers = task.run(calls + thread_calls)
            at = 0
            for process_service, asked in plans:
                record = process_service.capture(process, answers[at : at + len(asked)])
                at += len(asked)
                if record is not None:
                    kept[process_service.name] = _raw(record)
            brk = answers[at].value
            answers = answers[at + len(own) :]
        else:
            answers = task.run(thread_calls)
        threads.append(_thread(process, task, asked_here, answers))
    exe = os.readlink(f"/proc/{process.pid}/exe")
    return kept, tuple(threads), layout.capture(process.pid, process.leader.tid, brk, exe), exe


def _thread(
    process: Process, task: Task, asked_here: Iterable[tuple[object, list[object]]], answers: list[object]
) -> ThreadRecord:
    at = 0
    kept: Services = {}
    for service, asked in asked_here:
        record = service.capture(task, answers[at : at + len(asked)])  # type: ignore[attr-defined]
        at += len(asked)
        if record is not None:
            kept[service.name] = _raw(record)  # type: ignore[attr-defined]
    return ThreadRecord(task.vtid, cpu.capture(process, task), kept)


def _kinship(pid: int, tree: Tree, view: _JobView) -> dict[str, object]:
    """Pids, group and session of a process, as the job sees them; its parent."""
    stat = proc.stat(pid)
    fields = proc.status(pid)
    parent = view.vpid(stat.ppid)
    return {
        "pid": proc.inner_pid(fields),
        "parent": parent or parent_number(pid, stat.ppid, fields),
        "outside": not parent,
        "pgid": proc.inner_pid(fields, "NSpgid"),
        "sid": proc.inner_pid(fields, "NSsid"),
        "comm": stat.comm,
        "has_terminal": stat.tty_nr != 0,
    }


def parent_number(pid: int, ppid: int, fields: dict[str, str]) -> int:
    """What getppid() tells a process whose parent is not in the job.

    In a namespace of its own the parent's number there counts; a parent outside of it shows as 0.
    """
    depth = len(fields["NSpid"].split())
    if depth == 1 or not ppid:
        return ppid
    numbers = proc.status(ppid)["NSpid"].split()
    return int(numbers[-1]) if len(numbers) == depth else 0


def _terminal(order: Sequence[int], view: _JobView) -> TerminalRecord | None:
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


__all__ = ["Buffer", "Progress", "Ref", "SaveReport", "SaveRequest", "save"]
