"""What is kept of a UNIX socket."""

from __future__ import annotations

import msgspec

from torpor.posix.socket_options import Options
from torpor.posix.socket_queue import Queue
from torpor.posix.socket_user import Who
from torpor.posix.unix_name import Name

FREE, LISTENING, CONNECTED = "free", "listening", "connected"
IN_JOB, WAITING, GONE, OUTSIDE = "job", "waiting", "gone", "outside"


class UnixSocket(msgspec.Struct, frozen=True, kw_only=True):
    """A UNIX socket.

    state: 'free' (not connected), 'listening', 'connected'. other: what became of the other end: 'job', 'waiting' (to
    be accepted by a listener of the job), 'gone' (closed), 'outside'.
    """

    ino: int
    type: int
    flags: int
    state: str
    name: Name = Name()
    other: str = ""
    peer: int = 0
    peer_name: Name = Name()
    paired: int = 0
    """Inode number of the socket it was made together with (0: it was made alone)."""
    accepted: bool = False
    """It is the end that was accepted, and has its listener's name."""
    listener: int = -1
    """Object number of the listener through which the connection is made again."""
    shut: int = 0
    """1: it receives no more; 2: it sends no more."""
    error: bool = False
    """It has not been told yet that the other end was closed with unread data."""
    backlog: int = 0
    gone_before: int = 0
    """Connections that wait in front of this one, and were closed by the other end already; for a listener, those
    that wait behind all others."""
    sent: Queue | None = None
    """Of one that waits to be accepted: what it has sent."""
    gone_sent: tuple[Queue | None, ...] = ()
    """What those of `gone_before` have sent, where that is known."""
    user: int = -1
    group: int = -1
    pid: int = 0
    groups: tuple[int, ...] | None = None
    """What SO_PEERCRED and SO_PEERGROUPS say of the other end (socket_user.Who)."""
    own_user: int = -1
    own_group: int = -1
    own_pid: int = 0
    own_groups: tuple[int, ...] | None = None
    """What the other end is told of this one."""
    after: tuple[int, ...] = ()
    options: Options = Options()
    queue: Queue | None = None

    @property
    def them(self) -> Who:
        """Who the other end is said to be; of what listens, and of pairs, who made it."""
        return Who(self.pid, self.user, self.group, self.groups)

    @property
    def me(self) -> Who:
        return Who(self.own_pid, self.own_user, self.own_group, self.own_groups)
