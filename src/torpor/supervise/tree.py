"""The processes of a running job, as /proc shows them now."""

from __future__ import annotations

import os
import signal
import time
from functools import partial
from typing import TYPE_CHECKING

from torpor.linux import proc
from torpor.model.snapshot import is_copy
from torpor.named_tuple import NamedTuple
from torpor.supervise.registry import NOBODY, Entry, Pid

if TYPE_CHECKING:
    from torpor.checkpoint.tree import Tree


class Member(NamedTuple):
    """One process. pid, parent: on the host; vpid: as the job sees it."""

    pid: int
    vpid: int
    parent: int
    comm: str
    state: str
    threads: int
    resident: int
    """Bytes."""


class Reach(NamedTuple):
    """What makes up a job: the subtree of `anchor` (which itself belongs to it or not), without `skip`."""

    anchor: int
    include_anchor: bool
    skip: tuple[int, ...]
    root: int
    parent_is_reaper: bool = False
    """The root's parent is where the job's orphans go: our own supervisor."""
    watched: bool = False
    """There is a filter of torpor's on it."""
    aside: int = 0
    """See Tree."""
    bringer: Pid = NOBODY
    """Who brings memory that is not there yet, and where is written how far that is (arriving.py)."""
    arriving: str = ""

    def tree(self) -> Tree:
        """The same as the pipelines want it."""
        from torpor.checkpoint.tree import Tree

        return Tree(
            anchor=self.anchor, include_anchor=self.include_anchor, skip=self.skip, root=self.root,
            watched=self.watched, aside=self.aside,
        )  # fmt: skip


def reach(entry: Entry) -> Reach:
    """The extent of a job. While the supervisor lives it is a subreaper, so that orphans are below it; after
    its death, what is left is found below the root (or the namespace's PID 1)."""
    watched, aside, bringer = entry.holder != NOBODY, entry.keeper.pid, entry.bringer
    # Where a job was restarted in place, it outlives the holder that plays the part of PID 1.
    if entry.anchor and (entry.anchor != entry.reaper.pid or entry.reaper.alive):
        return Reach(
            entry.anchor, entry.include_anchor, entry.skip, entry.root.pid, entry.parent_is_reaper, watched, aside,
            bringer, f"{entry.folder}/arriving" if bringer != NOBODY else "",
        )  # fmt: skip
    if entry.supervisor.alive:
        return Reach(entry.supervisor.pid, False, entry.skip, entry.root.pid, True, watched, aside)
    return Reach(entry.root.pid, True, entry.skip, entry.root.pid, watched=watched)


def members(where: Reach) -> list[int]:
    """Host pids of the job's processes, parents first. Never raises: what has ended is not there; nor are copies that
    are being saved."""
    found: list[int] = []
    queue = [where.anchor]
    seen = set(queue)
    while queue:
        pid = queue.pop(0)
        if pid not in where.skip and (pid != where.anchor or where.include_anchor):
            found.append(pid)
        try:
            stat = proc.stat(pid)
            if pid in found and is_copy(stat.comm, stat.state, partial(proc.descriptors, pid)):
                found.remove(pid)
            for child in proc.children(pid):
                if child not in seen and child != where.aside:
                    seen.add(child)
                    queue.append(child)
        except OSError:
            if pid in found and not os.path.exists(f"/proc/{pid}"):
                found.remove(pid)
    return found


def stop_all(entry: Entry) -> tuple[Pid, ...]:
    """SIGSTOP to all processes of a job that run, until none does; those that were stopped by it."""
    stopped: dict[Pid, None] = {}
    for _ in range(100):  # as long as something is forked faster than we look
        found = [one for one in map(Pid.of, members(reach(entry))) if one.state in ("R", "S", "D", "I")]
        if not found:
            break
        for one in found:
            try:
                os.kill(one.pid, signal.SIGSTOP)
                stopped[one] = None
            except OSError:
                continue
        time.sleep(0.01)
    return tuple(stopped)


def describe(where: Reach) -> list[Member]:
    """The job's processes with what a listing shows of each."""
    out = []
    for pid in members(where):
        try:
            seen, status = proc.stat(pid), proc.status(pid)
        except OSError:
            continue
        resident = int(status.get("VmRSS", "0 kB").split()[0]) * 1024
        vpid = proc.inner_pid(status)
        out.append(Member(pid, vpid, seen.ppid, seen.comm, seen.state, int(status["Threads"]), resident))
    return out
