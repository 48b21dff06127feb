"""Who outside a job has something of it open: /proc/PID/fd of all processes, as far as we may look."""

from __future__ import annotations

import os
import stat
from collections.abc import Container

from torpor.linux import proc
from torpor.posix.descriptors import PerJob
from torpor.posix.paths import DELETED
from torpor.posix.service import Descriptor, Job


def pipe_holder(seen: Descriptor, job: Job) -> int:
    """A process outside the job that has this pipe or named pipe open, 0 if none is seen."""
    return _pipe_holders.of(job).get((seen.dev, seen.ino), 0)


def holders(job: Job, names: Container[str]) -> dict[tuple[int, int], int]:
    """The processes outside the job that have things open whose last name (`last_name`) is among `names`: the first one
    by (device, inode). We ourselves do not count, and neither do children that the job has made since it was listed."""
    return _look({*job.processes(), os.getpid()}, names)


def _of_pipes(job: Job) -> dict[tuple[int, int], int]:
    return holders(job, {last_name(one.target) for one in job.descriptors if stat.S_ISFIFO(one.mode)})


_pipe_holders: PerJob[dict[tuple[int, int], int]] = PerJob(_of_pipes)
"""One look at all processes of the machine for all descriptors of a job."""


def users(fd: int) -> int:
    """A process other than ourselves that has open what our own descriptor is open on, 0 if none is seen."""
    st = os.fstat(fd)
    return _look({os.getpid()}, {last_name(os.readlink(f"/proc/self/fd/{fd}"))}).get((st.st_dev, st.st_ino), 0)


def last_name(target: str) -> str:
    """The last part of what /proc/PID/fd/N points to; the same for all that have it open, removed or not."""
    return target.removesuffix(DELETED).rpartition("/")[2]


def _look(inside: set[int], names: Container[str]) -> dict[tuple[int, int], int]:
    found: dict[tuple[int, int], int] = {}
    for name in os.listdir("/proc"):
        if not name.isdigit() or int(name) in inside:
            continue
        try:
            for number in os.listdir(f"/proc/{name}/fd"):
                link = f"/proc/{name}/fd/{number}"
                try:
                    if last_name(os.readlink(link)) not in names:
                        continue
                    st = os.stat(link)
                except OSError:
                    continue
                if (st.st_dev, st.st_ino) not in found and not _descends(int(name), inside):
                    found[st.st_dev, st.st_ino] = int(name)
        except OSError:
            continue  # gone, or not ours to look at
    return found


def _descends(pid: int, inside: set[int]) -> bool:
    """Is it a child of a process that we know, made since they were listed?"""
    while pid > 1:
        pid = proc.stat(pid).ppid
        if pid in inside and pid != os.getpid():
            return True
    return False
