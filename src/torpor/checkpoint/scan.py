"""Look for secrets in what a checkpoint has saved: where and of which kind, never what.

The rules are data (secret_rules.py). Chunks are read one after the other, so that this takes little memory; a secret
that lies across two that are neighbours in memory is found too.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator

from torpor.checkpoint import saved_memory
from torpor.checkpoint.saved_memory import Run, SavedMemory
from torpor.checkpoint.secret_rules import HARMLESS, LONGEST, RULES, VARIABLE
from torpor.image.manifest import Manifest, ProcessRecord
from torpor.model.data import Ref, Source
from torpor.named_tuple import NamedTuple
from torpor.posix.memory.area import FILE, OBJECT, SYSV, AreaRecord

ELSEWHERE = "files, pipes, queues"


class Finding(NamedTuple):
    """pid, comm: of the process, as it sees itself; 0 and '' for what is not of one. region: what of its memory, and
    where that begins. kind: of secret; times: how many of it."""

    pid: int
    comm: str
    region: str
    kind: str
    times: int


def scan(
    manifest: Manifest, source: Source, refs: Iterable[Ref], progress: Callable[[int, int], None] | None = None
) -> list[Finding]:
    """All there is. refs: every chunk of the checkpoint. progress: told how many chunks of how many were looked at.
    Raises Damaged."""
    memory = SavedMemory(manifest)
    every = set(refs)
    seen: set[Ref] = set()
    found: list[Finding] = []
    objects: set[tuple[str, int]] = set()

    def look(pid: int, comm: str, region: str, runs: list[Run]) -> None:
        seen.update(run.ref for run in runs)
        found.extend(Finding(pid, comm, region, kind, count) for kind, count in in_runs(runs, source))
        if progress is not None:
            progress(len(seen), len(every))

    for process in manifest.processes:
        own = memory.own(process)
        found += [
            Finding(process.pid, process.comm, "environment", kind, 1) for kind in _variables(process, own, source)
        ]
        for area, parts in saved_memory.by_area(process.areas, own):
            region = _name(manifest, area)
            # What several processes share, or show in several places, is looked at once.
            key = memory.object_of(area)
            if key is not None and key not in objects:
                objects.add(key)
                look(process.pid, process.comm, region, memory.behind(area))
            look(process.pid, process.comm, region, parts)
    for ref in sorted(every - seen):
        data = source.get(ref)
        if data:
            look(0, "", ELSEWHERE, [Run(0, len(data), ref, 0)])
    return _together(found)


def in_runs(runs: Iterable[Run], source: Source) -> list[tuple[str, int]]:
    """Kinds of secrets in runs of memory, by address, and how many of each."""
    counts: Counter[str] = Counter()
    for data, last in _joined(runs, source):
        # What begins near the end may go on in the next piece, which begins with it.
        limit = len(data) if last else len(data) - LONGEST
        for rule in RULES:
            if any(mark in data for mark in rule.marks):
                counts[rule.kind] += sum(match.start() < limit for match in rule.pattern.finditer(data))
    return [(kind, count) for kind, count in counts.items() if count]


def _joined(runs: Iterable[Run], source: Source) -> Iterator[tuple[bytes, bool]]:
    """The bytes of runs; where two follow one another in memory, the second with the end of the first before it. And:
    is it the last before a gap?"""
    before: bytes | None = None
    end = -1
    for run in runs:
        if before is not None and run.address != end:
            yield before, True
            before = None
        data = bytes(run.read(source))
        if before is not None:
            yield before, False
            data = before[-LONGEST:] + data
        before, end = data, run.end
    if before is not None:
        yield before, True


def _variables(process: ProcessRecord, own: list[Run], source: Source) -> list[str]:
    """Variables of the environment that a process was started with whose names say that they are secrets."""
    layout = process.layout
    if layout is None or layout.env_end <= layout.env_start:
        return []
    text = saved_memory.read(own, source, layout.env_start, layout.env_end - layout.env_start)
    found = []
    for line in text.split(b"\0"):
        name, equals, value = line.partition(b"=")
        if equals and value.strip(b"\0") and VARIABLE.search(name) and name not in HARMLESS:
            found.append(f"variable {name.decode(errors='replace')}")
    return found


def _name(manifest: Manifest, area: AreaRecord) -> str:
    """What an area is called in the report."""
    what = area.name or "anonymous memory"
    if area.kind == FILE:
        what = manifest.files[area.what].identity.path
    elif area.kind == SYSV:
        what = f"System V segment {area.what}"
    elif area.kind == OBJECT:
        what = "shared memory" if area.shared else "a private view of shared memory"
    return f"{what} at {area.start:#x}"


def _together(found: list[Finding]) -> list[Finding]:
    """The same with equal ones counted together, in the order in which they were found."""
    counts: Counter[tuple[int, str, str, str]] = Counter()
    for each in found:
        counts[each[:4]] += each.times
    return [Finding(*key, count) for key, count in counts.items()]
