"""Who is to be told of the next message in a POSIX message queue (mq_notify(3)).

The kernel keeps for a queue one process and how it is to be told: by a signal with a value, by a thread that the C
library starts, or not at all (SIGEV_NONE: it only keeps others from asking). read(2) on a descriptor of the queue tells
process, way and signal, but neither the value nor what stands for the thread: nobody can ask for the same again, so
these are refused. What needs no value (SIGEV_NONE, signal 0) comes back: the process asks again.

Tried and given up: to tell the process in secret while the job is stopped (by an empty message; by mq_notify(NULL) for
a thread), to take that away and to ask again, all in one batch of calls, which goes on if we are killed. Without kills
it worked; of some fifty kills aimed at it a few left a process that is not told any more, which is harm. The likely
cause: our death also lets all other threads go, and one of them takes the signal beside the batch. A lock of ours that
the batch looks at (flock) does not help: it may outlast, in our other threads, the one that traces. A process with one
thread may be safe: not tried.

Source: mq_notify(3), ipc/mqueue.c (mqueue_read_file).
"""

from __future__ import annotations

import os
import struct
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from torpor.linux import mqueue
from torpor.linux.arch.x86_64 import NR
from torpor.model.errors import Refused
from torpor.posix.service import Job, JobBase
from torpor.tracee.call import In, call
from torpor.tracee.process import Process

_TELLS_NOTHING = ((mqueue.NONE, 0), (mqueue.SIGNAL, 0))
_WAYS = {mqueue.SIGNAL: "a signal", mqueue.THREAD: "a thread"}


class Notice(msgspec.Struct, frozen=True, array_like=True):
    """The process (pid in the job) asks through its descriptor `number`. kind: sigev_notify."""

    pid: int
    number: int
    kind: int


class Notices(msgspec.Struct, frozen=True):
    notices: tuple[Notice, ...]


class NotifyService(JobBase):
    name = "mqueue_notify"
    record: type[msgspec.Struct] = Notices

    def capture(self, job: Job, processes: Sequence[Process]) -> Notices | None:
        from torpor.posix.mqueue import open_own, queues
        from torpor.posix.outside import last_name

        found = {}
        known = queues(job)
        for seen in {(one.dev, one.ino): one for one in known}.values():
            own = open_own(job.hold(seen.pid, seen.number), seen)
            try:
                asked = mqueue.notification(own)
            finally:
                os.close(own)
            if asked is None:
                continue
            mine = [one.number for one in known if (one.pid, one.dev, one.ino) == (asked.pid, seen.dev, seen.ino)]
            if not mine or (asked.kind, asked.signal) not in _TELLS_NOTHING:
                how = _WAYS.get(asked.kind, "a process without a descriptor")
                thing = (
                    f"the message queue /{last_name(seen.target)}, of whose next message {how} is to tell (mq_notify)"
                )
                way_out = (
                    "take that back for the checkpoint (mq_notify(queue, NULL)), or wait in mq_receive or poll instead"
                )
                raise Refused([seen.refuse(thing, way_out)])
            found[seen.dev, seen.ino] = Notice(job.vpid(asked.pid), min(mine), asked.kind)
        return Notices(tuple(found.values())) if found else None

    def create(self, record: Any, processes: Mapping[int, Process], source: Any) -> None:
        """Its descriptor has no number yet."""

    def finish(self, record: Any, processes: Mapping[int, Process]) -> None:
        for notice in record.notices:
            event = struct.pack("=Qii48x", 0, 0, notice.kind)
            processes[notice.pid].run([call(NR.mq_notify, notice.number, In(event))])
