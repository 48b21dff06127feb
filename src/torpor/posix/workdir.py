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
from torpor.model.errors import Refusal, Refused, RestartFailed
from torpor.named_tuple import NamedTuple
from torpor.posix.directory import free_name
from torpor.posix.paths import DELETED
from torpor.posix.service import ProcessBase, Stage, Steps
from torpor.tracee.call import Answer, In, call
from torpor.tracee.process import Process


class Workdir(msgspec.Struct, frozen=True):
    """directory: absolute path, as the job sees it (file-system encoding)."""

    directory: bytes
    umask: int
    removed: bool = False


class Look(NamedTuple):
    """What was seen of a process. where: what its working directory is called.  removed: it is nowhere any more.
    obstacle: what stands in the way of saving it and the way out, ('', '') for nothing."""

    where: str
    removed: bool
    obstacle: tuple[str, str] = ("", "")


def look(pid: int) -> Look:
    """Raises OSError where the process has ended."""
    root = os.readlink(f"/proc/{pid}/root")
    if root != "/":
        return Look("", False, (f"has the root directory {root}", "not supported yet; run torpor inside of it"))
    here = f"/proc/{pid}/cwd"
    where, really = os.readlink(here), os.stat(here)
    if really.st_nlink == 0:
        return Look(where.removesuffix(DELETED), True)
    try:
        named = os.stat(f"/proc/{pid}/root{where}")
    except (FileNotFoundError, NotADirectoryError):
        named = None
    except PermissionError:
        return Look(where, False)  # a folder above it may not be searched any more: the restart will tell
    if named is None or (named.st_dev, named.st_ino) != (really.st_dev, really.st_ino):
        # It is elsewhere now, or something else is mounted or made in its place.
        thing = f"its working directory {where.removesuffix(DELETED)} is not found under that name"
        return Look(where, False, (thing, "let it chdir, or unmount what is over it"))
    return Look(where, False)


class WorkdirService(ProcessBase):
    name = "workdir"
    captures_all = True
    record: type[msgspec.Struct] = Workdir

    def survey(self, pid: int) -> Iterable[Refusal]:
        thing, way_out = look(proc.face(pid)).obstacle
        if thing:
            yield Refusal(pid, proc.comm(pid), thing, way_out)

    def capture(self, process: Process, answers: Sequence[Answer]) -> Workdir:
        seen = look(process.leader.tid)
        if seen.obstacle[0]:
            raise Refused([Refusal(process.pid, process.comm, *seen.obstacle)])
        return Workdir(os.fsencode(seen.where), int(process.status["Umask"], 8), seen.removed)

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
