"""Open file descriptions, memory objects and mapped files, made again once each in the restarting process.

Every stub inherits all of them, under the same high numbers, and takes what is its own.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import resource
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from torpor.checkpoint import copies
from torpor.checkpoint.plan import creation_order
from torpor.image.manifest import Manifest
from torpor.linux import devpts, pty
from torpor.model.data import Source
from torpor.model.errors import RestartFailed
from torpor.posix import descriptor_services, owner, regular, scratch
from torpor.posix.memory import objects as memory_objects
from torpor.posix.memory.area import FILE, PROT_WRITE
from torpor.posix.memory.objects import MemoryObjectRecord
from torpor.posix.rewind import put_back
from torpor.posix.service import DescriptorService, Late, Restart

if TYPE_CHECKING:
    import socket

    from torpor.checkpoint.deputies import Deputies, Pioneer


class Inventory:
    """What was made: the `Restart` that descriptor services are shown.

    base: no descriptor of the job has a number as high, so what is held there is in nobody's way.
    """

    def __init__(
        self, manifest: Manifest, source: Source, checkpoint: str, standard: Sequence[int], files: str,
        changed_files: str, say: Callable[[str], None], inherits: bool = True, private: str = "",
        begin: Callable[[], Pioneer] | None = None,
    ) -> None:  # fmt: skip
        self.manifest, self.source, self.checkpoint = manifest, source, checkpoint
        self.standard, self.files, self.changed_files = standard, files, changed_files
        self.say = say
        self._private = private
        """Where files are made that are missing at their path."""
        self._inherits = inherits
        """Do our mappings reach the processes of the job? Else shared anonymous memory becomes a memfd."""
        self._begin = begin
        """Forks the first process of the tree before the rest of it; None where process numbers cannot be chosen."""
        self._deputies: Deputies | None = None
        self.hosts: dict[int, int] = {}
        self.instance = -1
        """The job's own devpts, if it has one."""
        self.terminals: dict[int, tuple[int, int]] = {}
        """Pseudo-terminals of the job by the session leader whose controlling terminal they are: (a descriptor of the
        slave, the process group in front)."""
        self.base = 0
        self._undo: list[Callable[[], None]] = []
        self._shared: dict[tuple[str, int], tuple[Any, Callable[[Any], None]]] = {}
        self._made: dict[int, tuple[DescriptorService, Any, int]] = {}
        self._files: dict[int, int] = {}
        self._memory: dict[int, tuple[int, mmap.mmap | None]] = {}
        self._post: list[socket.socket] = []
        self.connected: dict[int, int] = {}
        """Connections with other hosts of the job, by the inode number that this end had."""
        self.last: list[Callable[[], None]] = []
        """What is done right before the release."""

    # What services see.

    def shared(self, key: tuple[str, int], make: Callable[[], Any], close: Callable[[Any], None]) -> Any:
        if key not in self._shared:
            self._shared[key] = make(), close
        return self._shared[key][0]

    def object(self, number: int) -> int:
        return self._made[number][2]

    def host_pid(self, vpid: int) -> int:
        return self.hosts[vpid]

    def far(self, ino: int) -> int:
        return self.connected.pop(ino, -1)

    def at_release(self, do: Callable[[], None]) -> None:
        self.last.append(do)

    def devpts(self) -> int:
        if self.instance < 0:
            self.instance = self._lift(devpts.make())
        return self.instance

    def on_failure(self, undo: Callable[[], None]) -> None:
        self._undo.append(undo)

    def as_process(self, pid: int, do: Callable[..., Any], *arguments: Any) -> Any:
        if pid <= 0:
            return do(*arguments)
        if self._deputies is None:
            from torpor.checkpoint.deputies import Deputies

            self._deputies = Deputies(self._begin)
        return self._deputies.ask(pid, do, *arguments)

    # What the pipeline does.

    @property
    def pioneer(self) -> Pioneer | None:
        """The first process of the tree, if it was needed already."""
        return None if self._deputies is None else self._deputies.pioneer

    def make(self) -> None:
        """Make everything. Raises RestartFailed or Refused; `undo` must then be called."""
        if self.files != "keep" and (self.manifest.scratch.folders or self.manifest.scratch.beside):
            scratch.restore(self.manifest.scratch, self)
        self.manifest = copies.provide_missing(self.manifest, self.source, self._private, self)
        records: list[tuple[DescriptorService, Any]] = []
        for record in self.manifest.objects:
            service = descriptor_services.service_named(record.service)
            if service is None:
                raise RestartFailed(
                    f"this checkpoint needs the service '{record.service}', which is not installed here"
                )
            records.append((service, msgspec.msgpack.decode(record.state, type=service.record)))
        self.base = _base(self.manifest, records)
        # First, as this is memory that the whole tree inherits, and its first process may be forked for sockets.
        for number, memory in enumerate(self.manifest.memory):
            self._memory[number] = self._make_memory(memory)
        needs = [list(service.needs(state)) for service, state in records]
        for number in creation_order(needs):
            service, state = records[number]
            try:
                fd = service.create(state, self)
            except OSError as error:
                raise RestartFailed(f"{service.name}: {error.strerror}: {error.filename or state}") from error
            self._made[number] = service, state, self._lift(fd)
        if any(hasattr(service, "create_late") for service, _, _ in self._made.values()):
            import socket  # takes longer than all that is made here, mostly

            for end in socket.socketpair():
                self._post.append(socket.socket(fileno=self._lift(end.detach())))
        for service, state, fd in self._made.values():
            if service.name == "pty_master" and state.session:
                self.terminals[state.session] = self._lift(pty.peer(fd, os.O_RDWR)), state.foreground
        for number, file in enumerate(self.manifest.files):
            mapped = [
                area
                for process in self.manifest.processes
                for area in process.areas
                if area.kind == FILE and area.what == number
            ]
            if not mapped and not any(process.exe == number for process in self.manifest.processes):
                continue
            writing = any(area.shared and area.prot & PROT_WRITE for area in mapped)
            may_write = any(area.shared and area.may_write for area in mapped)
            if file.contents is not None and self.files != "keep":
                regular.make_missing(file.identity, self)
            try:
                fd = _open_mapped(file.identity.path, may_write, writing, self)
            except OSError as error:
                raise RestartFailed(f"{file.identity.path}: {error.strerror}") from error
            self._files[number] = self._lift(fd)
        for thing, close in self._shared.values():
            close(thing)
        self._shared.clear()
        if self._deputies is not None:
            self._deputies.dismiss()
            if self._deputies.missed:
                self.say(_other_numbers(self._deputies.missed))

    def _lift(self, fd: int) -> int:
        """Move a descriptor to a high number, inheritable."""
        try:
            high = fcntl.fcntl(fd, fcntl.F_DUPFD, self.base)
        except OSError as error:
            raise RestartFailed(f"too many open files for this user's limit (ulimit -n): {error.strerror}") from error
        os.close(fd)
        return high

    def _make_memory(self, record: MemoryObjectRecord) -> tuple[int, mmap.mmap | None]:
        """A memory object with its contents: (descriptor or -1, our own mapping of it or None)."""
        if record.kind == memory_objects.ANONYMOUS and self._inherits:
            area = mmap.mmap(-1, record.size)
            for offset, length, ref in record.chunks:
                area[offset : offset + length] = self.source.get(ref)
            return -1, area
        if record.kind == memory_objects.ANONYMOUS:
            fd = os.memfd_create(memory_objects.STAND_IN, os.MFD_CLOEXEC)
        elif record.kind == memory_objects.MEMFD:
            fd = os.memfd_create(record.name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        elif record.kind == memory_objects.HUGE:
            fd = os.memfd_create("anon_hugepage", os.MFD_CLOEXEC | os.MFD_HUGETLB)
        else:
            fd = _nameless(record.name)
        os.ftruncate(fd, record.size)
        for offset, _, ref in record.chunks:
            data = memoryview(self.source.get(ref))
            while data:
                done = os.pwrite(fd, data, offset)
                data, offset = data[done:], offset + done
        return self._lift(fd), None

    def file(self, number: int) -> int:
        """Our descriptor of a mapped file."""
        return self._files[number]

    def mappable(self, number: int, writable: bool) -> int:
        """Our descriptor of an object that is to be mapped; opened once more where its own does not allow writing."""
        fd = self._made[number][2]
        if not writable or fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDWR:
            return fd
        key = -1 - number
        if key not in self._files:
            self._files[key] = self._lift(os.open(f"/proc/self/fd/{fd}", os.O_RDWR | os.O_CLOEXEC))
        return self._files[key]

    def memory(self, number: int) -> int:
        """Our descriptor of a memory object, -1 if it has none."""
        return self._memory[number][0]

    def parked(self) -> list[tuple[int, mmap.mmap]]:
        """Memory objects without a descriptor: (number, our mapping, at the same address in every stub)."""
        return [(number, area) for number, (_, area) in self._memory.items() if area is not None]

    def places(self, having: Sequence[int]) -> list[tuple[DescriptorService, Any, int]]:
        """The objects among `having` (numbers) with their service, state and number."""
        return [(*self._made[number][:2], number) for number in having]

    def make_late(self) -> list[int]:
        """Objects that need the processes to exist: made now, in place of what stood for them. Their numbers."""
        late = []
        for number, (service, state, fd) in self._made.items():
            make = getattr(service, "create_late", None)
            new = make(state, self) if make is not None else -1
            if new >= 0:
                os.dup2(new, fd)
                os.close(new)
                late.append(number)
        return late

    def post(self, number: int) -> int:
        """Send an object to whoever reads from the descriptor that is returned; every stub has it."""
        import socket

        socket.send_fds(self._post[0], [b"o"], [self._made[number][2]])
        return self._post[1].fileno()

    def segment_sizes(self) -> dict[int, int]:
        """Bytes of each System V segment of the job, by id."""
        state = self.manifest.services.get("sysv_shm")
        if state is None:
            return {}
        from torpor.posix.sysv_shm import SharedSegments

        record = msgspec.msgpack.decode(state, type=SharedSegments)
        return {segment.identity.number: segment.size for segment in record.segments}

    def late(self, number: int) -> Late | None:
        """What the processes open themselves in place of an object."""
        service, state, _ = self._made[number]
        look = getattr(service, "late", None)
        return look(state) if look else None

    def finish(self) -> None:
        """The last step of every object: clocks start."""
        for service, state, fd in self._made.values():
            service.finish(state, fd, self)
        for number, record in enumerate(self.manifest.objects):
            if record.owner is not None:
                owner.restore(record.owner, self._made[number][2], self)
        for number, fd in self._files.items():
            file = self.manifest.files[number] if number >= 0 else None
            if file is not None and file.contents is not None and self.files != "keep":
                put_back(fd, file.identity, file.contents, self)

    def close(self) -> None:
        """Our own descriptors are not needed any more. Raises RestartFailed, Refused."""
        watchers = [made for made in self._made.values() if hasattr(made[0], "last")]
        mine = {fd for _, _, fd in self._made.values()} | {*self._files.values()}
        for fd in mine - {fd for _, _, fd in watchers}:
            os.close(fd)
        for fd, _ in self.terminals.values():
            os.close(fd)
        self.terminals.clear()
        if self.instance >= 0:
            os.close(self.instance)
            self.instance = -1
        for fd, area in self._memory.values():
            if fd >= 0:
                os.close(fd)
            if area is not None:
                area.close()
        for end in self._post:
            end.close()
        while self.connected:
            os.close(self.connected.popitem()[1])
        for service, state, fd in watchers:
            service.last(state, fd, self)  # type: ignore[attr-defined]
            os.close(fd)
        self._made.clear()
        self._files.clear()
        self._memory.clear()

    def undo(self) -> None:
        """The restart failed: put back what was changed in the world."""
        for step in reversed(self._undo):
            try:
                step()
            except OSError:
                continue
        self.close()


def _base(manifest: Manifest, records: Sequence[tuple[DescriptorService, Any]]) -> int:
    """The lowest number at which nothing of the job is, with room above it."""
    highest = max((d.number for process in manifest.processes for d in process.descriptors), default=2)
    for service, state in records:
        uses = getattr(service, "highest_number", None)
        if uses is not None:
            highest = max(highest, uses(state))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = len(manifest.objects) + len(manifest.files) + len(manifest.memory) + 64
    base = max(highest + 1, 512 if hard == resource.RLIM_INFINITY or hard > 4096 else 64)
    if hard != resource.RLIM_INFINITY and base + needed > hard:
        raise RestartFailed(
            f"the limit of open files ({hard}, ulimit -Hn) is too low for this job: {base + needed} are needed"
        )
    if soft != resource.RLIM_INFINITY and soft < base + needed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard if hard != resource.RLIM_INFINITY else base + needed, hard))
    return base


def _other_numbers(missed: set[int]) -> str:
    """What to say where numbers of processes that made something were not to be had."""
    shown = ", ".join(str(number) for number in sorted(missed)[:5]) + (", ..." if len(missed) > 5 else "")
    return f"UNIX sockets made by {shown} tell another process number (SO_PEERCRED)"


def _nameless(path: str) -> int:
    """A new file that had `path` as its name for a moment, so that it shows as deleted under that name."""
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        os.unlink(path)
    except OSError:
        # The name is in use again, or its folder is gone or closed to us: any file will do.
        fd = os.memfd_create(os.path.basename(path)[:200], os.MFD_CLOEXEC)
    return fd


def _open_mapped(path: str, may_write: bool, writing: bool, restart: Restart) -> int:
    """A file to be mapped. may_write: it was opened for writing before it was mapped shared; writing: it is mapped
    writable now, so that nothing less will do. Raises OSError."""
    if may_write:
        try:
            return os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOCTTY)
        except OSError as error:
            if writing:
                raise
            restart.say(f"{path} is mapped for reading only: {error.strerror}")
    return os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOCTTY)
