"""The memory that a checkpoint holds, without restarting it: which bytes of which chunk are at which address.

A process sees its own pages; and, where it maps an object that the job shares, or a file whose contents are in the
checkpoint, those of the object behind them. What it maps of files that are only read is not in a checkpoint, unless
there is a copy (`--with-files`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import msgspec

from torpor.image.manifest import Manifest, ProcessRecord
from torpor.model.data import Ref, Source
from torpor.named_tuple import NamedTuple
from torpor.posix.contents import Contents, pieces
from torpor.posix.memory.area import FILE, OBJECT, SYSV, AreaRecord
from torpor.posix.memory.pages import unpack
from torpor.posix.paths import FileIdentity
from torpor.posix.sysv_shm import SharedMemoryService, SharedSegments


class Run(NamedTuple):
    """`size` bytes at `address` (of a process, or from the start of an object), `skip` bytes into a chunk."""

    address: int
    size: int
    ref: Ref
    skip: int

    @property
    def end(self) -> int:
        return self.address + self.size

    def read(self, source: Source) -> memoryview:
        """Its bytes, verified. Raises Damaged."""
        return memoryview(source.get(self.ref))[self.skip : self.skip + self.size]


class _Holder(msgspec.Struct):
    """What the records of memory files and of open files have in common (posix/memfd.py, posix/regular.py)."""

    holder: int = -1
    contents: Contents | None = None
    file: FileIdentity | None = None


class SavedMemory:
    """The memory of the processes of one manifest."""

    def __init__(self, manifest: Manifest) -> None:
        self._manifest = manifest
        self._segments: dict[int, list[Run]] | None = None
        self._files: dict[tuple[int, int], Contents] | None = None
        self._objects: dict[tuple[str, int], list[Run]] = {}

    def own(self, process: ProcessRecord) -> list[Run]:
        """The pages of a process' own, by address."""
        found = []
        for window, ref in unpack(process.pages):
            skip = 0
            for address, size in window.ranges():
                found.append(Run(address, size, ref, skip))
                skip += size
        return sorted(found)

    def behind(self, area: AreaRecord) -> list[Run]:
        """What the object or file that an area maps has there, by address in the process; pages of the process' own may
        lie over it."""
        return list(_window(self._object(area), area))

    def object_of(self, area: AreaRecord) -> tuple[str, int] | None:
        """Which object of the checkpoint an area shows, None if it shows none: areas that show the same one are the
        same memory."""
        if area.kind == OBJECT and area.descriptor >= 0:
            return "descriptor", area.descriptor
        return (area.kind, area.what) if area.kind in (OBJECT, SYSV, FILE) and area.what >= 0 else None

    def _object(self, area: AreaRecord) -> list[Run]:
        key = self.object_of(area)
        if key is None:
            return []
        if key not in self._objects:
            self._objects[key] = self._look(*key)
        return self._objects[key]

    def _look(self, kind: str, number: int) -> list[Run]:
        if kind == "descriptor":
            return _of_contents(self._of_object(number))
        if kind == OBJECT:
            return [Run(at, size, ref, 0) for at, size, ref in self._manifest.memory[number].chunks]
        if kind == SYSV:
            return self._of_segment(number)
        file = self._manifest.files[number]
        same = self._of_files().get((file.identity.dev, file.identity.ino))
        return _of_contents(file.contents or same or file.copy)

    def _of_object(self, number: int) -> Contents | None:
        objects = self._manifest.objects
        found = msgspec.msgpack.decode(objects[number].state, type=_Holder)
        if found.contents is None and 0 <= found.holder < len(objects):
            found = msgspec.msgpack.decode(objects[found.holder].state, type=_Holder)
        return found.contents

    def _of_segment(self, number: int) -> list[Run]:
        if self._segments is None:
            raw = self._manifest.services.get(SharedMemoryService.name)
            kept = msgspec.msgpack.decode(raw, type=SharedSegments).segments if raw is not None else ()
            self._segments = {
                each.identity.number: [Run(at, size, ref, 0) for at, size, ref in each.chunks] for each in kept
            }
        return self._segments.get(number, [])

    def _of_files(self) -> dict[tuple[int, int], Contents]:
        """Contents of open files, by device and inode number."""
        if self._files is None:
            self._files = {}
            for record in self._manifest.objects:
                if record.service == "file":
                    found = msgspec.msgpack.decode(record.state, type=_Holder)
                    if found.contents is not None and found.file is not None:
                        self._files[found.file.dev, found.file.ino] = found.contents
        return self._files


def _of_contents(contents: Contents | None) -> list[Run]:
    """Runs from the start of a file."""
    return [
        Run(start, stop - start, ref, 0)
        for extent in (contents.extents if contents is not None else ())
        for (start, stop), ref in zip(pieces(extent.offset, extent.offset + extent.length), extent.refs)
    ]


def _window(runs: Iterable[Run], area: AreaRecord) -> Iterator[Run]:
    """Those parts of an object's runs that an area shows, by address in the process."""
    shift = area.start - area.offset
    for run in runs:
        first, last = max(run.address, area.offset), min(run.end, area.offset + area.size)
        if first < last:
            yield Run(first + shift, last - first, run.ref, run.skip + first - run.address)


def by_area(areas: Iterable[AreaRecord], own: list[Run]) -> Iterator[tuple[AreaRecord, list[Run]]]:
    """The areas of a process, by address, and what each holds of the process' own pages (`SavedMemory.own`). Pure."""
    at = 0
    for area in sorted(areas, key=lambda area: area.start):
        while at < len(own) and own[at].end <= area.start:
            at += 1
        last = at
        while last < len(own) and own[last].address < area.end:
            last += 1
        yield area, [part for part in (_inside(run, area) for run in own[at:last]) if part is not None]


def _inside(run: Run, area: AreaRecord) -> Run | None:
    """What of a run is in an area."""
    first, last = max(run.address, area.start), min(run.end, area.end)
    return Run(first, last - first, run.ref, run.skip + first - run.address) if first < last else None


def read(runs: Iterable[Run], source: Source, address: int, size: int) -> bytes:
    """`size` bytes at an address, from the runs that cover it; zeros where none does."""
    out = bytearray(size)
    for run in runs:
        first, last = max(run.address, address), min(run.end, address + size)
        if first < last:
            out[first - address : last - address] = run.read(source)[first - run.address : last - run.address]
    return bytes(out)
