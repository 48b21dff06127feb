"""The manifest: what a checkpoint says of a job, as typed records.

Services keep their own records (`posix`); here they stand opaque, by the name of the service, so that a reader
without some third party's service can still list what there is. Fields may be added with a default, never changed in
meaning.
"""

from __future__ import annotations

import msgspec

from torpor.model.ledger import Ledger
from torpor.model.terms import Terms
from torpor.posix.contents import Contents
from torpor.posix.cpu import CpuRecord
from torpor.posix.memory.area import AreaRecord
from torpor.posix.memory.layout import LayoutRecord
from torpor.posix.memory.objects import MemoryObjectRecord
from torpor.posix.memory.pages import PagesRecord
from torpor.posix.owner import Owner
from torpor.posix.paths import FileIdentity
from torpor.posix.scratch import Scratch

Services = dict[str, msgspec.Raw]
"""Records of services by the service's name."""


class MachineRecord(msgspec.Struct, frozen=True):
    """What the machine was like. cpu: its feature flags. xsave: bytes of the extended CPU state."""

    host: str
    kernel: str
    arch: str
    boot: str
    cpu: tuple[str, ...]
    xsave: int
    uid: int
    gid: int


class ClockRecord(msgspec.Struct, frozen=True):
    """The job's clocks at the pause, nanoseconds."""

    realtime: int
    monotonic: int
    boottime: int


class TerminalRecord(msgspec.Struct, frozen=True):
    """The terminal the job had inherited. foreground: the process group in front, as the job sees it (0: not of the
    job). termios: as tcgetattr gives it, encoded by posix.terminal."""

    foreground: int
    termios: bytes = b""


class FileRecord(msgspec.Struct, frozen=True):
    """A file that is mapped or run, or of which there is a copy since the job has it open for reading. written: the job
    had it open for writing or mapped it shared and writable, so that it may differ at the restart."""

    identity: FileIdentity
    written: bool
    contents: Contents | None = None
    """Of a file in memory (POSIX shared memory) that the job maps and has not open."""
    restored: bool = False
    """Its contents come back, with these or with an open file's."""
    copy: Contents | None = None
    """Of a file that is only read: for a machine that has nothing at its path."""


class ObjectRecord(msgspec.Struct, frozen=True):
    """An open file description, shared by the descriptors that name it by its place in Manifest.objects."""

    service: str
    state: msgspec.Raw
    owner: Owner | None = None


class DescriptorRecord(msgspec.Struct, frozen=True):
    number: int
    object: int
    cloexec: bool


class ThreadRecord(msgspec.Struct, frozen=True):
    """A thread; tid as it sees it itself."""

    tid: int
    cpu: CpuRecord
    services: Services


class ProcessRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A process; pids as the job sees them.

    parent: its parent's pid; `outside` if that is not in the job. state: 'running', 'stopped' or 'zombie'.
    stop_signal: what it was stopped by; stop_reported: its parent has seen that. continued: it goes on after a stop,
    which its parent has not seen yet. exit_code: the wait status of a zombie. The leader's thread comes first; if the
    leader has exited, `leader_exited` is set and it is not among the threads. guards: guard pages, (address, size).
    """

    pid: int
    parent: int
    outside: bool
    pgid: int
    sid: int
    comm: str
    state: str
    stop_signal: int = 0
    stop_reported: bool = False
    continued: bool = False
    exit_code: int = 0
    leader_exited: bool = False
    has_terminal: bool = False
    threads: tuple[ThreadRecord, ...] = ()
    descriptors: tuple[DescriptorRecord, ...] = ()
    areas: tuple[AreaRecord, ...] = ()
    pages: PagesRecord = PagesRecord()
    guards: tuple[tuple[int, int], ...] = ()
    layout: LayoutRecord | None = None
    exe: int = -1
    services: Services = {}


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """A whole job. Processes in the order they were found: parents before their children."""

    job: str
    created: float
    torpor: str
    machine: MachineRecord
    clocks: ClockRecord
    root: int
    parent_is_reaper: bool
    """The root's parent outside the job was also where the job's orphans went (torpor's own supervisor)."""
    processes: tuple[ProcessRecord, ...]
    objects: tuple[ObjectRecord, ...]
    memory: tuple[MemoryObjectRecord, ...]
    files: tuple[FileRecord, ...]
    terminal: TerminalRecord | None = None
    services: Services = {}
    """What the kernel keeps for the whole job (posix/job_services.py). A job that has any is restarted in an IPC
    namespace of its own."""
    scratch: Scratch = Scratch()
    """Files that belong to the job although it does not have them open."""
    vdso: bytes = b""
    """The kernel's own code, as the processes see it."""
    ledger: Ledger | None = None
    """The outside addresses that the job has asked for, if it was watched; it is then watched again."""
    forgotten: tuple[str, ...] = ()
    """What was left out by choice (--forget), in words."""
    terms: Terms | None = None
    """The policy in force at the checkpoint, and what goes with it; None where there was none."""
