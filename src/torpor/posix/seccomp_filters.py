"""Filters for system calls that a program has put upon itself (seccomp).

They are kept for each thread, oldest first, and read with PTRACE_SECCOMP_GET_FILTER; that, and running calls in a
thread in spite of them (PTRACE_O_SUSPEND_SECCOMP, see tracee/process.py), takes CAP_SYS_ADMIN and a torpor without
filters of its own; without, such a program is refused. They come back while the thread still has
every capability, suspended until the release.

Filters that bind torpor as well (a container's) are no business of ours: the restarted job inherits them again. Nor is
the one that torpor itself has put on a job that is watched (watch/wrapper.py): a restart puts it on anew.

Source: seccomp(2), ptrace(2), kernel/seccomp.c (get_nth_filter).
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import msgspec

from torpor.linux import capability, proc, ptrace, seccomp_notify
from torpor.linux.arch.x86_64 import NR
from torpor.model.errors import Refusal, RestartFailed
from torpor.posix.obstacles import Seen
from torpor.posix.service import Stage, Steps, ThreadBase
from torpor.tracee.call import Answer, Call, In, call
from torpor.tracee.task import Task

_GET_FILTER, _GET_METADATA = 0x420C, 0x420D
_PR_SET_SECCOMP, _STRICT = 22, 1
_SET_MODE_FILTER, _FLAG_LOG = 1, 2
_MOST = 4096 * 8
"""Bytes of the longest filter (BPF_MAXINSNS)."""
_MODES = {1: "strict mode", 2: "filters"}


def survey(seen: Seen, watched: bool) -> Iterator[Refusal]:
    """Why a thread's filters stand in the way: one that we can neither read nor suspend would kill it for our calls.

    watched: torpor has put one filter on the job before it began. Unprivileged, it is told by there being one more than
    torpor has, since filters are only ever added.
    """
    if not of_its_own(seen.status, watched):
        return
    if proc.status(os.getpid())["Seccomp"] == "0" and capability.have(capability.SYS_ADMIN):
        return
    mode = int(seen.status["Seccomp"])
    yield seen.refuse(
        f"uses seccomp ({_MODES.get(mode, mode)})", "do this as root, or run the program without its sandbox"
    )


def of_its_own(status: Mapping[str, str], watched: bool) -> bool:
    """Has a thread put filters upon itself? status: what /proc says of it. watched: see `survey`."""
    mode = int(status.get("Seccomp", "0"))
    if not mode:
        return False
    own = proc.status(os.getpid())
    expected = int(own.get("Seccomp_filters", "0")) + watched
    same = mode == (int(own["Seccomp"]) or (2 if watched else 0))
    return not (same and status.get("Seccomp_filters") == str(expected))


class SeccompFilter(msgspec.Struct, frozen=True):
    """A filter: instructions (struct sock_filter) and flags for seccomp(2)."""

    program: bytes
    flags: int = 0


class Seccomp(msgspec.Struct, frozen=True):
    """mode: 1 strict, 2 filters."""

    mode: int
    filters: tuple[SeccompFilter, ...] = ()


class SeccompService(ThreadBase):
    name = "seccomp"
    odd = True
    record: type[msgspec.Struct] = Seccomp

    def capture(self, task: Task, answers: Sequence[Answer]) -> Seccomp | None:
        mode = int(task.status.get("Seccomp", "0"))
        if not mode or proc.status(os.getpid()).get("Seccomp", "0") != "0":
            return None
        if mode == _STRICT:
            return Seccomp(mode)
        try:
            found = filters(task.tid)
        except OSError:
            return None  # we may not read them, so the survey has made sure that there is but ours
        others = tuple(one for one in found if not seccomp_notify.ours(one.program))
        return Seccomp(mode, others) if others else None

    def restore(self, record: Any, task: Task) -> Steps:
        if record.mode == _STRICT:
            return {Stage.LAST: [call(NR.prctl, _PR_SET_SECCOMP, _STRICT, 0, 0, 0)]}
        return {Stage.LAST: [_install(one) for one in record.filters]}

    def outside(self, record: Any, task: Task) -> None:
        options = ptrace.O_EXITKILL | ptrace.O_TRACECLONE | ptrace.O_TRACESYSGOOD | ptrace.O_SUSPEND_SECCOMP
        try:
            ptrace.request(ptrace.SETOPTIONS, task.tid, 0, options)
        except OSError as error:
            raise RestartFailed(
                f"thread {task.vtid} had seccomp filters, which take CAP_SYS_ADMIN here ({error.strerror}); "
                "restart as root"
            ) from None


def _install(one: SeccompFilter) -> Call:
    count = len(one.program) // 8
    program = struct.pack("<HxxxxxxQ", count, 0)
    return call(NR.seccomp, _SET_MODE_FILTER, one.flags, In(program, ((8, In(one.program)),)))


def filters(tid: int) -> tuple[SeccompFilter, ...]:
    """The filters of a stopped thread that we trace, oldest first. Raises OSError (EACCES: no CAP_SYS_ADMIN)."""
    found: list[SeccompFilter] = []
    room = ctypes.create_string_buffer(_MOST)
    while True:
        try:
            count = ptrace.request(_GET_FILTER, tid, len(found), ctypes.addressof(room))
        except OSError as error:
            if error.errno == errno.ENOENT:
                return tuple(found)
            raise
        about = ctypes.create_string_buffer(struct.pack("<QQ", len(found), 0), 16)
        try:
            ptrace.request(_GET_METADATA, tid, 16, ctypes.addressof(about))
        except OSError:
            pass  # before Linux 4.17
        found.append(SeccompFilter(room.raw[: count * 8], struct.unpack("<QQ", about.raw)[1] & _FLAG_LOG))
