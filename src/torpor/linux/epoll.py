"""epoll(7): its watches as fdinfo shows them, and the layout of struct epoll_event.

Source: epoll_ctl(2), proc_pid_fdinfo(5), fs/eventpoll.c (ep_show_fdinfo).
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterable

from torpor.named_tuple import NamedTuple

CTL_ADD = 1
CTL_MOD = 3

ERR_HUP = 0x18
"""EPOLLERR | EPOLLHUP: the kernel adds them to every watch."""
EXCLUSIVE = 1 << 28
WAKEUP = 1 << 29
ONESHOT = 1 << 30
EDGE = 1 << 31
HOW = EXCLUSIVE | WAKEUP | ONESHOT | EDGE
"""The bits that say how to report, not what."""

EVENT_SIZE = 12  # packed on x86-64


class Watch(NamedTuple):
    """One watch. `which`: its place among those registered under the same number. ino: 0 before Linux 5.1."""

    number: int
    which: int
    events: int
    data: int
    ino: int


def watches(info: Iterable[str]) -> list[Watch]:
    """The watches in the lines of /proc/PID/fdinfo/N of an epoll instance, in the kernel's order.

    A line is `tfd:  5 events:  40000019 data:  5  pos:0 ino:40e sdev:10`, the numbers except the first
    and pos in hex.
    """
    out: list[Watch] = []
    seen: dict[int, int] = {}
    for line in info:
        if not line.startswith("tfd:"):
            continue
        words = line.replace(":", ": ").split()
        field = dict(zip(words[0::2], words[1::2]))
        number = int(field["tfd:"])
        which = seen.get(number, 0)
        seen[number] = which + 1
        ino = int(field.get("ino:", "0"), 16)
        out.append(Watch(number, which, int(field["events:"], 16), int(field["data:"], 16), ino))
    return out


def event(events: int, data: int) -> bytes:
    """A struct epoll_event."""
    return struct.pack("<IQ", events, data)


def probe() -> tuple[bool, str]:
    """Does this machine have it, and does fdinfo name the watches?"""
    import select

    with select.epoll() as instance:
        fd = os.eventfd(0)
        try:
            instance.register(fd, select.EPOLLIN)
            with open(f"/proc/self/fdinfo/{instance.fileno()}") as info:
                shown = bool(watches(info))
            return shown, "" if shown else "fdinfo does not name the watches"
        finally:
            os.close(fd)
