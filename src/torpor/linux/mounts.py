"""Mounts as a process sees them, and what kind of filesystem a file is on.

Source: proc_pid_mountinfo(5).
"""

from __future__ import annotations

import os

from torpor.linux import proc
from torpor.named_tuple import NamedTuple


class Mount(NamedTuple):
    """One line of mountinfo."""

    number: int
    """The mount id that fdinfo shows."""
    point: str
    kind: str
    """Type of the filesystem: 'ext4', 'proc', ..."""


def parse(line: str) -> Mount:
    """`22 28 0:21 / /proc rw,nosuid - proc proc rw`; spaces in names stand as \\040."""
    head, _, tail = line.partition(" - ")
    fields = head.split(" ")
    point = fields[4]
    if "\\" in point:
        for code, char in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
            point = point.replace(code, char)
    return Mount(int(fields[0]), point, tail.split(" ", 1)[0])


def kind_of_device(pid: int, dev: int) -> str:
    """The type of the filesystem with this device number (st_dev) among a process' mounts, '' if there is none."""
    field = f"{os.major(dev)}:{os.minor(dev)}"
    for line in proc.text(f"/proc/{pid}/mountinfo").splitlines():
        if line.split(" ", 3)[2] == field:
            return parse(line).kind
    return ""


def of(pid: int, number: int) -> Mount | None:
    """The mount `number` of a process, None where it is not in its tree (pipes, memory files, unmounted)."""
    start = f"{number} "
    for line in proc.text(f"/proc/{pid}/mountinfo").splitlines():
        if line.startswith(start):
            return parse(line)
    return None
