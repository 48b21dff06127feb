"""What is kept of a TCP socket."""

from __future__ import annotations

import msgspec

from torpor.posix.socket_address import AF_INET, Address
from torpor.posix.socket_options import Options
from torpor.posix.socket_queue import Queue

FRESH, BOUND, LISTENING, CONNECTING, CONNECTED, CLOSED, FAILED = (
    "fresh", "bound", "listening", "connecting", "connected", "closed", "failed",
)  # fmt: skip
IN_JOB, FAR, FAR_WAITING, WAITING, GONE, OUTSIDE = "job", "far", "far waiting", "waiting", "gone", "outside"


class Gone(msgspec.Struct, frozen=True, array_like=True):
    """A client that waits to be accepted and is closed already: its own address, the listener's as it saw it, and what
    it has sent."""

    local: Address
    remote: Address
    family: int
    sent: Queue | None = None


class TcpSocket(msgspec.Struct, frozen=True, kw_only=True):
    """A TCP socket.

    state: 'fresh', 'bound', 'listening', 'connecting', 'connected', 'closed' (was connected; both directions are
    over), 'failed' (a connection that was refused or reset, and the program has not been told yet). other: what became
    of the other end: 'job', 'far' (on another host of the job), 'waiting' (to be accepted by the job), 'far
    waiting' (to be accepted there, or for room to come in), 'gone' (closed), 'outside'.
    """

    ino: int
    family: int
    flags: int
    state: str
    local: Address | None = None
    remote: Address | None = None
    accepted: bool = False
    other: str = ""
    peer: int = 0
    """Inode number of the other end, if it is in the job."""
    peer_family: int = AF_INET
    host: str = ""
    """Where the other end is, if it is on another host."""
    shut: int = 0
    """1: it receives no more; 2: it sends no more."""
    error: bool = False
    backlog: int = 0
    gone_waiting: int = 0
    """For a listener: connections that wait to be accepted and were closed by the other end already."""
    sent: Queue | None = None
    """Of one that waits to be accepted: what it has sent, where the job's own data does not tell."""
    gone_before: tuple[Gone, ...] = ()
    """Those that are closed and wait right in front of this one; for a listener, behind all others. `gone_waiting` are
    others, of which nothing is known."""
    after: tuple[int, ...] = ()
    """Objects that must exist first."""
    options: Options = Options()
    queue: Queue | None = None
