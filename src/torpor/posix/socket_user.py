"""Who made a UNIX socket, as the other end is told: SO_PEERCRED and SO_PEERGROUPS.

It is whoever called socketpair, listen or connect, with the effective ids of that moment; the one that connects is told
who has listened, the one that is accepted who has connected (init_peercred, copy_peercred in net/unix/af_unix.c). The
kernel tells the number also when that process is long gone.

At the restart these calls are made by a process with the old number (`Restart.as_process`), and as root with the old
ids. SO_PEERPIDFD is then one of a process that has ended, since it is that process that was, not its number.
"""

from __future__ import annotations

import _socket
import os
import struct

from torpor.linux import credentials
from torpor.named_tuple import NamedTuple
from torpor.posix import socket_options
from torpor.posix.descriptors import fresh_info, info_value
from torpor.posix.service import Restart
from torpor.posix.socket_address import AF_UNIX, in_folder, link
from torpor.posix.socket_options import SO_PEERCRED, SO_PEERGROUPS, SO_PEERPIDFD, SOL_SOCKET

_MOST = 1024
"""Bytes of an option that Python takes: 256 groups."""


class Who(NamedTuple):
    """pid: as the job sees it, 0 where it has no number for that process. user, group: -1 where nobody is told. groups:
    supplementary ones, None where they are not known."""

    pid: int = 0
    user: int = -1
    group: int = -1
    groups: tuple[int, ...] | None = None


NOBODY = Who()


def peer(fd: int) -> Who:
    """What a socket says of its other end. The number is that of our PID namespace."""
    pid, user, group = struct.unpack("iii", socket_options.get(fd, SOL_SOCKET, SO_PEERCRED, 12) or bytes(12))
    raw = socket_options.get(fd, SOL_SOCKET, SO_PEERGROUPS, _MOST)
    return Who(pid, user, group, None if raw is None else struct.unpack(f"{len(raw) // 4}I", raw))


def alive(fd: int) -> int:
    """The number of the process that a socket names as its other end, in our PID namespace; 0 if it has been waited
    for, or before Linux 6.5. A number alone does not tell: it may be another's by now."""
    raw = socket_options.get(fd, SOL_SOCKET, SO_PEERPIDFD, 4)
    if raw is None:
        return 0
    (process,) = struct.unpack("i", raw)
    try:
        return max(0, int(info_value(fresh_info(process), "Pid") or "0"))
    finally:
        os.close(process)


class as_user:
    """A context in which sockets are made as another user, where we may; what files allow does not change."""

    def __init__(self, user: int, group: int, groups: tuple[int, ...] | None) -> None:
        self._ids = (user, group, groups) if os.geteuid() == 0 and user >= 0 else None

    def __enter__(self) -> None:
        if self._ids is None:
            return
        user, group, groups = self._ids
        self._before = os.getegid(), os.getgroups()
        if groups is not None and list(groups) != self._before[1]:
            os.setgroups(groups)
        credentials.become(user, group)

    def __exit__(self, *_: object) -> None:
        if self._ids is None:
            return
        group, groups = self._before
        credentials.back(group)
        if os.getgroups() != groups:
            os.setgroups(groups)


def pair(who: Who, kind: int, restart: Restart) -> tuple[int, int]:
    """socketpair, made by somebody."""
    a, b = restart.as_process(who.pid, _pair, kind, *who[1:])
    return a, b


def listen(who: Who, fd: int, backlog: int, restart: Restart) -> None:
    """listen, called by somebody."""
    restart.as_process(who.pid, _listen, fd, backlog, *who[1:])


def connect(who: Who, fd: int, folder: str, name: bytes, restart: Restart) -> None:
    """connect, called by somebody. folder: what a relative name is relative to, '' where it is none. Raises OSError."""
    restart.as_process(who.pid, _connect, fd, folder, name, *who[1:])


def _pair(kind: int, user: int, group: int, groups: tuple[int, ...] | None) -> tuple[int, int]:
    with as_user(user, group, groups):
        a, b = _socket.socketpair(AF_UNIX, kind | _socket.SOCK_CLOEXEC)
    return a.detach(), b.detach()


def _listen(fd: int, backlog: int, user: int, group: int, groups: tuple[int, ...] | None) -> None:
    one = link(fd)
    try:
        with as_user(user, group, groups):
            one.listen(backlog)
    finally:
        one.detach()


def _connect(fd: int, folder: str, name: bytes, user: int, group: int, groups: tuple[int, ...] | None) -> None:
    one = link(fd)
    try:
        with as_user(user, group, groups), in_folder(folder):
            one.connect(name)
    finally:
        one.detach()
