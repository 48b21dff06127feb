"""Sockets made by a test, saved, closed and made again in one process."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Sequence
from typing import Any

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

import msgspec
from descriptor_bench import FakeJob, FakeRestart, look

from torpor.linux import kcmp
from torpor.posix.backlog import Backlogs
from torpor.posix.descriptor_services import service_for


class SocketJob(FakeJob):
    """A FakeJob whose sockets may have descriptors in flight."""

    def adopt(self, fd: int) -> int:
        for number, group in enumerate(self.groups):
            if kcmp.same_file(os.getpid(), fd, group[0].pid, group[0].number):
                os.close(fd)
                return number
        seen = look(fd)
        self.descriptors = [*self.descriptors, seen]
        self.groups.append([seen])
        self.held.append(fd)
        return len(self.groups) - 1

    def save(self) -> Any:
        try:
            for group in self.groups:
                inside = getattr(service_for(group[0], self), "inside", None)
                if inside:
                    inside(group[0].number, group[0], self)
            out = []
            for group in self.groups:
                seen = group[0]
                service = service_for(seen, self)
                refusal = service.survey(seen, self)
                assert refusal is None, refusal
                record = service.capture(self.hold(seen.pid, seen.number), seen, self)
                out.append((service, msgspec.msgpack.decode(msgspec.msgpack.encode(record), type=service.record)))
            return out
        finally:
            for fd in self.held:
                os.close(fd)
            self.held.clear()


def capture(*sockets: Any, streams: Sequence[Any] = (), backlogs: Backlogs | None = None) -> tuple[SocketJob, Any]:
    """Save sockets (or descriptors). backlogs: what is known of connections that wait to be accepted."""
    job = SocketJob([one if isinstance(one, int) else one.fileno() for one in sockets], streams=streams)
    job.backlogs = backlogs or job.backlogs
    return job, job.save()


def again(*sockets: Any, gone: Sequence[Any] = (), backlogs: Backlogs | None = None) -> list[socket.socket]:
    """Save sockets, end the job as `--stop` does, and make them again. gone: what else ends with the job."""
    return recreate(*sockets, gone=gone, backlogs=backlogs)[0]


def recreate(
    *sockets: Any, gone: Sequence[Any] = (), backlogs: Backlogs | None = None
) -> tuple[list[socket.socket], FakeRestart]:
    job, saved = capture(*sockets, backlogs=backlogs)
    for (service, record), group in zip(saved, job.groups):
        ended = getattr(service, "ended", None)
        if ended and group[0].number in [one if isinstance(one, int) else one.fileno() for one in sockets]:
            ended(group[0].number, record)
    for one in [*sockets, *gone]:
        if isinstance(one, int):
            os.close(one)
        else:
            one.close()
    restart = FakeRestart(job.sink)
    made = restart.make(saved)
    out: list[Any] = []
    for fd in made:
        if not look(fd).target.startswith("socket:"):
            out.append(fd)
            continue
        blocking = os.get_blocking(fd)
        one = socket.socket(fileno=fd)
        one.setblocking(blocking)  # Python does not look
        out.append(one)
    return out, restart
