"""The out-of-memory score adjustment: /proc/PID/oom_score_adj, read and written from outside.

Lowering it below what a process was started with needs CAP_SYS_RESOURCE. Where that is missing the process
keeps the restarter's: it is a word from whoever runs this machine about which process to give up first, and
nothing that a program could depend on, so it is no reason to fail a restart.

Source: Documentation/filesystems/proc.rst, section 3.1.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import msgspec

from torpor.linux import proc
from torpor.posix.service import ProcessBase
from torpor.tracee.call import Answer
from torpor.tracee.process import Process


class Oom(msgspec.Struct, frozen=True):
    """adjustment: -1000 to 1000."""

    adjustment: int


class OomService(ProcessBase):
    name = "oom"
    record: type[msgspec.Struct] = Oom

    def capture(self, process: Process, answers: Sequence[Answer]) -> Oom:
        return Oom(int(proc.shown(f"/proc/{process.leader.tid}/oom_score_adj")))

    def outside(self, record: Any, process: Process) -> None:
        where = f"/proc/{process.leader.tid}/oom_score_adj"
        if int(proc.read(where)) == record.adjustment:
            return
        fd = os.open(where, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(fd, str(record.adjustment).encode())
        except PermissionError:
            pass
        finally:
            os.close(fd)
