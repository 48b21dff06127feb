"""What services are shown of a frozen job while it is captured."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

import msgspec

from torpor.checkpoint import descriptors
from torpor.checkpoint.survey import Survey
from torpor.linux import kcmp, proc
from torpor.model.data import Sink
from torpor.named_tuple import NamedTuple
from torpor.posix import descriptor_services
from torpor.posix.backlog import Backlogs
from torpor.posix.far import Told
from torpor.posix.service import Descriptor, DescriptorService, Stream
from torpor.posix.socket_address import Address
from torpor.tracee.freeze import Frozen


class Far(NamedTuple):
    """What is known of connections with other hosts: see `Job.far`, `Job.far_waiting` and `Job.far_hosts`."""

    connected: Mapping[int, Told] = {}
    waiting: Mapping[tuple[Address, Address], Told] = {}
    hosts: Collection[bytes] = ()


class View(Survey):
    """The `Job` that services are shown while a frozen job is captured."""

    _of_processes = [service for service in Survey._of_processes if not service.captures_all]

    def __init__(
        self,
        frozen: Frozen,
        order: Sequence[int],
        streams: Sequence[Stream],
        files: str,
        sink: Sink,
        watched: bool,
        backlogs: Backlogs,
        far: Far,
    ) -> None:
        self._frozen = frozen
        super().__init__([pid for pid in order if pid in frozen.processes], streams, files, watched)
        self.sink = sink
        self.backlogs = backlogs
        self.far, self.far_waiting, self.far_hosts = far
        self.at = 0
        self.parts: dict[int, Callable[[], msgspec.Struct]] = {}
        self.notes: list[str] = []
        self._by_number = {process.tgid: process for process in frozen.processes.values()}
        self._own: list[int] = []
        self._namespaces: dict[tuple[int, str], str] = {}
        self._services: dict[int, DescriptorService] = {}
        """By number of the object: all descriptors of one open file description are of one kind."""
        for pid, some in self.of_process.items():
            frozen.processes[pid].fdinfo = {seen.number: seen.info for seen in some}
        self.groups = descriptors.group(self.descriptors)
        self.groups = [part for whole in self.groups for part in self._by_role(whole)]
        self._object = {(seen.pid, seen.number): number for number, group in enumerate(self.groups) for seen in group}

    def _by_role(self, whole: list[Descriptor]) -> list[list[Descriptor]]:
        """Standard streams that share one open file description may be given different files at the restart."""
        parts: dict[int, list[Descriptor]] = {}
        for seen in whole:
            parts.setdefault(descriptor_services.role(seen, self), []).append(seen)
        return list(parts.values())

    def later(self, make: Callable[[], msgspec.Struct]) -> None:
        self.parts[self.at] = make

    def say(self, line: str) -> None:
        self.notes.append(line)

    def vpid(self, pid: int) -> int:
        # The kernel tells the number of a process, also of one whose first thread has ended (proc.face).
        process = self._frozen.processes.get(pid) or self._by_number.get(pid)
        if process is not None:
            return process.vpid
        return proc.inner_pid(proc.status(pid)) if pid in self._frozen.zombies else 0

    def service(self, seen: Descriptor) -> DescriptorService:
        number = self._object.get((seen.pid, seen.number))
        if number is None:
            return super().service(seen)
        if number not in self._services:
            self._services[number] = super().service(self.groups[number][0])
        return self._services[number]

    def has_ended(self, pid: int) -> bool:
        return False  # it was stopped; if it has been killed since, nothing can be asked in it

    def areas(self, pid: int) -> Iterable[proc.Area]:
        return self._frozen.processes[pid].areas

    def comm(self, pid: int) -> str:
        return self._frozen.processes[pid].comm

    def program(self, pid: int) -> str:
        return self._frozen.processes[pid].program

    def namespace(self, pid: int, kind: str) -> str:
        # Nobody changes it now; and of a parent it is asked for each of its children.
        if (pid, kind) not in self._namespaces:
            self._namespaces[pid, kind] = proc.namespace(pid, kind)
        return self._namespaces[pid, kind]

    def face(self, pid: int) -> int:
        process = self._by_number.get(pid)
        return proc.face(pid) if process is None else process.pid

    def threads(self, pid: int) -> Iterable[tuple[int, Mapping[str, str], bool]]:
        # Nothing can stand in the way in a plain thread, which we trace ourselves. With the first one the process is
        # looked at.
        tasks = self._frozen.processes[pid].tasks
        return [(task.tid, task.status, task.plain) for task in tasks if not task.plain or task.tid == pid]

    def object_of(self, pid: int, number: int) -> int | None:
        return self._object.get((pid, number))

    def hold(self, pid: int, number: int) -> int:
        if pid == os.getpid():
            return number  # in flight: ours already
        return self._frozen.processes[pid].fd(number)

    def adopt(self, fd: int) -> int:
        try:
            for near in descriptors.alike(fd, self.descriptors):
                if kcmp.same_file(os.getpid(), fd, near.pid, near.number):
                    return self._object[near.pid, near.number]
            seen = descriptors.look_at(os.getpid(), fd, "in flight in a socket of the job")
            self._own.append(os.dup(fd))
        finally:
            os.close(fd)
        seen = msgspec.structs.replace(seen, number=self._own[-1])
        self.descriptors.append(seen)
        self.groups.append([seen])
        self._object[seen.pid, seen.number] = len(self.groups) - 1
        return len(self.groups) - 1

    def look_inside(self) -> None:
        """Find the open file descriptions that are in flight inside others, and those inside of them."""
        for group in self.groups:  # grows meanwhile
            seen = group[0]
            look = getattr(self.service(seen), "inside", None)
            if look is not None:
                look(self.hold(seen.pid, seen.number), seen, self)

    def close(self) -> None:
        """Close our own copies of what was in flight."""
        while self._own:
            os.close(self._own.pop())
