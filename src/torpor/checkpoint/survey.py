"""Could a job be saved? Every service looks for what it cannot save; only /proc is read, nothing is touched."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

import msgspec

from torpor.checkpoint import descriptors
from torpor.checkpoint.tree import Tree
from torpor.linux import proc
from torpor.model.data import Buffer, Ref, Sink
from torpor.model.errors import Refusal
from torpor.posix import descriptor_services, obstacles, scratch, seccomp_filters
from torpor.posix.backlog import Backlogs
from torpor.posix.far import Told
from torpor.posix.memory import obstacles as memory_obstacles
from torpor.posix.obstacles import Seen
from torpor.posix.process_services import PROCESS_SERVICES, THREAD_SERVICES
from torpor.posix.service import Descriptor, DescriptorService, ProcessBase, ProcessService, Stream, ThreadBase
from torpor.posix.socket_address import Address

LOOKS = 3
"""How often something has to be seen in a running job before it is believed to be in the way."""


_OF_PROCESSES = [one for one in PROCESS_SERVICES if getattr(type(one), "survey") is not ProcessBase.survey]  # noqa: B009
_OF_THREADS = [one for one in THREAD_SERVICES if getattr(type(one), "survey") is not ThreadBase.survey]  # noqa: B009
"""Those that look for something."""


class NoSink:
    """A survey saves nothing."""

    def put(self, data: Buffer) -> Ref:
        raise AssertionError("a survey must not save anything")


class Survey:
    """What was seen of a job; the `Job` that descriptor services are shown while nothing is saved yet."""

    _of_processes: Sequence[ProcessService] = _OF_PROCESSES
    """Who is asked about each process."""

    def __init__(
        self, pids: Sequence[int], streams: Sequence[Stream], files: str = "auto", watched: bool = False
    ) -> None:
        self.pids = pids
        self._watched = watched
        self.streams = streams
        self.files, _, rest = files.partition(":")
        self._save_paths = frozenset(path for path in rest.split(",") if path)
        self.folders = tuple(sorted(path for path in self._save_paths if os.path.isdir(path)))
        """Those that are saved whole."""
        self.sink: Sink = NoSink()
        self.backlogs = Backlogs()
        self.far: Mapping[int, Told] = {}
        self.far_waiting: Mapping[tuple[Address, Address], Told] = {}
        self.far_hosts: Collection[bytes] = ()
        self._mapped: set[tuple[int, int]] | None = None
        found: list[Descriptor] = []
        self.of_process: dict[int, Sequence[Descriptor]] = {}
        """The descriptors by host pid."""
        for pid in pids:
            try:
                self.of_process[pid] = descriptors.look(pid, self.comm(pid))
                found += self.of_process[pid]
            except (FileNotFoundError, ProcessLookupError, PermissionError):
                continue
        self.descriptors: list[Descriptor] = found

    def save_contents(self, path: str) -> bool:
        return self.files == "save" and (not self._save_paths or path in self._save_paths)

    def in_saved_folder(self, path: str) -> bool:
        return any(path.startswith(f"{folder}/") for folder in self.folders)

    def maps(self, dev: int, ino: int) -> bool:
        if self._mapped is None:
            self._mapped = set()
            for pid in self.pids:
                try:
                    areas = self.areas(pid)
                except OSError:
                    continue
                self._mapped.update((area.dev, area.ino) for area in areas if area.perms[1::2] == "ws" and area.ino)
        return (dev, ino) in self._mapped

    def vpid(self, pid: int) -> int:
        if proc.face(pid) not in self.pids:
            return 0
        return proc.inner_pid(proc.status(int(proc.status(pid)["Tgid"])))

    def object_of(self, pid: int, number: int) -> int | None:
        raise AssertionError("a survey has no table of objects")

    def adopt(self, fd: int) -> int:
        raise AssertionError("a survey looks into nothing")

    def processes(self) -> Iterable[int]:
        return self.pids

    def later(self, make: Callable[[], msgspec.Struct]) -> None:
        raise AssertionError("a survey saves nothing")

    def say(self, line: str) -> None:
        raise AssertionError("a survey saves nothing")

    def hold(self, pid: int, number: int) -> int:
        raise AssertionError("a survey must not touch descriptors")

    def service(self, seen: Descriptor) -> DescriptorService:
        """Whose a descriptor is."""
        return descriptor_services.service_for(seen, self)

    def has_ended(self, pid: int) -> bool:
        """Is it a zombie, or gone? Raises OSError."""
        return proc.state(pid) in "ZX" and len(proc.threads(pid)) <= 1

    def areas(self, pid: int) -> Iterable[proc.Area]:
        """The memory areas of a process. Raises OSError."""
        return proc.maps(pid)

    def comm(self, pid: int) -> str:
        """The name of a process."""
        return proc.comm(pid)

    def program(self, pid: int) -> str:
        """What the link to the program of a process says. Raises OSError."""
        return os.readlink(f"/proc/{pid}/exe")

    def namespace(self, pid: int, kind: str) -> str:
        """What the link of a process to one of its namespaces says."""
        return proc.namespace(pid, kind)

    def face(self, pid: int) -> int:
        """By which number a process can be looked at (proc.face)."""
        return proc.face(pid)

    def threads(self, pid: int) -> Iterable[tuple[int, Mapping[str, str], bool]]:
        """The threads of a process in which something may stand in the way, the status of each, and whether it is known
        to be plain (Task.plain). Raises OSError if one of them has ended."""
        return [(tid, proc.status(pid, tid), False) for tid in proc.threads(pid)]

    def refusals(self) -> list[Refusal]:
        """Everything that stands in the way."""
        found: list[Refusal] = scratch.survey(self.folders)
        for pid in self.pids:
            try:
                if self.has_ended(pid):
                    continue
                for process_service in self._of_processes:
                    found += process_service.survey(pid)
                found += memory_obstacles.survey(pid, self.areas(pid), self.program)
                for tid, status, plain in self.threads(pid):
                    for thread_service in _OF_THREADS:
                        found += thread_service.survey(pid, tid, status)
                    seen = Seen(pid, tid, status, self.face, self.namespace)
                    found += obstacles.survey(seen, plain)
                    found += seccomp_filters.survey(seen, self._watched)
            except (FileNotFoundError, ProcessLookupError):
                continue
            except PermissionError:
                from torpor.tracee.freeze import why_not_traced

                try:
                    fields = proc.status(pid)
                except (FileNotFoundError, ProcessLookupError):
                    continue
                found.append(Refusal(pid, fields["Name"], "may not be traced by this user", why_not_traced(fields)))
        for one in self.descriptors:
            refusal = self._refusal(one)
            if refusal is not None:
                found.append(refusal)
        return found

    def _refusal(self, seen: Descriptor) -> Refusal | None:
        """Why a descriptor stands in the way. A job that runs may have closed it, or removed the file, between two of
        our looks: only what is still so after the service has looked counts."""
        while True:
            try:
                refusal = self.service(seen).survey(seen, self)
                if refusal is None:
                    return None
                again = descriptors.look_at(seen.pid, seen.number, seen.process)
            except OSError:
                return None
            if (again.target, again.dev, again.ino) == (seen.target, seen.dev, seen.ino):
                return refusal
            seen = again


def running(tree: Tree, streams: Sequence[Stream], files: str = "auto") -> list[Refusal]:
    """What stands in the way of saving a job that is running.

    It changes between one look and the next: a descriptor is closed, and its number used for something else, a file is
    renamed, a process is just ending. So only what is found again counts; the survey of the stopped job is the one that
    decides. Raises OSError only where the tree itself cannot be read.
    """
    found = Survey(tree.find(), streams, files, tree.watched).refusals()
    for _ in range(LOOKS - 1):
        if not found:
            break
        again = set(Survey(tree.find(), streams, files, tree.watched).refusals())
        found = [refusal for refusal in found if refusal in again]
    return found


class ProcessSeen(msgspec.Struct, frozen=True):
    """A process in a CheckReport. bytes: memory of its own (Private and swap)."""

    pid: int
    vpid: int
    comm: str
    threads: int
    bytes: int


class CheckReport(msgspec.Struct, frozen=True):
    """What `torpor check` found. bytes: how large a checkpoint would be at most, before compression."""

    refusals: tuple[str, ...]
    processes: tuple[ProcessSeen, ...]
    bytes: int


def check(tree: Tree, streams: Sequence[Stream] = ()) -> CheckReport:
    """Survey a running job. Raises OSError only where the tree itself cannot be read."""
    pids = tree.find()
    processes = []
    for pid in pids:
        try:
            fields = proc.status(pid)
            own = sum(
                int(words["Anonymous"].split()[0]) + int(words["Swap"].split()[0])
                for _, words in proc.smaps(pid)
                if "Anonymous" in words
            )
            processes.append(
                ProcessSeen(pid, proc.inner_pid(fields), fields["Name"], int(fields["Threads"]), own * 1024)
            )
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue
    return CheckReport(
        tuple(str(refusal) for refusal in running(tree, streams)),
        tuple(processes),
        sum(seen.bytes for seen in processes),
    )
