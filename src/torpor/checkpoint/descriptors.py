"""Descriptors of all processes of a job, and the job-wide table of open file descriptions behind them."""

from __future__ import annotations

import os
from collections.abc import Iterable

from torpor.linux import kcmp, proc
from torpor.posix.service import Descriptor

O_CLOEXEC = 0o2000000


def look(pid: int, comm: str) -> list[Descriptor]:
    """The descriptors of one process whose name is `comm`, as /proc shows them. One that is closed meanwhile is left
    out."""
    found = []
    for number in proc.descriptors(pid):
        try:
            found.append(look_at(pid, number, comm))
        except OSError:
            continue
    return found


def look_at(pid: int, number: int, comm: str) -> Descriptor:
    """One descriptor of a process whose name is `comm`. Raises OSError where there is none."""
    link = f"/proc/{pid}/fd/{number}"
    target = os.readlink(link)
    info = os.fsdecode(proc.shown(f"/proc/{pid}/fdinfo/{number}")).splitlines()
    st = os.stat(link)
    fields = dict(line.split(":", 1) for line in info[:4] if ":" in line)
    return Descriptor(
        pid, comm, number, target, st.st_mode, st.st_dev, st.st_ino, st.st_rdev,
        int(fields.get("flags", "0"), 8), int(fields.get("pos", "0")), int(fields.get("mnt_id", "0")), tuple(info),
    )  # fmt: skip


def alike(fd: int, descriptors: Iterable[Descriptor]) -> list[Descriptor]:
    """Those that may be the same open file description as our own descriptor `fd`: open on the same thing."""
    st = os.fstat(fd)
    return [seen for seen in descriptors if (seen.dev, seen.ino) == (st.st_dev, st.st_ino)]


def group(descriptors: Iterable[Descriptor]) -> list[list[Descriptor]]:
    """Descriptors by open file description, in order of first appearance. What looks alike is told apart by kcmp(2)."""
    alike: dict[tuple[object, ...], list[Descriptor]] = {}
    for seen in descriptors:
        key = (seen.dev, seen.ino, seen.target, seen.flags & ~O_CLOEXEC, seen.pos)
        alike.setdefault(key, []).append(seen)

    groups = []
    for some in alike.values():
        ordered: list[list[Descriptor]] = []  # as the kernel orders them; mostly there is one
        for seen in some:
            _join(ordered, seen)
        groups += ordered
    return groups


def _join(groups: list[list[Descriptor]], seen: Descriptor) -> None:
    """Put a descriptor to those of the same open file description, by as few comparisons as there can be."""
    low, high = 0, len(groups)
    while low < high:
        middle = (low + high) // 2
        near = groups[middle][0]
        order = kcmp.file_order(near.pid, near.number, seen.pid, seen.number)
        if order == 0:
            groups[middle].append(seen)
            return
        low, high = (middle + 1, high) if order == 1 else (low, middle)
    groups.insert(low, [seen])
