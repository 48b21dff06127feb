"""Which sockets a job has, and of what kind."""

from __future__ import annotations

import os
import stat

from torpor.model.errors import Refused
from torpor.posix import socket_options
from torpor.posix.descriptors import is_type
from torpor.posix.service import Descriptor, Job


def kind(seen: Descriptor) -> str:
    """The protocol of a socket as the kernel names it: 'TCP', 'TCPv6', 'UDP', 'UNIX-STREAM', 'UNIX', 'NETLINK', ...

    '' if it is no socket, or gone. Source: sockfs_xattr_get in net/socket.c.
    """
    if not is_type(seen, stat.S_IFSOCK):
        return ""
    try:
        name = os.getxattr(f"/proc/{seen.pid}/fd/{seen.number}", "system.sockprotoname")
    except OSError:
        return ""
    return name.rstrip(b"\0").decode(errors="replace")


def objects(job: Job, start: str) -> dict[int, Descriptor]:
    """The job's sockets of a kind (the beginning of its name), by inode number: one descriptor of each."""
    found: dict[int, Descriptor] = {}
    for seen in job.descriptors:
        if not stat.S_ISSOCK(seen.mode) or seen.ino in found or not kind(seen).startswith(start):
            continue
        if job.object_of(seen.pid, seen.number) is not None:
            found[seen.ino] = seen
    return found


def holders(ino: int, job: Job) -> set[int]:
    """The processes (host pids) that have this socket."""
    return {one.pid for one in job.descriptors if one.ino == ino and stat.S_ISSOCK(one.mode)}


def refuse_unusual(fd: int, seen: Descriptor) -> None:
    """Raises Refused for what no socket service can save."""
    if socket_options.has_filter(fd):
        way_out = "take it off before the checkpoint (SO_DETACH_FILTER)"
        raise Refused([seen.refuse("a socket with a packet filter (SO_ATTACH_FILTER)", way_out)])
