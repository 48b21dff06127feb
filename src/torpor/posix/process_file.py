"""Files and folders of a process below /proc, held open (`/proc/self/stat`, `/proc/self/fd`).

The kernel keeps for one: whose it is, what it shows, flags and the position. It is found again by its name once all
processes and threads are there again, by whoever has it open: /proc shows the job's numbers to the job only. So a file
that several processes share is afterwards open in each by itself, at the same position.

One of a process that is not in the job (any more) comes back as what it is when that process is gone: reading it gives
ESRCH.

Source: proc(5), fs/proc/base.c.
"""

from __future__ import annotations

import os
import signal
import stat

import msgspec

from torpor.posix.descriptors import AT_OPEN, O_PATH, status_flags
from torpor.posix.directory import process_files
from torpor.posix.service import Descriptor, DescriptorBase, Job, Late, Restart


class ProcessFile(msgspec.Struct, frozen=True):
    """name: its path. flags, position: of the open file. inside: its process is in the job."""

    name: bytes
    flags: int
    position: int
    inside: bool


class ProcessFileService(DescriptorBase):
    name = "process_file"
    record = ProcessFile

    def claims(self, seen: Descriptor) -> bool:
        kind = stat.S_IFMT(seen.mode)
        return kind in (stat.S_IFREG, stat.S_IFDIR) and not seen.flags & O_PATH and process_files(seen.target) > 0

    def capture(self, fd: int, seen: Descriptor, job: Job) -> ProcessFile:
        owner = process_files(seen.target)
        inside = any(job.vpid(pid) == owner for pid in job.processes())
        return ProcessFile(os.fsencode(seen.target), status_flags(fd), os.lseek(fd, 0, os.SEEK_CUR), inside)

    def create(self, record: ProcessFile, restart: Restart) -> int:
        """The same file of a process that has ended."""
        rest = os.fsdecode(record.name).split("/", 3)[3:]
        child = os.fork()
        if child == 0:
            while True:
                signal.pause()
        try:
            folder = f"/proc/{child}"
            try:
                return os.open("/".join([folder, *rest]), record.flags & AT_OPEN | os.O_CLOEXEC)
            except OSError:
                directory = record.flags & os.O_DIRECTORY
                return os.open(folder if directory else f"{folder}/stat", os.O_RDONLY | os.O_CLOEXEC)
        finally:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)

    def late(self, record: ProcessFile) -> Late | None:
        return Late(record.name, record.flags & AT_OPEN, record.position) if record.inside else None


SERVICE = ProcessFileService()
