"""What a service is: the interface that every module of this folder, and every third party's service, implements.

A service knows one thing the kernel keeps for a program: what it is, where it can be read, how it is asked for again.
It does so in five steps.

    survey   could it be saved?  Reads /proc only; touches nothing; the job is running.
    capture  the frozen record of it.  The job is stopped (or goes on already, where a service says that it can wait:
             `ProcessService.afterwards`); bulk data leaves through `job.sink`.
    plan     (pure) which other objects must exist first.
    create   ask the kernel for it again.
    finish   what can only be done once everything else exists.

Services come in scopes, each a Protocol below: `DescriptorService` (an open file description), `ProcessService`,
`ThreadService`. Memory areas are in `posix/memory`. A record is a frozen `msgspec.Struct` of plain values;
it is what stands in the manifest, so its shape is part of the format: fields may be added with a default, never
changed in meaning.

Calls that only the task itself can make are returned as data (`tracee.call.Call`); the pipeline gathers those of
all services into one batch for each task.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from enum import IntEnum
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import msgspec

from torpor.model.data import Sink, Source
from torpor.model.errors import Refusal
from torpor.tracee.call import Answer, Call
from torpor.tracee.process import Process
from torpor.tracee.task import Task

if TYPE_CHECKING:
    from torpor.posix.backlog import Backlogs
    from torpor.posix.far import Told
    from torpor.posix.socket_address import Address

T = TypeVar("T")


class Stage(IntEnum):
    """When, during the recreation of a task, a call is made. Stages of all tasks of a job are in step."""

    PLACE = 1
    """Every open file description of the job is at hand (`tracee.call.Object`), none is at its number yet."""
    PROCESS = 2
    """Memory and descriptors are in place."""
    THREAD = 3
    """All threads exist."""
    CLOCKS = 4
    """The last moment before the release at which the task still has every capability: whatever starts to run."""
    LAST = 5
    """Identity is dropped to what was saved; nothing comes after this."""


Steps = Mapping[Stage, Sequence[Call]]


class Descriptor(msgspec.Struct, frozen=True):
    """One descriptor as /proc shows it. Equal open file descriptions are recognised later, by kcmp."""

    pid: int
    """Host pid of the process."""
    process: str
    """Its name (comm)."""
    number: int
    target: str
    """What /proc/PID/fd/N points to: '/path', '/path (deleted)', 'pipe:[123]', 'anon_inode:[eventfd]'."""
    mode: int
    """st_mode of the open file; 0 if it could not be read."""
    dev: int
    ino: int
    rdev: int
    flags: int
    """Open flags as fdinfo shows them, O_CLOEXEC included if this descriptor closes on exec."""
    pos: int
    mnt_id: int
    info: tuple[str, ...]
    """All lines of fdinfo."""

    @property
    def access(self) -> int:
        """O_RDONLY (0), O_WRONLY (1) or O_RDWR (2)."""
        return self.flags & 3

    def refuse(self, thing: str, way_out: str) -> Refusal:
        """A refusal that names this descriptor."""
        return Refusal(self.pid, self.process, f"descriptor {self.number} is {thing}", way_out)


class Stream(msgspec.Struct, frozen=True):
    """A descriptor that the job inherited from outside at its start.

    number: 0, 1 or 2 where it became standard input, output or error; otherwise the number at the start.
    fd: our own descriptor for the same open file description, or -1 if we have none (job attached to by pid).
    """

    number: int
    fd: int


class Job(Protocol):
    """What a service may know of the job while it is being surveyed or captured."""

    @property
    def descriptors(self) -> Sequence[Descriptor]:
        """Every descriptor of every process of the job."""
        ...

    streams: Sequence[Stream]
    sink: Sink
    """Where bulk data goes (capture only)."""
    files: str
    """The files policy: 'auto', 'keep', 'save'."""
    backlogs: Backlogs
    """What is known of connections that wait to be accepted (capture only)."""
    far: Mapping[int, Told]
    """Connections with other hosts of the job, by the inode number of their end here (capture only)."""
    far_waiting: Mapping[tuple[Address, Address], Told]
    """Those that wait here to be accepted, by address here, address there (capture only)."""
    far_hosts: Collection[bytes]
    """Addresses of other hosts of the job, packed (capture only)."""

    def save_contents(self, path: str) -> bool:
        """Does the policy ask for the contents of the regular file `path` to be saved?"""
        ...

    def in_saved_folder(self, path: str) -> bool:
        """Is it in a folder that is saved whole (posix/scratch.py), whoever has it open?"""
        ...

    def vpid(self, pid: int) -> int:
        """The pid of a process of the job as the job sees it; 0 if it is not in the job."""
        ...

    def object_of(self, pid: int, number: int) -> int | None:
        """The number, in the job-wide table, of the open file description behind a descriptor (capture only)."""
        ...

    def adopt(self, fd: int) -> int:
        """The number of the object behind a descriptor of our own that was found inside another object, in flight
        (capture only). Takes `fd` over. Nobody else needs to have the object open."""
        ...

    def maps(self, dev: int, ino: int) -> bool:
        """Does a process of the job map this file, shared and writable?"""
        ...

    def processes(self) -> Iterable[int]:
        """The host pids of all processes of the job."""
        ...

    def later(self, make: Callable[[], msgspec.Struct]) -> None:
        """Called within `capture`: the record that it returns stands in for the one that `make` returns once the job
        goes on (capture only). For bulk data that was set aside, such as the clone of a file."""
        ...

    def say(self, line: str) -> None:
        """Tell the user something about this checkpoint (capture only)."""
        ...

    def hold(self, pid: int, number: int) -> int:
        """Our own descriptor for the job's open file description (pidfd_getfd); the job closes it at the end."""
        ...


class Restart(Protocol):
    """What a service may use while open file descriptions are created again, in the restarting process."""

    source: Source
    checkpoint: str
    """The checkpoint's name as users know it, for example `train@3`."""
    standard: Sequence[int]
    """The descriptors that stand for the job's standard input, output and error now."""
    files: str
    """The files policy of the restart: 'auto', 'keep'."""

    changed_files: str
    """Files that were only read and differ now: 'refuse' or 'accept'."""

    def shared(self, key: tuple[str, int], make: Callable[[], Any], close: Callable[[Any], None]) -> Any:
        """Something that several objects have in common (the pipe behind two ends): made at the first call with this
        key, handed out at each, closed when all objects exist."""
        ...

    def object(self, number: int) -> int:
        """Our descriptor of an object that exists already."""
        ...

    def far(self, ino: int) -> int:
        """A descriptor of the end of a connection with another host, which was made already; ino: its inode number when
        it was saved. -1 if there is none: this host is restarted alone."""
        ...

    def devpts(self) -> int:
        """A descriptor of the root of a devpts instance of the job's own (linux/devpts.py), which the job will find at
        /dev/pts; made at the first call. Raises OSError."""
        ...

    def host_pid(self, vpid: int) -> int:
        """`finish` only: the host pid of a recreated process (or thread)."""
        ...

    def at_release(self, do: Callable[[], None]) -> None:
        """`finish` only: to be done at the very last, when the job is whole on all its hosts, and nothing of it has run
        yet. What it raises fails the restart; where that happens on another host, it is not called."""
        ...

    def as_process(self, pid: int, do: Callable[..., Any], *arguments: Any) -> Any:
        """What `do` returns, called by a process that has that number in the job, for what remembers who made it.
        0: somebody outside, played by ourselves; so are those whose number cannot be had. `create` only.

        That process shares our descriptors and nothing else: `do` is a function of a module, arguments and result are
        plain values (tuples may come as lists). Raises OSError and RestartFailed as it does."""
        ...

    def say(self, line: str) -> None:
        """Tell the user something about this restart (not an error), for example what became of a file."""
        ...

    def on_failure(self, undo: Callable[[], None]) -> None:
        """What to do to leave nothing behind, if the restart fails later."""
        ...


class Late(msgspec.Struct, frozen=True):
    """A file that only the job itself can open again, once all its processes and threads exist: by its path, with
    these flags, at this position."""

    path: bytes
    flags: int
    position: int = 0


class DescriptorService(Protocol):
    """A kind of open file description.

    Steps that few have, looked for by their names: `inside(fd, seen, job)` makes what is in flight in it objects of the
    job; `ended(fd, record)`: a saved job is about to be ended by us; `create_late(record, restart)` makes it once all
    processes exist, in place of what `create` has made; `last(record, fd, restart)` is the very last, when the restart
    touches nothing else any more; `highest_number(record)`: the largest number of a descriptor that `place` uses;
    `plan_turns` and `turn`: see posix/backlog.py.
    """

    name: str
    """Stands in the manifest; unique."""
    record: type[msgspec.Struct]

    def claims(self, seen: Descriptor) -> bool:
        """Is this descriptor of the kind? Decided from what /proc shows; the first service that says so has it."""
        ...

    def survey(self, seen: Descriptor, job: Job) -> Refusal | None:
        """Why it cannot be saved, if it cannot."""
        ...

    def capture(self, fd: int, seen: Descriptor, job: Job) -> msgspec.Struct:
        """The record. `fd` is our own copy of the same open file description; using it must leave no trace (no
        offset moved, nothing consumed). `seen` is one of possibly several descriptors of it."""
        ...

    def needs(self, record: Any) -> Iterable[int]:
        """Numbers of objects that must exist before `create`."""
        ...

    def create(self, record: Any, restart: Restart) -> int:
        """A new descriptor of the same thing, in the restarting process. Raises RestartFailed or Refused."""
        ...

    def place(self, record: Any, number: int) -> Sequence[Call]:
        """Calls to be made at stage PLACE in one process that has the object (number `number`)."""
        ...

    def finish(self, record: Any, fd: int, restart: Restart) -> None:
        """Everything exists, all tasks are still stopped; clocks start now."""
        ...

    def late(self, record: Any) -> Late | None:
        """What every process that has it opens in its place at the end; None for nearly everything."""
        ...


class ProcessService(Protocol):
    """Something the kernel keeps once for a process.

    afterwards (False where it is not said): may `capture` wait until the job goes on? Then it says nothing but what the
    answers say, and what `Process` and `Task` have kept since the stop: `status`, `stat`, `waiting`, `tasks`, numbers,
    registers. Every service of which this is true makes the pause shorter.

    captures_all (likewise): does `capture` refuse all that `survey` refuses? Then the survey of the stopped job leaves
    it out, since it would look twice.
    """

    name: str
    record: type[msgspec.Struct]
    captures_all: bool

    def survey(self, pid: int) -> Iterable[Refusal]:
        """Why process `pid` (host pid) cannot be saved, as far as /proc tells; the process may be running."""
        ...

    def ask(self, process: Process) -> Sequence[Call]:
        """Calls whose answers `capture` needs; run in the stopped process' first thread."""
        ...

    def capture(self, process: Process, answers: Sequence[Answer]) -> msgspec.Struct | None:
        """The record; None where there is nothing to restore. May raise Refused."""
        ...

    def restore(self, record: Any, process: Process) -> Steps:
        """The calls that bring it back, by stage, run in the first thread. `process` is the recreated one."""
        ...

    def outside(self, record: Any, process: Process) -> None:
        """What the restarting process does for it from outside, after stage PROCESS (prlimit, oom_score_adj)."""
        ...


class ThreadService(Protocol):
    """Something the kernel keeps for each thread. afterwards: see ProcessService.  questions: calls whose answers
    `capture` needs, the same for every thread; run in the stopped thread.  odd (False where it is not said): a plain
    thread (Task.plain) has none of it."""

    name: str
    record: type[msgspec.Struct]

    @property
    def questions(self) -> Sequence[Call]: ...

    def survey(self, pid: int, tid: int, status: Mapping[str, str]) -> Iterable[Refusal]:
        """The same for a thread. status: its /proc/PID/task/TID/status."""
        ...

    def capture(self, task: Task, answers: Sequence[Answer]) -> msgspec.Struct | None: ...

    def restore(self, record: Any, task: Task) -> Steps: ...

    def outside(self, record: Any, task: Task) -> None: ...


class JobService(Protocol):
    """Something the kernel keeps for an IPC namespace, and so for the whole job."""

    name: str
    record: type[msgspec.Struct]

    def capture(self, job: Job, processes: Sequence[Process]) -> msgspec.Struct | None:
        """The record; None where there is nothing. `processes`: all that are stopped, the first one first. May raise
        Refused: nothing has been changed yet."""
        ...

    def create(self, record: Any, processes: Mapping[int, Process], source: Source) -> None:
        """Make it again: `processes` are the stubs by their pids in the job, still with memory of their own and every
        capability; the first one comes first. Raises RestartFailed."""
        ...

    def finish(self, record: Any, processes: Mapping[int, Process]) -> None:
        """All memory is mapped and filled, clocks have not started."""
        ...


class JobBase:
    """Defaults for the steps a job service often does not need."""

    def finish(self, record: Any, processes: Mapping[int, Process]) -> None:
        return None


class DescriptorBase:
    """Defaults for the steps a descriptor service often does not need."""

    def survey(self, seen: Descriptor, job: Job) -> Refusal | None:
        return None

    def needs(self, record: Any) -> Iterable[int]:
        return ()

    def place(self, record: Any, number: int) -> Sequence[Call]:
        return ()

    def finish(self, record: Any, fd: int, restart: Restart) -> None:
        return None

    def late(self, record: Any) -> Late | None:
        return None


class ProcessBase:
    """Defaults for the steps a process service often does not need."""

    afterwards = False
    captures_all = False

    def survey(self, pid: int) -> Iterable[Refusal]:
        return ()

    def ask(self, process: Process) -> Sequence[Call]:
        return ()

    def restore(self, record: Any, process: Process) -> Steps:
        return {}

    def outside(self, record: Any, process: Process) -> None:
        return None


class ThreadBase:
    """Defaults for the steps a thread service often does not need."""

    afterwards = odd = False
    questions: Sequence[Call] = ()

    def survey(self, pid: int, tid: int, status: Mapping[str, str]) -> Iterable[Refusal]:
        return ()

    def restore(self, record: Any, task: Task) -> Steps:
        return {}

    def outside(self, record: Any, task: Task) -> None:
        return None
