"""Who is sent a signal when an open file description becomes ready (fcntl F_SETOWN, F_SETSIG, O_ASYNC).

The kernel keeps with every open file description: a thread, process or process group, the signal, and whether
signals are sent at all (the flag O_ASYNC), and the number of the descriptor by which that was asked for (si_fd).
All but that number are read through our own copy of the description, and set again once all processes and threads
exist; O_ASYNC by the process itself, through the lowest number of the first process that has it. An owner that is
not in the job any more, or never was, is left out: it got the signals, not the job.

Not the same afterwards: the signals are sent by the right of the user who restarted the job (F_SETOWN notes it
down).

Source: fcntl(2), fs/fcntl.c.
"""

from __future__ import annotations

import fcntl
import os
import struct

import msgspec

from torpor.linux import proc
from torpor.posix.descriptors import O_ASYNC
from torpor.posix.service import Job, Restart

_F_SETOWN_EX, _F_GETOWN_EX, _F_SETSIG, _F_GETSIG = 15, 16, 10, 11
TID, PID, PGRP = 0, 1, 2


class Owner(msgspec.Struct, frozen=True):
    """kind: TID, PID or PGRP. number: as the job sees it; 0: nobody. signal: 0 for the usual one (SIGIO)."""

    kind: int
    number: int
    signal: int
    sending: bool


def capture(fd: int, job: Job) -> Owner | None:
    """The owner of the description behind our own copy `fd`; None where there is nothing to keep."""
    try:
        kind, host = struct.unpack("ii", fcntl.fcntl(fd, _F_GETOWN_EX, bytes(8)))
        signal = fcntl.fcntl(fd, _F_GETSIG)
        sending = bool(fcntl.fcntl(fd, fcntl.F_GETFL) & O_ASYNC)
    except OSError:
        return None  # only opened as a path
    number = _as_the_job_sees(kind, host, job) if host else 0
    return Owner(kind, number, signal, sending) if number or signal or sending else None


def _as_the_job_sees(kind: int, host: int, job: Job) -> int:
    if kind == PID:
        return job.vpid(host)
    for pid in job.processes():
        try:
            if kind == PGRP and proc.stat(pid).pgrp == host:
                return proc.inner_pid(proc.status(pid), "NSpgid")
            if kind == TID and os.path.exists(f"/proc/{pid}/task/{host}"):
                return proc.inner_pid(proc.status(pid, host))
        except OSError:
            continue
    return 0


def restore(owner: Owner, fd: int, restart: Restart) -> None:
    """Set it again on our own descriptor, all but O_ASYNC. All processes, threads and groups exist. Raises OSError."""
    if owner.number:
        host = restart.host_pid(owner.number)
        fcntl.fcntl(fd, _F_SETOWN_EX, struct.pack("ii", owner.kind, host))
    if owner.signal:
        fcntl.fcntl(fd, _F_SETSIG, owner.signal)
