"""pidfd: a descriptor for a process.

The kernel keeps the process it is for (which may have ended, and even been waited for) and the flags PIDFD_NONBLOCK
and PIDFD_THREAD; fdinfo shows the pid, -1 once it has been waited for.

A pidfd of a process of the job, zombies included, is made once that process exists again, and handed to the others
over a socket; one of a process that is gone is made of another one that is gone. A pidfd of a living process outside
the job is refused, as the process will not be there; so is one of a single thread other than the first.

Source: pidfd_open(2), kernel/pid.c, fs/pidfs.c.
"""

from __future__ import annotations

import os
import socket

import msgspec

from torpor.linux import namespaces, proc
from torpor.linux.arch.x86_64 import NR
from torpor.linux.libc import syscall
from torpor.model.errors import Refusal, Refused, RestartFailed
from torpor.posix.descriptors import fresh_info, info_value
from torpor.posix.service import Descriptor, DescriptorBase, Job, Restart

NONBLOCK = os.O_NONBLOCK
THREAD = os.O_EXCL


class ProcessDescriptor(msgspec.Struct, frozen=True):
    """pid: as the job sees it; 0: a process that has been waited for."""

    pid: int
    flags: int
    holder: int = 0
    """A process that has the descriptor, as the job sees it: tells the PID namespace."""


class PidfdService(DescriptorBase):
    name = "pidfd"
    record = ProcessDescriptor

    def claims(self, seen: Descriptor) -> bool:
        return seen.target == "anon_inode:[pidfd]" or seen.target.startswith("pidfd:")

    def survey(self, seen: Descriptor, job: Job) -> Refusal | None:
        pid = int(info_value(seen.info, "Pid") or "0")
        if pid < 0 or job.vpid(pid) or _ended(pid):
            return None
        if pid == 0:
            return seen.refuse("a pidfd of a process in another PID namespace", "close it before the checkpoint")
        inside = next((one for one in job.processes() if os.path.exists(f"/proc/{one}/task/{pid}")), 0)
        if inside:
            return seen.refuse(f"a pidfd of the thread {pid}", "not supported yet; use one of its process")
        who = f"process {pid} ({proc.comm(pid)})"
        return seen.refuse(f"a pidfd of {who}, which is not in the job", "start both in one job, or close it")

    def capture(self, fd: int, seen: Descriptor, job: Job) -> ProcessDescriptor:
        pid = int(info_value(fresh_info(fd), "Pid") or "0")
        inner = job.vpid(pid) if pid > 0 else 0
        if pid > 0 and not inner and not _ended(pid):
            refusal = self.survey(seen, job)
            raise Refused([refusal or seen.refuse("a pidfd of a process outside the job", "close it")])
        return ProcessDescriptor(inner, seen.flags & (NONBLOCK | THREAD), job.vpid(seen.pid))

    def create(self, record: ProcessDescriptor, restart: Restart) -> int:
        pid = os.fork()
        if pid == 0:
            os._exit(0)
        try:
            return _open(pid, record.flags)
        finally:
            os.waitpid(pid, 0)

    def create_late(self, record: ProcessDescriptor, restart: Restart) -> int:
        """Once all processes exist: the descriptor that takes the place of the one `create` has made, or -1."""
        if record.pid:
            return _open(restart.host_pid(record.pid), record.flags)
        return _gone(restart.host_pid(record.holder), record.flags) if record.holder else -1


def _open(pid: int, flags: int) -> int:
    return syscall(NR.pidfd_open, pid, flags)


def _gone(neighbour: int, flags: int) -> int:
    """A pidfd of a process that has been waited for, in the PID namespace of a process (host pid)."""
    there, here = socket.socketpair()
    middle = os.fork()
    if middle == 0:
        try:
            namespaces.enter(neighbour, ("user", "pid"))
            pid = os.fork()
            if pid == 0:
                os._exit(0)
            # The number it has here is not one we could use: the descriptor itself is handed over.
            socket.send_fds(there, [b"p"], [_open(pid, flags)])
            os.waitpid(pid, 0)
        finally:
            os._exit(0)
    there.close()
    try:
        _, fds, _, _ = socket.recv_fds(here, 1, 1)
    finally:
        here.close()
        os.waitpid(middle, 0)
    if not fds:
        raise RestartFailed("cannot make a pidfd of a process that has ended")
    return fds[0]


def _ended(pid: int) -> bool:
    try:
        proc.stat(pid)
        return False
    except OSError:
        return True


SERVICE = PidfdService()
