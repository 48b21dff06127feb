"""Limits of the control groups that a process is in, from its own up to the root: memory and tasks.

Both versions: of each controller only one of them has it. Sources: cgroups(7), Documentation/admin-guide/cgroup-v2.rst
(memory, pids), Documentation/admin-guide/cgroup-v1/memory.rst.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

from torpor.linux import mounts, proc
from torpor.named_tuple import NamedTuple

_ENDLESS = 1 << 60
"""Limits of version 1 that are not set show as about 2**63."""


class Limit(NamedTuple):
    """A limit, and how much of it is free. Bytes or tasks. group: its folder."""

    group: str
    most: int
    free: int


def memory(pid: int) -> list[Limit]:
    """Limits of memory (memory.max, memory.high). Pages of files that could be given back count as free."""
    limits = (_memory(folder, version) for folder, version in _folders(pid, "memory"))
    return [limit for limit in limits if limit is not None]


def again(limit: Limit) -> Limit:
    """A limit of memory as it is now; as it was, if its group is gone."""
    version = 2 if os.path.exists(f"{limit.group}/memory.current") else 1
    return _memory(limit.group, version) or limit


def _memory(folder: str, version: int) -> Limit | None:
    """None where there is no limit."""
    names = ("memory.max", "memory.high") if version == 2 else ("memory.limit_in_bytes",)
    most = min((value for name in names if (value := _number(folder, name)) is not None), default=_ENDLESS)
    used = _number(folder, "memory.current" if version == 2 else "memory.usage_in_bytes")
    if used is None or most >= _ENDLESS:
        return None
    return Limit(folder, most, most - used + _reclaimable(folder, "" if version == 2 else "total_"))


def tasks(pid: int) -> list[Limit]:
    """Limits of the number of tasks (pids.max)."""
    found = []
    for folder, _ in _folders(pid, "pids"):
        most, used = _number(folder, "pids.max"), _number(folder, "pids.current")
        if most is not None and used is not None:
            found.append(Limit(folder, most, most - used))
    return found


def _folders(pid: int, controller: str) -> Iterator[tuple[str, int]]:
    """Folders of a process' groups, innermost first, with the version. There may be none that we can see."""
    groups = dict(line.split(":", 2)[1:] for line in proc.text(f"/proc/{pid}/cgroup").splitlines())
    for line in proc.text("/proc/self/mountinfo").splitlines():
        mount = mounts.parse(line)
        if mount.kind == "cgroup" and controller in line.rpartition(" ")[2].split(","):
            version, path = 1, next((groups[key] for key in groups if controller in key.split(",")), "")
        elif mount.kind == "cgroup2":
            version, path = 2, groups.get("", "")
        else:
            continue
        top = line.split(" ", 4)[3]
        # What is outside of the mount (a container sees its own part only) shows by the limits of what is inside.
        inside = os.path.relpath(path or "/", top)
        folder = mount.point if inside == "." or inside.startswith("..") else f"{mount.point}/{inside}"
        while folder.startswith(mount.point):
            yield folder, version
            folder = os.path.dirname(folder)


def _number(folder: str, name: str) -> int | None:
    """None where there is no such file, or no limit ('max')."""
    try:
        return int(proc.text(f"{folder}/{name}"))
    except (OSError, ValueError):
        return None


def _reclaimable(folder: str, prefix: str) -> int:
    """Bytes of files' pages that are not in use by anybody just now."""
    try:
        fields = dict(line.split(" ", 1) for line in proc.text(f"{folder}/memory.stat").splitlines())
    except OSError:
        return 0
    return sum(int(fields.get(f"{prefix}{name}", "0")) for name in ("inactive_file", "active_file"))
