"""May there be copies of a job's processes while it goes on? Every page that is written from then on is there twice.

Where a limit would be reached, somebody is killed: the kernel's choice is the copy first (tracee/snapshot.py), but a
control group may be the job's alone and the next page may be the job's. So it is not tried.

What a process itself may have (RLIMIT_AS, RLIMIT_DATA) does not matter: a copy is a process of its own, with the same
limits for the same memory (setrlimit(2)), and takes nothing of what its process may have.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence

from torpor.linux import cgroup, proc
from torpor.linux.cgroup import Limit
from torpor.named_tuple import NamedTuple

SPARE = 32 << 20
"""Bytes that are left to whatever else happens: page tables of the copies, torpor's own buffers."""
SPARE_TASKS = 8
ENOUGH_TASKS = 4096


class Process(NamedTuple):
    """private: bytes of its own memory that is there. memory, tasks: the limits that bind it (RLIMIT_NPROC, too)."""

    private: int
    memory: Sequence[Limit]
    tasks: Sequence[Limit]


def look(pids: Iterable[int]) -> list[Process]:
    """What there is to know of running processes (host pids). Those that end meanwhile are left out."""
    found = []
    page = os.sysconf("SC_PAGESIZE")
    known: dict[tuple[str, int, str], tuple[list[Limit], list[Limit]]] = {}
    for pid in pids:
        try:
            uid = os.stat(f"/proc/{pid}").st_uid
            most = _most_tasks(pid) if uid else "unlimited"
            groups = proc.text(f"/proc/{pid}/cgroup"), uid, most
            if groups not in known:
                known[groups] = cgroup.memory(pid), [*cgroup.tasks(pid), *_of_user(uid, most)]
            _, resident, shared, *_ = proc.text(f"/proc/{pid}/statm").split()
        except (OSError, ValueError):
            continue
        found.append(Process((int(resident) - int(shared)) * page, *known[groups]))
    return found


def left(copies: Iterable[int]) -> list[Process]:
    """What copies (host pids) may still need: of each the memory that its process has not written yet, with the limits
    of memory that bind it now. The kernel walks their pages for it.

    What only a copy has was doubled, or given up by the process. Source: Documentation/filesystems/proc.rst.
    """
    found = []
    known: dict[str, list[Limit]] = {}
    for pid in copies:
        try:
            groups = proc.text(f"/proc/{pid}/cgroup")
            if groups not in known:
                known[groups] = cgroup.memory(pid)
            sizes = proc.rollup(pid)
        except (OSError, ValueError):
            continue
        shared = sizes["Anonymous"] - sizes["Private_Clean"] - sizes["Private_Dirty"]
        found.append(Process(max(0, shared), known[groups], ()))
    return found


def _most_tasks(pid: int) -> str:
    """The soft RLIMIT_NPROC."""
    line = next(line for line in proc.text(f"/proc/{pid}/limits").splitlines() if line.startswith("Max processes"))
    return line.split()[2]


def _of_user(uid: int, most: str) -> Iterator[Limit]:
    """RLIMIT_NPROC as a limit. How many tasks a user has is counted only where it may matter."""
    if most == "unlimited":
        return
    used = int(proc.text("/proc/loadavg").split()[3].partition("/")[2])
    if int(most) - used < ENOUGH_TASKS:
        used = 0
        for name in filter(str.isdecimal, os.listdir("/proc")):
            try:
                used += os.stat(f"/proc/{name}").st_uid == uid and len(os.listdir(f"/proc/{name}/task"))
            except OSError:
                continue
    yield Limit(f"user {uid}", int(most), int(most) - used)


def machine() -> Limit:
    """The memory of the machine."""
    fields = dict(line.split(":", 1) for line in proc.text("/proc/meminfo").splitlines())
    total, available = (int(fields[name].split()[0]) * 1024 for name in ("MemTotal", "MemAvailable"))
    return Limit("", total, available)


def needs(processes: Sequence[Process], whole: Limit) -> dict[Limit, int]:
    """How many bytes copies of all of these may need at most, by limit. Pure. whole: `machine`."""
    found: dict[Limit, int] = {whole: 0}
    for process in processes:
        for limit in (*process.memory, whole):
            found[limit] = found.get(limit, 0) + process.private
    # A page table for each 512 pages, in the copies too.
    return {limit: need + need // 512 + SPARE for limit, need in found.items()}


def lacking(processes: Sequence[Process], whole: Limit) -> str:
    """Why all of these may not be copied, '' if they may. Pure. whole: `machine`."""
    counts: dict[Limit, int] = {}
    for process in processes:
        for limit in process.tasks:
            counts[limit] = counts.get(limit, 0) + 1
    for limit, need in needs(processes, whole).items():
        if need > limit.free:
            who = f"the memory limit of {limit.group}" if limit.group else "the memory of this machine"
            return f"{who} leaves {max(0, limit.free) >> 20} MiB, and copies may need {need >> 20}"
    for limit, count in counts.items():
        # Each is made by another task, which is gone when the job goes on.
        if 2 * count + SPARE_TASKS > limit.free:
            return f"the limit of tasks of {limit.group} leaves {max(0, limit.free)}, and copies need {2 * count}"
    return ""
