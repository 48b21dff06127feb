"""What is restarted when a restart is only rehearsed: the same job, cut loose from everything that is outside of it.

A rehearsal (launch/drill.py) is a restart that goes as far as the release, with the policy to keep files, in namespaces
of its own. Those hold back pids, ports, queues, segments and terminals. Files are not in a namespace: what a restart
does to files is taken out of the manifest here, or led to *stand-ins* in a folder that nobody else sees.

- A file that is there is opened for reading only, and mapped privately: no byte of it can change, nobody who watches it
  is told of a writer, and a lock that lives in it (a robust futex) is not given up when the rehearsal ends.
- No lock is taken on it.
- Named pipes, sockets with a path, files and folders without a name, and what a restart would make again, get
  stand-ins.

What that leaves open is looked at without touching it, by checkpoint/prospects.py.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from typing import Any

import msgspec

from torpor.checkpoint.relocate import relocate
from torpor.image.manifest import FileRecord, Manifest, ObjectRecord, ProcessRecord, Services
from torpor.linux import loopback
from torpor.model.path_map import PathMap
from torpor.named_tuple import NamedTuple
from torpor.posix import descriptor_services, mqueue, regular
from torpor.posix.contents import Contents
from torpor.posix.descriptors import O_ACCMODE
from torpor.posix.memory.area import FILE, OBJECT, AreaRecord
from torpor.posix.memory.objects import DELETED, MemoryObjectRecord
from torpor.posix.memory.pages import PagesRecord
from torpor.posix.paths import FileIdentity
from torpor.posix.scratch import Scratch
from torpor.posix.socket_options import SO_BINDTODEVICE, SOL_SOCKET, Options
from torpor.posix.socket_queue import Queue
from torpor.posix.unix_name import Name

_O_DIRECT = 0o40000
_LEFT_OUT = ("locks", "oom")
"""Process services: locks are on files of the host; the first to be killed if memory runs out is the rehearsal."""
_replace = msgspec.structs.replace


class StandIn(NamedTuple):
    """Something that a restart would make, or make again, at `path`; mode: type and permissions; size: of a file."""

    path: bytes
    mode: int
    size: int = 0


class Rehearsal(NamedTuple):
    """How to rehearse. folder: an empty folder that nobody else sees. fill: also put the contents of memory in."""

    folder: str
    stand_ins: tuple[StandIn, ...]
    fill: bool = True

    def prepare(self) -> None:
        """Make the stand-ins. Raises OSError."""
        for number, one in enumerate(self.stand_ins):
            _make(self._place(number), one)

    def _place(self, number: int) -> str:
        return f"{self.folder}/{number}"

    def manifest(self, manifest: Manifest) -> Manifest:
        """The manifest to restart from."""
        moved = PathMap((one.path, os.fsencode(self._place(n))) for n, one in enumerate(self.stand_ins))
        return _Loose(relocate(manifest, moved), moved, self).manifest()


def _make(path: str, one: StandIn) -> None:
    if stat.S_ISDIR(one.mode):
        os.mkdir(path)
    elif stat.S_ISFIFO(one.mode):
        os.mkfifo(path)
    else:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC)
        os.ftruncate(fd, one.size)
        os.close(fd)
    os.chmod(path, stat.S_IMODE(one.mode))


def stand_ins(manifest: Manifest) -> tuple[StandIn, ...]:
    """What needs one: looks at what is there, and touches nothing."""
    found: dict[bytes, StandIn] = {}
    for folder in manifest.scratch.folders:
        for entry in folder.entries:
            if stat.S_IFMT(entry.mode) in (stat.S_IFREG, stat.S_IFDIR):
                path = os.path.join(folder.path, entry.name) if entry.name else folder.path
                size = entry.contents.size if entry.contents is not None else 0
                found[path] = StandIn(path, entry.mode, size)
    for file in manifest.files:
        if file.contents is not None or file.restored:
            found[file.identity.name] = _like(file.identity)
    for service, state in decoded(manifest):
        if service == "file":
            if not state.deleted and (state.holder >= 0 or state.contents is not None or regular.was_empty(state)):
                found[state.file.name] = _like(state.file)
        elif service == "fifo":
            found[state.name] = StandIn(state.name, stat.S_IFIFO | state.mode)
    return tuple(one for one in found.values() if stat.S_ISFIFO(one.mode) or not _is_there(one))


def decoded(manifest: Manifest) -> list[tuple[str, Any]]:
    """The records of all open file descriptions, with the names of their services; without those that are not
    installed."""
    found = []
    for record in manifest.objects:
        service = descriptor_services.service_named(record.service)
        if service is not None:
            found.append((record.service, msgspec.msgpack.decode(record.state, type=service.record)))
    return found


def _like(file: FileIdentity) -> StandIn:
    return StandIn(file.name, file.mode, file.size)


def _is_there(one: StandIn) -> bool:
    try:
        return stat.S_IFMT(os.stat(one.path).st_mode) == stat.S_IFMT(one.mode)
    except OSError:
        return False


class _Loose:
    """A manifest, rewritten."""

    def __init__(self, manifest: Manifest, moved: PathMap, rehearsal: Rehearsal) -> None:
        self._manifest, self._moved = manifest, moved
        self._folder, self._fill = rehearsal.folder, rehearsal.fill
        self._names: dict[str, Name] = {}
        self._made = 0

    def manifest(self) -> Manifest:
        manifest = self._manifest
        return _replace(
            manifest,
            files=tuple(self._file(record) for record in manifest.files),
            objects=tuple(self._object(record) for record in manifest.objects),
            memory=tuple(self._memory(record) for record in manifest.memory),
            processes=tuple(self._process(record) for record in manifest.processes),
            scratch=Scratch(),
        )

    def _nowhere(self, what: str) -> bytes:
        """A path for something that has no name, or shall have none."""
        self._made += 1
        return os.fsencode(f"{self._folder}/{what}{self._made}")

    def _file(self, record: FileRecord) -> FileRecord:
        # Whether it may be another one by now was decided elsewhere.
        return _replace(record, written=False)

    def _memory(self, record: MemoryObjectRecord) -> MemoryObjectRecord:
        name = os.fsdecode(self._nowhere("deleted")) if record.kind == DELETED else record.name
        return _replace(record, name=name, chunks=record.chunks if self._fill else ())

    def _process(self, record: ProcessRecord) -> ProcessRecord:
        return _replace(
            record,
            areas=tuple(self._area(area) for area in record.areas),
            pages=record.pages if self._fill else PagesRecord(),
            services=self._services(record.services),
        )

    def _area(self, area: AreaRecord) -> AreaRecord:
        """Files are mapped privately."""
        if area.shared and (area.kind == FILE or (area.kind == OBJECT and self._is_file(area.descriptor))):
            return _replace(area, shared=False)
        return area

    def _is_file(self, number: int) -> bool:
        return number >= 0 and self._manifest.objects[number].service == "file"

    def _services(self, services: Services) -> Services:
        kept = {name: state for name, state in services.items() if name not in _LEFT_OUT}
        if "workdir" in kept:
            state: dict[str, Any] = msgspec.msgpack.decode(kept["workdir"])
            if state.get("removed"):
                state["directory"] = self._nowhere("removed")
                kept["workdir"] = msgspec.Raw(msgspec.msgpack.encode(state))
        return kept

    def _object(self, record: ObjectRecord) -> ObjectRecord:
        change: Callable[[Any], Any] | None = {
            "file": self._open_file,
            "directory": self._directory,
            "unix": self._unix,
            "tcp": self._inet,
            "udp": self._inet,
            "inotify": self._watches,
            "mqueue": self._queue,
        }.get(record.service)
        service = descriptor_services.service_named(record.service) if change else None
        if change is None or service is None:
            return record
        state = change(msgspec.msgpack.decode(record.state, type=service.record))
        return _replace(record, state=msgspec.Raw(msgspec.msgpack.encode(state)))

    def _open_file(self, state: Any) -> Any:
        if not state.deleted:
            return _replace(state, locks=(), flags=_for_reading(state.flags, state.file.name))
        contents = state.contents and Contents(state.contents.size)  # its chunks are looked at one by one
        file = _replace(state.file, name=self._nowhere("deleted"))
        return _replace(state, locks=(), file=file, flags=state.flags & ~_O_DIRECT, contents=contents)

    def _directory(self, state: Any) -> Any:
        return _replace(state, name=self._nowhere("removed")) if state.removed else state

    def _watches(self, state: Any) -> Any:
        return _replace(state, watches=tuple(_replace(one, name=self._moved(one.name)) for one in state.watches))

    def _queue(self, state: Any) -> Any:
        """A queue too large for a namespace of its own would be the host's: only its kind is tried."""
        if state.state is None or mqueue.fit_anew([state]):
            return state
        return _replace(state, state=mqueue.smaller(state.state))

    def _unix(self, state: Any) -> Any:
        queue: Queue | None = state.queue
        if queue is not None:
            folder = state.name.folder
            messages = [_replace(one, sender=self._name(Name(one.sender, folder)).raw) for one in queue.messages]
            queue = _replace(queue, messages=tuple(messages))
        return _replace(state, name=self._name(state.name), peer_name=self._name(state.peer_name), queue=queue)

    def _name(self, name: Name) -> Name:
        """A path that stands for another one: the same one every time."""
        if not name.is_path:
            return name
        if str(name) not in self._names:
            self._names[str(name)] = Name(self._nowhere("socket"))
        return _replace(name, raw=self._names[str(name)].raw, folder="")

    def _inet(self, state: Any) -> Any:
        """There is one device only."""
        ends = {
            key: _replace(address, scope=loopback.INDEX)
            for key in ("local", "remote")
            if (address := getattr(state, key)) is not None and address.scope
        }
        options: Options = state.options
        kept = tuple(one for one in options.values if (one.level, one.name) != (SOL_SOCKET, SO_BINDTODEVICE))
        return _replace(state, **ends, options=_replace(options, values=kept))


def _for_reading(flags: int, path: bytes) -> int:
    """Open flags with which nobody can write, if the file may be read at all."""
    return flags & ~O_ACCMODE if os.access(path, os.R_OK, effective_ids=True) else flags
