"""A job and a restart in one process: capture what this process has open, make it again, compare."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import msgspec

from torpor.linux import kcmp
from torpor.posix.backlog import Backlogs
from torpor.posix.descriptor_services import service_for, service_named
from torpor.posix.far import Told
from torpor.posix.service import Descriptor, DescriptorService, Stream
from torpor.posix.socket_address import Address


class Store:
    """A sink and a source in one."""

    def __init__(self) -> None:
        self.kept: list[bytes] = []

    def put(self, data: bytes | bytearray | memoryview) -> int:
        assert 0 < len(data) <= 256 * 1024
        self.kept.append(bytes(data))
        return len(self.kept) - 1

    def get(self, ref: int) -> bytes:
        return self.kept[ref]


def look(number: int, pid: int | None = None) -> Descriptor:
    """A descriptor as the pipeline sees it."""
    pid = pid or os.getpid()
    link = f"/proc/{pid}/fd/{number}"
    st = os.stat(link)
    with open(f"/proc/{pid}/fdinfo/{number}") as lines:
        info = tuple(lines.read().splitlines())
    fields = dict(line.split(":", 1) for line in info[:4])
    return Descriptor(
        pid, "test", number, os.readlink(link), st.st_mode, st.st_dev, st.st_ino, st.st_rdev,
        int(fields["flags"], 8), int(fields["pos"]), int(fields["mnt_id"]), info,
    )  # fmt: skip


class FakeJob:
    """The job is this process with the descriptors named (or others, as (pid, number))."""

    def __init__(
        self, numbers: Iterable[int | tuple[int, int]], files: str = "auto", streams: Sequence[Stream] = ()
    ) -> None:
        keys = [(os.getpid(), n) if isinstance(n, int) else n for n in numbers]
        self.descriptors: Sequence[Descriptor] = [look(number, pid) for pid, number in keys]
        self.files, _, paths = files.partition(":")
        self.paths = [path for path in paths.split(",") if path]
        self.streams = streams
        self.sink: Any = Store()
        self.groups: list[list[Descriptor]] = []
        for seen in self.descriptors:
            for group in self.groups:
                if kcmp.same_file(group[0].pid, group[0].number, seen.pid, seen.number):
                    group.append(seen)
                    break
            else:
                self.groups.append([seen])
        self.held: list[int] = []
        self.backlogs = Backlogs()
        self.far: dict[int, Told] = {}
        self.far_waiting: dict[tuple[Address, Address], Told] = {}
        self.far_hosts: set[bytes] = set()
        self.part: Any = None
        self.said: list[str] = []

    def later(self, make: Any) -> None:
        self.part = make

    def say(self, line: str) -> None:
        self.said.append(line)

    def save_contents(self, path: str) -> bool:
        return self.files == "save" and (not self.paths or path in self.paths)

    def in_saved_folder(self, path: str) -> bool:
        return any(path.startswith(f"{folder}/") for folder in self.paths)

    def vpid(self, pid: int) -> int:
        return pid if pid in self.processes() else 0

    def object_of(self, pid: int, number: int) -> int | None:
        for index, group in enumerate(self.groups):
            if any((seen.pid, seen.number) == (pid, number) for seen in group):
                return index
        return None

    def processes(self) -> list[int]:
        return list(dict.fromkeys(seen.pid for seen in self.descriptors))

    def hold(self, pid: int, number: int) -> int:
        from torpor.linux import pidfd

        process = os.pidfd_open(pid)
        try:
            fd = pidfd.copy(process, number)
        finally:
            os.close(process)
        self.held.append(fd)
        return fd

    def save(self) -> list[tuple[DescriptorService, Any]]:
        """Survey and capture every object; each record goes through the manifest's encoding."""
        out = []
        for group in self.groups:
            seen = group[0]
            service = service_for(seen, self)
            refusal = service.survey(seen, self)
            assert refusal is None, refusal
            record = service.capture(self.hold(seen.pid, seen.number), seen, self)
            if self.part is not None:
                record, self.part = self.part(), None
            raw = msgspec.msgpack.encode(record)
            named = service_named(service.name)
            assert named is service
            out.append((service, msgspec.msgpack.decode(raw, type=service.record)))
        for fd in self.held:
            os.close(fd)
        self.held.clear()
        return out


class FakeRestart:
    """Makes the objects of a FakeJob again, in this process."""

    def __init__(
        self,
        source: Any,
        standard: Sequence[int] = (0, 1, 2),
        files: str = "auto",
        changed_files: str = "refuse",
    ) -> None:
        self.source: Any = source
        self.standard, self.files, self.changed_files = standard, files, changed_files
        self.checkpoint = "train@3"
        self.said: list[str] = []
        self.undos: list[Callable[[], None]] = []
        self.made: dict[int, int] = {}
        self.common: dict[tuple[str, int], tuple[Any, Callable[[Any], None]]] = {}

    def shared(self, key: tuple[str, int], make: Callable[[], Any], close: Callable[[Any], None]) -> Any:
        if key not in self.common:
            self.common[key] = make(), close
        return self.common[key][0]

    def object(self, number: int) -> int:
        return self.made[number]

    def at_release(self, do: Callable[[], None]) -> None:
        raise AssertionError("there are no other hosts")

    def far(self, ino: int) -> int:
        return -1

    def host_pid(self, vpid: int) -> int:
        return vpid

    def as_process(self, pid: int, do: Callable[..., Any], *arguments: Any) -> Any:
        return do(*arguments)

    def say(self, line: str) -> None:
        self.said.append(line)

    def on_failure(self, undo: Callable[[], None]) -> None:
        self.undos.append(undo)

    def make(self, saved: list[tuple[DescriptorService, Any]], finish: bool = True) -> list[int]:
        """Our descriptors for the objects, in order."""
        todo = set(range(len(saved)))
        while todo:
            ready = [n for n in sorted(todo) if not set(saved[n][0].needs(saved[n][1])) & todo]
            assert ready, "objects need each other"
            for number in ready:
                service, record = saved[number]
                self.made[number] = service.create(record, self)
            todo -= set(ready)
        for thing, close in self.common.values():
            close(thing)
        self.common.clear()
        if finish:
            for number, (service, record) in enumerate(saved):
                service.finish(record, self.made[number], self)
        return [self.made[number] for number in range(len(saved))]

    def undo(self) -> None:
        for step in reversed(self.undos):
            step()


def flags_of(fd: int) -> int:
    """Flags as fdinfo shows them, without O_CLOEXEC."""
    return look(fd).flags & ~os.O_CLOEXEC
