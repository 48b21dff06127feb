"""Working directory, root directory and umask: what the kernel keeps in `struct fs_struct`, one per process.

The directories are what the links /proc/PID/cwd and /proc/PID/root point to, the umask stands in
/proc/PID/status. They come back by chdir(2) and umask(2) in the process. A working directory that has been
removed is made again and removed once the process is in it: it is empty, and each process has one of its own. One that
cannot be reached under its name (something is mounted over it) is refused, and so is a root directory other than the
machine's (chroot).

Threads may have a directory of their own (unshare(CLONE_FS)); see `obstacles`.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from torpor.linux import proc
from torpor.linux.arch.x86_64 import NR
from torpor.model.errors import Refusal, RestartFailed
from torpor.posix.directory import free_name
from torpor.posix.service import ProcessBase, Stage, Steps
from torpor.tracee.call import Answer, In, call
from torpor.tracee.process import Process


class Workdir(msgspec.Struct, frozen=True):
    """directory: absolute path, as the job sees it (file-system encoding)."""

    directory: bytes
    umask: int
    removed: bool = False


def removed(pid: int) -> bool:
    """Has the working directory of a process been removed, or is something else mounted or made in its
    place?"""
    here = f"/proc/{pid}/cwd"
    really = os.stat(here)
    if really.st_nlink == 0:
        return True
    try:
        named = os.stat(f"/proc/{pid}/root{os.readlink(here)}")
    except (FileNotFoundError, NotADirectoryError):
        return True
    except PermissionError:
        return False  # a folder above it may not be searched any more: the restart will tell
    return (named.st_dev, named.st_ino) != (really.st_dev, really.st_ino)


class WorkdirService(ProcessBase):
    name = "workdir"
    record: type[msgspec.Struct] = Workdir

    def survey(self, pid: int) -> Iterable[Refusal]:
        tid = proc.face(pid)
        where = os.readlink(f"/proc/{tid}/root")
        if where != "/":
            yield Refusal(
                pid,
                proc.comm(pid),
                f"has the root directory {where}",
                "not supported yet; run torpor inside of it",
            )
        elif removed(tid) and os.stat(f"/proc/{tid}/cwd").st_nlink:
            where = os.readlink(f"/proc/{tid}/cwd").removesuffix(" (deleted)")
            yield Refusal(
                pid,
                proc.comm(pid),
                f"its working directory {where} is not found under that name",
                "let it chdir, or unmount what is over it",
            )

    def capture(self, process: Process, answers: Sequence[Answer]) -> Workdir:
        here = os.fsencode(f"/proc/{process.leader.tid}/cwd")
        where, gone = os.readlink(here), os.stat(here).st_nlink == 0
        return Workdir(where.removesuffix(b" (deleted)") if gone else where, int(process.status["Umask"], 8), gone)

    def restore(self, record: Any, process: Process) -> Steps:
        if record.removed:
            path = In(os.fsencode(free_name(os.fsdecode(record.directory))) + b"\0")
            # With whatever umask torpor was started, it has to be a folder that one can go into.
            calls = [call(NR.umask, 0), call(NR.mkdir, path, 0o700), call(NR.chdir, path), call(NR.rmdir, path)]
            return {Stage.PROCESS: [*calls, call(NR.umask, record.umask)]}
        try:
            os.stat(os.fsencode(f"/proc/{process.leader.tid}/root") + record.directory)
        except (FileNotFoundError, NotADirectoryError):
            where = os.fsdecode(record.directory)
            raise RestartFailed(
                f"the working directory of process {process.vpid}, {where}, is missing; make it again"
            ) from None
        except PermissionError:
            pass  # the process itself may well get there
        return {
            Stage.PROCESS: [call(NR.chdir, In(record.directory + b"\0")), call(NR.umask, record.umask)],
        }
