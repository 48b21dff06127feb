"""The footing that is preferred: new PID, mount and time namespaces, UTS too where it is needed, inside a user
namespace if we are not root."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from torpor.checkpoint.plan import Plan
from torpor.checkpoint.plant import (
    NOTE_NO_CLOCK,
    NOTE_NO_HOST,
    NOTE_NO_NAMES,
    NOTE_NO_PROC,
    NOTE_NO_PTS,
    NOTE_NO_QUEUES,
    Ground,
    World,
)
from torpor.linux import clone, devpts, namespaces, proc, ptrace
from torpor.posix import host_names
from torpor.tracee.stub import StubProcess

if TYPE_CHECKING:
    from torpor.checkpoint.footing import Turns
    from torpor.checkpoint.molds import Molds
    from torpor.checkpoint.own_fill import OwnFill
    from torpor.image.manifest import ProcessRecord


class Namespaces:
    """`footing.Footing` in new namespaces. user: with a user namespace around them. ipc: a new IPC namespace as well
    (the job has System V objects). molds: memory that the tree is to inherit; ours no longer, once the tree has it.
    own: memory that its processes put in themselves."""

    inherits = True
    executes = False
    chooses = True
    first = 1
    turns: Turns | None = None

    def __init__(
        self, user: bool, ipc: bool = False, molds: Molds | None = None, own: OwnFill | None = None
    ) -> None:  # fmt: skip
        self._user, self._ipc, self._molds, self._own = user, ipc, molds, own
        self._ids = os.getuid(), os.getgid()

    def fork(self, flags: int = 0) -> int:
        if self._molds is not None:
            self._molds.hand_on()
        pid = clone.fork(0, flags | namespaces.flags(self._user) | (clone.NEWIPC if self._ipc else 0))
        if pid:
            self.shed()
        return pid

    def arrive(self) -> None:
        namespaces.die_with_parent()
        if self._user:
            namespaces.map_ids(*self._ids)

    def settle(self, world: World, ground: Ground) -> None:
        if ground.clocks is not None:
            try:
                namespaces.shift_clocks(*ground.clocks)
            except OSError:
                world.tell(1, 0, NOTE_NO_CLOCK)
        try:
            namespaces.mount_proc()
        except OSError:
            world.tell(1, 0, NOTE_NO_PROC)
        if self._ipc:
            try:
                namespaces.mount_queues()
            except OSError:
                world.tell(1, 0, NOTE_NO_QUEUES)
        if ground.devpts >= 0:
            try:
                devpts.hang(ground.devpts)
            except OSError:
                world.tell(1, 0, NOTE_NO_PTS)
        if ground.names:
            try:
                namespaces.put_over(ground.names, host_names.HOSTS)
            except OSError:
                world.tell(1, 0, NOTE_NO_NAMES)
        if ground.host:
            try:
                namespaces.call_host(ground.host)
            except OSError:
                world.tell(1, 0, NOTE_NO_HOST)

    def hear(self, subject: int, value: int, step: int) -> None:
        if self._own is not None and step:
            self._own.hear(subject, value, step)

    def hosts(self, init: int, plan: Plan) -> dict[int, int]:
        found = {1: init}
        queue = [init]
        for parent in queue:
            for pid in proc.children(parent):
                found[proc.inner_pid(proc.status(pid))] = pid
                queue.append(pid)
        return found

    def make_threads(self, wanted: Sequence[tuple[StubProcess, Sequence[int]]]) -> None:
        for process, numbers in wanted:
            process.make_threads(numbers)

    def shed(self) -> None:
        if self._molds is not None:
            self._molds.drop()

    def fill(self, pid: int, tell: Callable[[int, int], None]) -> None:
        if self._molds is not None:
            self._molds.keep(pid)
        if self._own is not None:
            self._own.fill(pid, tell)

    def there(self, pid: int) -> list[tuple[int, int]]:
        return sorted(area for some in (self._molds, self._own) if some is not None for area in some.areas(pid))

    def rest(self, record: ProcessRecord) -> ProcessRecord:
        for some in (self._molds, self._own):
            record = record if some is None else some.rest(record)
        return record

    def abandoned(self) -> None:
        """Our own end is everybody's."""

    def uproot(self, init: int) -> None:
        """The end of PID 1 ends its whole namespace."""
        try:
            os.kill(init, signal.SIGKILL)
        except ProcessLookupError:
            return
        while True:
            try:
                # Tracees of ours are to be waited for as well before PID 1 can go (pid_namespaces(7)).
                pid, _ = os.waitpid(-1, ptrace.WALL)
            except ChildProcessError:
                return
            if pid == init:
                return
