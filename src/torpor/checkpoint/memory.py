"""The memory of a frozen job: which process maps what, objects shared between processes, contents to the sink."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from typing import NamedTuple

import msgspec

from torpor.linux.proc import Area
from torpor.model.data import Sink
from torpor.model.errors import CheckpointFailed, Refusal, Refused
from torpor.posix.memory import capture, objects
from torpor.posix.memory.area import FILE, OBJECT, AreaRecord
from torpor.posix.memory.objects import MemoryObjectRecord
from torpor.posix.memory.pages import PagesRecord, Window, pack
from torpor.posix.service import Job
from torpor.tracee.freeze import Frozen
from torpor.tracee.process import Process

WORKERS = 2

Progress = Callable[[str, int, int], None]
Look = dict[int, list[capture.Seen]]
"""By host pid: what `look` found."""


class Saved(NamedTuple):
    """By host pid: the areas and contents of each process; and the memory objects of the job."""

    areas: dict[int, tuple[AreaRecord, ...]]
    pages: dict[int, PagesRecord]
    guards: dict[int, tuple[tuple[int, int], ...]]
    objects: tuple[MemoryObjectRecord, ...]


def look(frozen: Frozen) -> Look:
    """The areas of all processes. To be called before anything is run in them, which needs memory of its own.

    Raises Refused.
    """
    return {pid: capture.look(process) for pid, process in frozen.processes.items()}


def save(
    frozen: Frozen,
    seen: Look,
    job: Job,
    file_number: Callable[[str], int],
    sink: Sink,
    progress: Progress | None,
) -> Saved:
    """Save all memory. Raises Refused (before anything was sent to the sink) or CheckpointFailed."""
    areas: dict[int, tuple[AreaRecord, ...]] = {}
    shared: dict[tuple[int, int], list[tuple[Process, Area, AreaRecord]]] = {}
    for pid, found in seen.items():
        process = frozen.processes[pid]
        records = []
        for area, record, _ in found:
            if record.kind == FILE:
                record = msgspec.structs.replace(record, what=_file(process, area, file_number))
            elif record.kind == OBJECT:
                shared.setdefault((area.dev, area.ino), []).append((process, area, record))
            records.append(record)
        areas[pid] = tuple(records)
    object_records = _objects(shared, areas, job, sink)
    for process in frozen.processes.values():
        # Nothing more is asked: what is saved is the memory as it was found.
        process.unpark()
    work = [
        (pid, window, plainly) for pid, found in seen.items() for window, plainly in capture.own_windows(pid, found)
    ]
    total = sum(window.size for _, window, _ in work)
    refs = _pump(work, sink, (lambda done: progress("memory", done, total)) if progress else None)
    by_pid: dict[int, list[tuple[Window, int]]] = {pid: [] for pid in seen}
    for (pid, window, _), ref in zip(work, refs):
        by_pid[pid].append((window, ref))
    guards = {pid: capture.guards(pid, found) for pid, found in seen.items()}
    return Saved(areas, {pid: pack(found) for pid, found in by_pid.items()}, guards, object_records)


def _file(process: Process, area: Area, file_number: Callable[[str], int]) -> int:
    try:
        return file_number(area.path)
    except OSError as error:
        raise Refused(
            [
                Refusal(
                    process.pid, process.comm, f"maps {area.path}, which cannot be looked at ({error.strerror})",
                    "make it reachable under that name",
                )
            ]
        ) from error  # fmt: skip


def _objects(
    shared: dict[tuple[int, int], list[tuple[Process, Area, AreaRecord]]],
    areas: dict[int, tuple[AreaRecord, ...]],
    job: Job,
    sink: Sink,
) -> tuple[MemoryObjectRecord, ...]:
    """Number the memory objects, write the numbers into the areas, save the contents.

    An object that is also open somewhere in the job is saved by the service of that descriptor.
    """
    open_files: dict[tuple[int, int], int | None] = {}
    for seen in sorted(job.descriptors, key=lambda seen: seen.access != 2):
        if not seen.flags & os.O_PATH:
            open_files.setdefault((seen.dev, seen.ino), job.object_of(seen.pid, seen.number))
    records: list[MemoryObjectRecord] = []
    for key, mappings in shared.items():
        holder = open_files.get(key)
        if holder is not None:
            changed = {"descriptor": holder}
        else:
            kind = objects.kind_of(mappings[0][1].path)
            size, chunks = capture.object_chunks(
                [(process, record) for process, _, record in mappings], sink, capture.shown_pages
            )
            changed = {"what": len(records)}
            records.append(MemoryObjectRecord(kind, objects.name_of(mappings[0][1].path), size, tuple(chunks)))
        for process, _, record in mappings:
            areas[process.pid] = tuple(
                msgspec.structs.replace(r, **changed) if r is record else r for r in areas[process.pid]
            )
    return tuple(records)


def _pump(work: list[tuple[int, Window, bool]], sink: Sink, progress: Callable[[int], None] | None) -> list[int]:
    """Read every window and put it into the sink, with a few threads; the chunks in the order of the work."""
    refs = [0] * len(work)
    lock = threading.Lock()
    queue: Iterator[int] = iter(range(len(work)))
    done = 0
    failures: list[BaseException] = []

    def drain() -> None:
        nonlocal done
        reader = capture.Reader()
        try:
            while not failures:
                with lock:
                    batch = [i for i in (next(queue, None) for _ in range(16)) if i is not None]
                if not batch:
                    return
                for i in batch:
                    pid, window, plainly = work[i]
                    refs[i] = sink.put(reader.read(pid, window, plainly))
                if progress is not None:
                    with lock:
                        done += sum(work[i][1].size for i in batch)
                        progress(done)
        except BaseException as error:
            failures.append(error)

    helpers = [threading.Thread(target=drain) for _ in range(WORKERS - 1 if len(work) > 64 else 0)]
    for helper in helpers:
        helper.start()
    drain()
    for helper in helpers:
        helper.join()
    if failures:
        if isinstance(failures[0], OSError):
            raise CheckpointFailed(f"memory could not be read: {failures[0]}") from failures[0]
        raise failures[0]
    return refs
