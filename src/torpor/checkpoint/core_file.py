"""A core file of a saved process, for a debugger (linux/elf_core.py has the format).

Memory comes from the chunks, one after the other, so that this takes little memory however much there is. What is not
there is a hole in the file. What comes unchanged from files is left to the files, as the kernel does, where the
checkpoint has no copy of it.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from typing import TypeVar

import msgspec

from torpor.checkpoint import saved_memory
from torpor.checkpoint.saved_memory import Run, SavedMemory
from torpor.image.manifest import Manifest, ProcessRecord, Services
from torpor.linux import elf_core
from torpor.linux.elf_core import Ids, Segment
from torpor.model.data import Source
from torpor.named_tuple import NamedTuple
from torpor.posix.contents import write_at
from torpor.posix.identity import Identity
from torpor.posix.memory.area import FILE, KERNEL, PROT_READ, AreaRecord
from torpor.posix.memory.vdso import CODE
from torpor.posix.scheduling import Scheduling

GAP = 1 << 30
"""Bytes without contents, in the middle of an area, for which the file gets no hole: filesystems have a limit."""

T = TypeVar("T", bound=msgspec.Struct)


def write(manifest: Manifest, process: ProcessRecord, source: Source, fd: int) -> int:
    """Write a core file of a process that is not a zombie to an empty file; its size. Raises OSError, Damaged."""
    memory = SavedMemory(manifest)
    own = memory.own(process)
    held: list[tuple[Segment, list[Run], bytes]] = []
    for area, over in saved_memory.by_area(process.areas, own):
        held += _segments(area, memory.behind(area), over, manifest.vdso if area.name == CODE else b"")
    plan = elf_core.layout([segment for segment, _, _ in held], _notes(manifest, process, own, source))
    os.ftruncate(fd, plan.size)
    write_at(fd, 0, plan.head)
    for (segment, runs, plain), offset in zip(held, plan.offsets):
        for run in runs:
            write_at(fd, offset + run.address - segment.start, run.read(source))
        if plain:
            write_at(fd, offset, plain)
    return plan.size


def _segments(
    area: AreaRecord, behind: list[Run], over: list[Run], code: bytes
) -> Iterator[tuple[Segment, list[Run], bytes]]:
    """An area as one segment or several, with what is in each, in the order in which it is written. behind, over: what
    the area shows of an object, and pages of the process' own, which lie over that. code: the kernel's.

    Where a file shows through of which there is no copy, only what was saved is held: the rest is for the debugger to
    find. Elsewhere what is not there reads as zeros, and is held as a hole."""
    if code:
        yield Segment(area.start, area.end, area.prot, True), [], code[: area.size]
        return
    zeros = area.kind not in (FILE, KERNEL) or bool(behind)
    runs = sorted([(run, 0) for run in behind] + [(run, 1) for run in over])
    whole = zeros and bool(area.prot & PROT_READ) and area.size <= GAP
    spans = [Span(area.start, area.end, runs)] if whole else list(_spans(runs, GAP if zeros else 0))
    at = area.start
    for span in spans:
        start = at if zeros and span.start - at <= GAP else span.start
        if start > at:
            yield Segment(at, start, area.prot, False), [], b""
        ordered = [run for run, _ in sorted(span.runs, key=lambda layered: layered[1])]
        yield Segment(start, span.end, area.prot, True), ordered, b""
        at = span.end
    if at < area.end:
        yield Segment(at, area.end, area.prot, False), [], b""


class Span(NamedTuple):
    """Addresses that runs cover, and these: each with the layer that it is in."""

    start: int
    end: int
    runs: list[tuple[Run, int]]


def _spans(runs: Iterable[tuple[Run, int]], gap: int) -> Iterator[Span]:
    """Those that are not further apart than `gap` taken together. runs: by address."""
    first, last = -1, -1
    found: list[tuple[Run, int]] = []
    for run, layer in runs:
        if found and run.address > last + gap:
            yield Span(first, last, found)
            found = []
        first = run.address if not found else first
        last = run.end if not found else max(last, run.end)
        found.append((run, layer))
    if found:
        yield Span(first, last, found)


def _notes(manifest: Manifest, process: ProcessRecord, own: list[Run], source: Source) -> bytes:
    """What is said of the process and its threads, in the order in which the kernel says it."""
    ids = Ids(process.pid, process.parent, process.pgid, process.sid)
    first, *others = process.threads
    who = _record(first.services, "identity", Identity)
    order = _record(first.services, "scheduling", Scheduling)
    uid, gid = (who.uids[0], who.gids[0]) if who else (manifest.machine.uid, manifest.machine.gid)
    letter = "T" if process.state == "stopped" else "R"
    nice = order.nice if order else 0
    layout = process.layout
    arguments = saved_memory.read(own, source, layout.arg_start, layout.arg_end - layout.arg_start) if layout else b""
    parts = [
        elf_core.thread(first.tid, ids, first.cpu.regs, first.cpu.mask),
        elf_core.process(ids, uid, gid, letter, nice, os.fsencode(process.comm), arguments),
        elf_core.signal(),
        elf_core.auxv(layout.auxv) if layout else b"",
        elf_core.files(
            (area.start, area.end, area.offset, manifest.files[area.what].identity.name)
            for area in process.areas if area.kind == FILE
        ),
        elf_core.floating(first.cpu.xstate),
    ]  # fmt: skip
    for thread in others:
        parts.append(elf_core.thread(thread.tid, ids, thread.cpu.regs, thread.cpu.mask))
        parts.append(elf_core.floating(thread.cpu.xstate))
    return b"".join(parts)


def _record(services: Services, name: str, kind: type[T]) -> T | None:
    return msgspec.msgpack.decode(services[name], type=kind) if name in services else None
