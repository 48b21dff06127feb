"""Who forks whom. Pure: from the processes of a manifest to a tree of births.

What has to come out right is what only a fork at the right moment gives: parents, sessions, and the processes outside
the job whose numbers the job remembers (its parent, the leader of its session, leaders of its groups). Those are
played by *stand-ins*.

A process inherits the session of whoever forks it, so
- a child of the same session is forked after its parent's setsid,
- a child of the session its parent was in before is forked before that,
- an orphan of a session led by somebody else is forked by that leader through a helper that exits at once, so that it
  falls to its reaper again,
- an orphan of a session whose leader is gone is forked by a helper that has the leader's number, makes the session and
  exits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import count

from torpor.image.manifest import Manifest, ProcessRecord
from torpor.model.errors import RestartFailed

PROCESS, ZOMBIE, STAND_IN, GHOST = "process", "zombie", "stand-in", "ghost"


class Helper:
    """A process that forks others and exits at once, so that they fall to a reaper. pid: its number; one below 0 stands
    for any. setsid: it makes a session first, which then has lost its leader."""

    __slots__ = ("births", "pid", "setsid")

    def __init__(self, pid: int, setsid: bool = False) -> None:
        self.pid, self.setsid = pid, setsid
        self.births: list[Birth] = []


class Birth:
    """A process to be forked.

    pid: the number it gets. role: a process of the job; a zombie; a stand-in that stays; a ghost that leads a group
    until its members have joined. leads: it makes its own process group at once. setsid: it makes a session, after
    forking `early` and before forking `late`. helpers: see Helper. subreaper: orphans below fall to it. watches: the
    pid of the child whose end it reports (0: none).
    """

    __slots__ = ("early", "helpers", "late", "leads", "pid", "role", "setsid", "subreaper", "watches")

    def __init__(self, pid: int, role: str) -> None:
        self.pid, self.role = pid, role
        self.leads = self.setsid = self.subreaper = False
        self.watches = 0
        self.early: list[Birth] = []
        self.late: list[Birth] = []
        self.helpers: list[Helper] = []

    def all(self) -> list[Birth]:
        """This birth and all below it."""
        found = [self]
        for below in (*self.early, *self.late, *(birth for helper in self.helpers for birth in helper.births)):
            found += below.all()
        return found


class Plan:
    """init: PID 1 of the new namespace (its pid is 1), or who plays its part in place. births: everything below it by
    pid. parent: whose child the job's first process is."""

    def __init__(self, init: Birth, parent: Birth) -> None:
        self.init, self.parent = init, parent
        self.births = {birth.pid: birth for birth in init.all()}

    def helpers(self) -> list[Helper]:
        """All helpers."""
        return [helper for birth in self.births.values() for helper in birth.helpers]

    def numbers(self) -> set[int]:
        """All numbers that processes of the plan will have; those of helpers are free again afterwards."""
        return {number for number in (*self.births, *(h.pid for h in self.helpers())) if number > 1}


def plan(
    manifest: Manifest, keep_session: bool, to_be_had: Callable[[int], bool] = lambda _: True, any_number: bool = False
) -> Plan:
    """The births of a job.

    keep_session: processes whose session's leader was outside stay in the restarting process' session (for the sake of
    its terminal); else a stand-in leads a session of the old number. to_be_had: can a stand-in have that number? In a
    new PID namespace always; in place it may be in use, and what it would stand for is the restarting process' own
    then. any_number: helpers have no numbers of their own.
    """
    return _Planner(manifest, keep_session, to_be_had, any_number).plan()


class _Planner:
    def __init__(
        self, manifest: Manifest, keep_session: bool, to_be_had: Callable[[int], bool], any_number: bool
    ) -> None:
        self.manifest, self.keep_session, self.to_be_had = manifest, keep_session, to_be_had
        self.processes = {record.pid: record for record in manifest.processes}
        self.births = {
            pid: Birth(pid, ZOMBIE if record.state == "zombie" else PROCESS) for pid, record in self.processes.items()
        }
        self.free = count(-1, -1) if any_number else _free_numbers(manifest)
        self.init = self.outer = self.parent = Birth(1, STAND_IN)
        self.stand_ins: dict[int, Birth] = {1: self.init}
        self.gone: dict[int, Helper] = {}
        """Helpers that make sessions whose leader is gone, by session."""

    def plan(self) -> Plan:
        root = self.processes[self.manifest.root]
        self.outer_sid = root.sid if root.sid not in self.processes else 0
        if self.outer_sid > 1 and not self.keep_session and self.to_be_had(self.outer_sid):
            self.outer = self._stand_in(self.outer_sid, self.init)
            self.outer.setsid = True
        if root.outside and root.parent > 1 and (root.parent in self.stand_ins or self.to_be_had(root.parent)):
            self.parent = self._stand_in(root.parent, self.outer)
            self.parent.subreaper = self.manifest.parent_is_reaper
        self.parent.watches = root.pid
        for record in self.manifest.processes:
            birth = self.births[record.pid]
            birth.setsid = record.sid == record.pid
            if record.pgid in self.processes:
                self.births[record.pgid].leads = True
        for record in self.manifest.processes:
            self._place(record)
        for record in self.manifest.processes:
            self._lead(record)
        return Plan(self.init, self.parent)

    def _stand_in(self, pid: int, below: Birth) -> Birth:
        if pid not in self.stand_ins:
            self.stand_ins[pid] = Birth(pid, STAND_IN)
            below.late.append(self.stand_ins[pid])
        return self.stand_ins[pid]

    def _place(self, record: ProcessRecord) -> None:
        """Hang one birth below whoever has to fork it."""
        birth = self.births[record.pid]
        if not record.outside and record.parent in self.processes:
            over = self.processes[record.parent]
            above = self.births[record.parent]
            if record.sid in (record.pid, over.sid):
                above.late.append(birth)
            elif over.sid == over.pid and self._session_before(over) == self._session(record.sid):
                above.early.append(birth)
            else:
                # It has fallen to its parent, which must have been a reaper for that.
                above.subreaper = True
                self._adopt(record, above)
            return
        # A child of the outside world: the root, or an orphan that fell to a reaper there.
        is_parents = record.pid == self.manifest.root or record.parent == self.parent.pid
        reaper = self.parent if is_parents else self.init
        if record.sid == record.pid or (
            self._session(record.sid) == 0 and (reaper is self.parent or self.outer is self.init)
        ):
            reaper.late.append(birth)
        else:
            self._adopt(record, reaper)

    def _adopt(self, record: ProcessRecord, reaper: Birth) -> None:
        """A process of a session that its parent is not in: forked through a helper."""
        birth = self.births[record.pid]
        session = self._session(record.sid)
        if session == 0:
            self._helper(self.outer).births.append(birth)
        elif session in self.births:
            self._helper(self.births[session]).births.append(birth)
        else:
            if session not in self.gone:
                self.gone[session] = Helper(session, setsid=True)
                reaper.helpers.append(self.gone[session])
            self.gone[session].births.append(birth)

    def _helper(self, below: Birth) -> Helper:
        helper = Helper(next(number for number in self.free if number < 0 or self.to_be_had(number)))
        below.helpers.append(helper)
        return helper

    def _lead(self, record: ProcessRecord) -> None:
        """See to it that the group of a process exists when it joins, also if its leader is not in the job."""
        pgid = record.pgid
        if pgid in self.births or pgid in self.gone or pgid <= 1:
            return
        if pgid in self.stand_ins:
            if not self.stand_ins[pgid].setsid:
                self.stand_ins[pgid].leads = True
            return
        if not self.to_be_had(pgid):
            return
        session = self._session(record.sid)
        ghost = Birth(pgid, GHOST if session else STAND_IN)
        ghost.leads = True
        self.births[pgid] = ghost
        if not session:
            # A group of the outside world: its leader may well be alive there.
            self.outer.late.append(ghost)
            self.stand_ins[pgid] = ghost
        elif session in self.gone:
            self.gone[session].births.append(ghost)
        else:
            self._helper(self.births[session]).births.append(ghost)

    def _session(self, sid: int) -> int:
        """A session by its number, 0 for the one of the outside world, and for one that cannot be made here."""
        if sid in (0, self.outer_sid) or (sid not in self.processes and not self.to_be_had(sid)):
            return 0
        return sid

    def _session_before(self, leader: ProcessRecord) -> int:
        """The session a session leader was forked in."""
        over = self.processes.get(leader.parent)
        return 0 if over is None or leader.outside else self._session(over.sid)


def _free_numbers(manifest: Manifest) -> Iterator[int]:
    """Pids that nobody of the job has, for helpers that exit at once."""
    taken = {thread.tid for record in manifest.processes for thread in record.threads}
    for record in manifest.processes:
        taken.update((record.pid, record.parent, record.pgid, record.sid))
    return (pid for pid in count(300) if pid not in taken)


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
