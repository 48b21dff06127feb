"""A save of a child of our own, before the first one of a job.

What runs for the first time takes half as long again, or twice as long: Python specialises code that has run a few
times, pages that we share with whoever forked us are copied when they are written to, caches are empty. That would fall
into the pause of the first checkpoint. So all that is done while a job stands still is done to a child first, which has
nothing to lose; the job does not notice, and runs on meanwhile.
"""

from __future__ import annotations

import contextlib
import os
import signal
from contextlib import AbstractContextManager

from torpor.checkpoint import beforehand, tree
from torpor.checkpoint.capture import capture
from torpor.checkpoint.copies import Copies
from torpor.linux import prctl
from torpor.linux.arch.x86_64 import NR
from torpor.linux.libc import syscall
from torpor.model.data import Buffer, Ref
from torpor.model.snapshot import COMM
from torpor.posix.backlog import Backlogs
from torpor.tracee.freeze import freeze
from torpor.tracee.snapshot import Snapshot

_practised = False


def once(guard: AbstractContextManager[object]) -> None:
    """Practise, unless this process has. guard: held meanwhile (`SaveRequest.guard`), since we wait for our child.

    To be called in the thread that is to save. Nothing is raised: what goes wrong here, goes wrong when it counts.
    """
    global _practised
    if not _practised:
        _practised = True
        with contextlib.suppress(Exception), guard:
            for _ in range(_ROUNDS):
                practise()


_ROUNDS = 3
"""After so many more gains nothing."""


def practise() -> None:
    """Save a child, to nowhere. Raises whatever a save raises, and OSError where no child can be made."""
    pid = _child()
    copies = Copies(False)
    try:
        with Snapshot() as snapshot:
            flags = beforehand.flags([pid], {})
            with freeze(lambda: [pid]) as frozen:
                capture(
                    frozen, _Nowhere(), "", tree.of_pid(pid), (), "auto", False, None, copies, Backlogs(),
                    flags=flags, snapshot=snapshot,
                )  # fmt: skip
            snapshot.adopt()
    finally:
        copies.close()
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


class _Nowhere:
    """A sink that keeps nothing."""

    def put(self, data: Buffer) -> Ref:
        return 0


def _child() -> int:
    """The pid of a child that waits, and dies with this thread. Of what is open here it has nothing, and three
    descriptors of its own. It has the name of a copy, so that whoever looks for the job's processes passes over it as
    soon as it is stopped."""
    us = os.getpid()
    source, target = os.pipe()
    try:
        pid = os.fork()
    except OSError:
        os.close(source)
        os.close(target)
        raise
    if pid == 0:
        try:
            syscall(NR.prctl, prctl.SET_PDEATHSIG, signal.SIGKILL)
            if os.getppid() != us:
                os._exit(0)
            os.write(os.open("/proc/self/comm", os.O_WRONLY), COMM.encode())
            null = os.open("/dev/null", os.O_RDWR)
            for number in range(3):
                os.dup2(null, number)
            os.closerange(3, 1 << 20)
            while True:
                signal.pause()
        finally:
            os._exit(0)
    os.close(target)
    os.read(source, 1)  # until it has closed its end, too
    os.close(source)
    return pid
