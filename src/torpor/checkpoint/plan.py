"""Who forks whom. Pure: from the processes of a manifest to a tree of births.

What has to come out right is what only a fork at the right moment gives: parents, sessions, and the processes outside
the job whose numbers the job remembers (its parent, the leader of its session, leaders of its groups). Those are
played by *stand-ins*.

A process inherits the session of whoever forks it, so
- a child of the same session is forked after its parent's setsid,
- a child of the session its parent was in before is forked before that,
- an orphan of a session led by somebody else is forked by that leader through a helper that exits at once, so that
  it falls to the reaper again.
"""

from __future__ import annotations

from collections.abc import Sequence

from torpor.image.manifest import Manifest, ProcessRecord
from torpor.model.errors import RestartFailed

PROCESS, ZOMBIE, STAND_IN, GHOST = "process", "zombie", "stand-in", "ghost"


class Birth:
    """A process to be forked.

    pid: the number it gets. role: a process of the job; a zombie; a stand-in that stays; a ghost that leads a group
    until its members have joined. leads: it makes its own process group at once. setsid: it makes a session, after
    forking `early` and before forking `late`. adopted: forked through a helper (of the pid given) that exits.
    subreaper: orphans below fall to it. watches: the pid of the child whose end it reports (0: none).
    """

    __slots__ = ("adopted", "early", "late", "leads", "pid", "role", "setsid", "subreaper", "watches")

    def __init__(self, pid: int, role: str) -> None:
        self.pid, self.role = pid, role
        self.leads = self.setsid = self.subreaper = False
        self.watches = 0
        self.early: list[Birth] = []
        self.late: list[Birth] = []
        self.adopted: list[tuple[int, Birth]] = []

    def all(self) -> list[Birth]:
        """This birth and all below it."""
        found = [self]
        for below in (*self.early, *self.late, *(birth for _, birth in self.adopted)):
            found += below.all()
        return found


class Plan:
    """init: PID 1 of the new namespace (its pid is 1). births: everything below it by pid."""

    def __init__(self, init: Birth) -> None:
        self.init = init
        self.births = {birth.pid: birth for birth in init.all()}


def plan(manifest: Manifest, keep_session: bool, numbered: bool = True) -> Plan:
    """The births of a job.

    keep_session: processes whose session's leader was outside stay in the restarting process' session (for the sake
    of its terminal); else a stand-in leads a session of the old number. numbered: stand-ins may have the old numbers
    (in a new PID namespace); in place they cannot, and are left out.
    """
    processes = {record.pid: record for record in manifest.processes}
    births = {pid: Birth(pid, ZOMBIE if record.state == "zombie" else PROCESS) for pid, record in processes.items()}
    threads = {thread.tid for record in manifest.processes for thread in record.threads}
    free = _free_numbers(manifest, threads)
    init = Birth(1, STAND_IN)
    root = processes[manifest.root]
    holders: dict[int, Birth] = {1: init}

    def stand_in(pid: int, below: Birth) -> Birth:
        if pid not in holders:
            holders[pid] = Birth(pid, STAND_IN)
            below.late.append(holders[pid])
        return holders[pid]

    # The session of the outside world, if the job is in one.
    outer = init
    if root.sid not in processes and not keep_session and numbered and root.sid > 1:
        outer = stand_in(root.sid, init)
        outer.setsid = True
    # The parent of the outside world.
    parent = init
    if root.outside and root.parent > 1 and numbered:
        parent = stand_in(root.parent, outer)
        parent.subreaper = manifest.parent_is_reaper
    parent.watches = root.pid

    # Groups first led by somebody who is not there any more.
    for record in manifest.processes:
        if record.pgid in processes:
            births[record.pgid].leads = True

    for record in manifest.processes:
        birth = births[record.pid]
        birth.setsid = record.sid == record.pid
        _place(record, birth, births, processes, parent, outer, init, keep_session, free, holders)

    for record in manifest.processes:
        if record.pgid in processes or record.pgid == record.sid or record.pgid <= 1 or not numbered:
            continue
        if record.pgid in holders:
            holders[record.pgid].leads = True
        elif record.pgid not in births:
            ghost = Birth(record.pgid, GHOST)
            ghost.leads = True
            births[record.pgid] = ghost
            leader = births.get(record.sid) if record.sid in processes else holders.get(record.sid)
            if leader is None:
                outer.late.append(ghost)
                # A group of the outside world: its leader may well be alive there.
                ghost.role = STAND_IN
            elif leader.role == STAND_IN:
                leader.late.append(ghost)
                ghost.role = STAND_IN
            else:
                leader.adopted.append((free.pop(), ghost))
    return Plan(init)


def _place(
    record: ProcessRecord,
    birth: Birth,
    births: dict[int, Birth],
    processes: dict[int, ProcessRecord],
    parent: Birth,
    outer: Birth,
    init: Birth,
    keep_session: bool,
    free: list[int],
    holders: dict[int, Birth],
) -> None:
    """Hang one birth below whoever has to fork it."""
    if record.parent in processes and not record.outside:
        above, over = births[record.parent], processes[record.parent]
        if record.sid == record.pid or record.sid == over.sid:
            above.late.append(birth)
        elif over.sid == over.pid and _before(over, processes) == _visible(record.sid, processes):
            above.early.append(birth)
        else:
            raise RestartFailed(
                f"process {record.pid} ({record.comm}) is in session {record.sid} and a child of process "
                f"{record.parent}, which was never in it: this family cannot be made again yet"
            )
        return
    # A child of the outside world: the root, or an orphan that fell to a reaper.
    reaper = parent if record.pid == parent.watches or record.parent == parent.pid else init
    leader = births.get(record.sid) if record.sid in processes else holders.get(record.sid)
    if record.sid == record.pid or (_visible(record.sid, processes) == 0 and (keep_session or leader in (None, outer))):
        if record.sid != record.pid and reaper is init and outer is not init:
            outer.adopted.append((free.pop(), birth))
        else:
            reaper.late.append(birth)
    elif leader is not None:
        leader.adopted.append((free.pop(), birth))
    else:
        reaper.late.append(birth)


def _visible(sid: int, processes: dict[int, ProcessRecord]) -> int:
    """A session by its leader, 0 for one whose leader is not in the job."""
    return sid if sid in processes else 0


def _before(record: ProcessRecord, processes: dict[int, ProcessRecord]) -> int:
    """The session a session leader was forked in."""
    over = processes.get(record.parent)
    if over is None or record.outside:
        return 0
    return _visible(over.sid, processes)


def _free_numbers(manifest: Manifest, threads: set[int]) -> list[int]:
    """Pids that nobody of the job has, for helpers that exit at once."""
    taken = set(threads)
    for record in manifest.processes:
        taken.update((record.pid, record.parent, record.pgid, record.sid))
    return [pid for pid in range(2, 32000) if pid not in taken][: 2 * len(manifest.processes) + 16]


def creation_order(needs: Sequence[Sequence[int]]) -> list[int]:
    """The order in which objects are created, each after those it needs; `needs` by object number.

    Raises RestartFailed for a circle.
    """
    order: list[int] = []
    state = [0] * len(needs)

    def visit(number: int) -> None:
        if state[number] == 2:
            return
        if state[number] == 1:
            raise RestartFailed(f"object {number} of the checkpoint needs itself")
        state[number] = 1
        for other in needs[number]:
            visit(other)
        state[number] = 2
        order.append(number)

    for number in range(len(needs)):
        visit(number)
    return order
