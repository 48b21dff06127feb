"""The UNIX sockets of a job, and who waits where to be accepted, as sock_diag(7) tells it."""

from __future__ import annotations

from torpor.linux import sock_diag
from torpor.linux.sock_diag import LISTEN, UnixSeen
from torpor.posix import socket_kinds
from torpor.posix.descriptors import PerJob
from torpor.posix.service import Job
from torpor.posix.socket_address import DATAGRAM


class UnixTable:
    """The UNIX sockets of a job."""

    def __init__(self, job: Job) -> None:
        self.seen = socket_kinds.objects(job, "UNIX")
        world = sock_diag.unix_sockets()
        self.world = world
        self.diag: dict[int, UnixSeen] = {ino: world[ino][0] for ino in self.seen if ino in world}
        self.number: dict[int, int] = {}
        self.listeners: dict[bytes, int] = {}
        self.named: dict[bytes, int] = {}
        self.line: dict[int, tuple[int, int]] = {}
        """Who waits: the inode number of the client to (that of the listener, place in line)."""
        for ino, one in self.seen.items():
            number = job.object_of(one.pid, one.number)
            assert number is not None
            self.number[ino] = number
            diag = self.diag.get(ino)
            if diag is None:
                continue
            if diag.state == LISTEN:
                self.listeners[diag.name] = ino
                for place, client in enumerate(diag.waiting):
                    if client:
                        self.line[client] = (ino, place)
            elif diag.name and diag.type == DATAGRAM:
                self.named[diag.name] = ino


_tables: PerJob[UnixTable] = PerJob(UnixTable)


def of(job: Job) -> UnixTable:
    """The table of a job. Raises OSError where the kernel has no unix_diag."""
    return _tables.of(job)
