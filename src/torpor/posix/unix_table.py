"""The UNIX sockets of a job: which there are, what they are connected to, who waits, who made them."""

from __future__ import annotations

import msgspec

from torpor.linux import proc, sock_diag
from torpor.linux.sock_diag import LISTEN, UnixSeen
from torpor.posix import insider, socket_kinds, socket_options, socket_user
from torpor.posix.descriptors import PerJob
from torpor.posix.service import Job
from torpor.posix.socket_address import DATAGRAM, STREAM
from torpor.posix.socket_options import SO_TYPE, SOL_SOCKET
from torpor.posix.socket_peek import peek_datagrams, peek_unix_stream
from torpor.posix.socket_queue import Peeked


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
        held = {ino: job.hold(one.pid, one.number) for ino, one in self.seen.items()}
        self.peers = {ino: socket_user.peer(fd) for ino, fd in held.items()}
        """What SO_PEERCRED says, in the job's own numbers."""
        neighbour = proc.face(next(iter(job.processes()), 0))
        self._inside = neighbour if neighbour and insider.elsewhere(neighbour) else 0
        """A process of the job, if that has process numbers of its own."""
        self._job = job
        if self._inside:
            self._translate(held)

    def _translate(self, held: dict[int, int]) -> None:
        """Of living members of the job the number is known; of others only the job itself is told."""
        numbers = [self._job.vpid(socket_user.alive(fd)) if self.peers[ino].pid else 0 for ino, fd in held.items()]
        if any(who.pid and not number for who, number in zip(self.peers.values(), numbers)):
            told = insider.seen_inside(self._inside, lambda: [socket_user.peer(fd).pid for fd in held.values()])
            numbers = told or numbers
        self.peers = {ino: self.peers[ino]._replace(pid=number) for ino, number in zip(held, numbers)}

    def with_senders(self, fd: int, found: list[Peeked]) -> list[Peeked]:
        """Messages of a socket's queue with the job's own numbers of their senders."""
        if not self._inside or all(message.credentials is None for message in found):
            return found
        inside = iter(insider.seen_inside(self._inside, lambda: _senders(fd)) or ())
        out, at, end, number = [], 0, 0, 0
        for message in found:
            who = message.credentials
            while at >= end and message.data:
                size, number = next(inside, (1 << 62, -1))
                end += size
            at += len(message.data)
            if who is not None:
                # An empty one is not shown twice. Of the living it is known anyway.
                pid = number if message.data and number >= 0 else self._job.vpid(who.pid) if who.pid else 0
                message = message._replace(credentials=msgspec.structs.replace(who, pid=pid))
            out.append(message)
        return out


def _senders(fd: int) -> list[tuple[int, int]]:
    """How many bytes there are in a queue from whom; the numbers are those of our PID namespace."""
    try:
        stream = socket_options.number(fd, SOL_SOCKET, SO_TYPE) == STREAM
        found = peek_unix_stream(fd) if stream else peek_datagrams(fd)
    except OSError:
        return []
    return [(len(message.data), message.credentials.pid if message.credentials else 0) for message in found]


_tables: PerJob[UnixTable] = PerJob(UnixTable)


def of(job: Job) -> UnixTable:
    """The table of a job. Raises OSError where the kernel has no unix_diag."""
    return _tables.of(job)
    return _tables.of(job)
