"""What the three kinds of System V objects (shared memory, semaphores, message queues) have in common.

The kernel keeps them for an IPC namespace, not for a process: they outlive everybody who uses them. It does not keep
who uses them either, apart from the last operations. So which of them belong to a job is decided here:

    a job in an IPC namespace of its own (one that was restarted): all objects of the namespace
    a job that shares its namespace with others:
        shared memory that a process of the job has attached;
        objects whose creator, or whose last user, is a process of the job that was alive at that time;
        objects on which a process of the job is waiting;
        objects that were created or changed since the job's first process started, by a user whose processes the job
        has, and that nobody else who is alive has attached or was the last to use; if the job is in a PID namespace of
        its own, nobody outside of it, alive or not. (One that another job of this user has made meanwhile and not used
        yet is saved with it: a restarted job has a namespace of its own.)

An object that a process of the job *and* a living process outside use is refused: after a restart they would no longer
be one. Only for shared memory can that be known for certain (the kernel counts attachments); of the other two the
last users are known.

Where objects are read: shmctl, semctl, msgctl and msgrcv(MSG_COPY) called in the stopped job, which leaves no trace.
They come back in a new IPC namespace, under the numbers they had (/proc/sys/kernel/{shm,sem,msg}_next_id), with key,
owner, creator and mode. Times are those of the restart, and so are pids of processes that are not in the job any more.

Source: ipc/util.c, sysvipc(7), proc_sys_kernel(5).
"""

from __future__ import annotations

import os
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import cached_property, lru_cache

import msgspec

from torpor.linux import proc, sysvipc
from torpor.linux.arch.x86_64 import NR
from torpor.linux.sysvipc import Perm
from torpor.model.errors import Refusal, Refused, RestartFailed
from torpor.tracee.call import ANY, Answer, Call, In, Out, call
from torpor.tracee.process import Process


class Identity(msgspec.Struct, frozen=True):
    """What every object has. number: its id. mode: permission bits only."""

    number: int
    key: int
    uid: int
    gid: int
    cuid: int
    cgid: int
    mode: int


def identity(number: int, perm: Perm) -> Identity:
    return Identity(number, perm.key, perm.uid, perm.gid, perm.cuid, perm.cgid, perm.mode & 0o777)


class Members:
    """The stopped processes of a job, as owners and users of objects."""

    def __init__(self, processes: Sequence[Process]) -> None:
        self.processes = processes
        self.by_vpid = {process.vpid: process for process in processes}

    @property
    def first(self) -> Process:
        return self.processes[0]

    @cached_property
    def private(self) -> bool:
        """Is the job alone in its IPC namespace?"""
        return proc.namespace(self.first.pid, "ipc") != proc.own_namespace("ipc")

    @cached_property
    def sees_all(self) -> bool:
        """Are the pids that the job sees those that we see?"""
        return proc.namespace(self.first.pid, "pid") == proc.own_namespace("pid")

    @cached_property
    def uids(self) -> frozenset[int]:
        return frozenset(int(word) for process in self.processes for word in process.status["Uid"].split())

    @cached_property
    def started(self) -> float:
        """When the first process of the job started, seconds since the epoch."""
        return _began(self.first.stat)

    def are_younger(self, when: int) -> bool:
        """Had nobody of them started yet when an object in a namespace that others share was used last? Then it is not
        theirs."""
        return not self.private and when + 1 < self.oldest

    @cached_property
    def oldest(self) -> float:
        """When the oldest of them started, seconds since the epoch."""
        return _began(min((process.stat for process in self.processes), key=lambda stat: stat.starttime))

    def acted(self, vpid: int, when: int) -> bool:
        """Was it a process of the job (and not one that had its pid before) that did something at `when`?"""
        process = self.by_vpid.get(vpid)
        return process is not None and bool(when) and _began(process.stat) <= when + 1

    def outsider(self, vpid: int, when: int) -> int:
        """The same for a living process outside the job: its pid, else 0."""
        if vpid <= 0 or vpid in self.by_vpid or not self.sees_all or not when:
            return 0
        try:
            stat = proc.stat(vpid)
            if stat.state in "ZX" or any(process.tgid == stat.ppid for process in self.processes):
                return 0  # one of the job's that has ended, or is just ending
            return vpid if started(vpid) <= when + 1 else 0
        except OSError:
            return 0

    def made_here(self, perm: Perm, ctime: int, used: Iterable[tuple[int, int]]) -> bool:
        """May it have been made by a process of the job that has ended? used: who did something with it, and when; what
        a living process outside the job uses is not the job's, nor what one outside its PID namespace has used, of
        which the job sees the number 0 (pid_vnr in kernel/pid.c) for as long as the object is there."""
        if ctime < int(self.started) or perm.cuid not in self.uids:
            return False
        if not self.sees_all and any(when and not pid for pid, when in used):
            return False
        return not any(self.outsider(pid, when) for pid, when in used)

    def own(
        self,
        words: str,
        mine: Identity,
        perm: Perm,
        ctime: int,
        used: Iterable[tuple[int, int]],
        waiting: Iterable[int],
    ) -> bool:
        """Is an object the job's? Of those whose users nobody counts: semaphores and message queues.

        used: by whom (pid as the job sees it) and when; waiting: the ids on which tasks of the job wait. Raises
        Refused if it is somebody else's as well, or cannot be given back to its owner.
        """
        used = tuple(used)
        if not self.private:
            if mine.number in waiting or any(self.acted(pid, when) for pid, when in used):
                other = next((pid for pid, when in used if self.outsider(pid, when)), 0)
                if other:
                    raise self.refuse(
                        f"{words} {mine.number} (key {mine.key:#x}) is used by process {other} outside the job too",
                        "start both in one job, or end that process",
                    )
            elif not self.made_here(perm, ctime, used):
                return False
        check_owner(self, words, mine)
        return True

    def waiting(self, numbers: Iterable[int]) -> set[int]:
        """First arguments of the system calls among `numbers` in which tasks of the job stand."""
        wanted = set(numbers)
        return {
            task.regs.rdi & 0xFFFFFFFF for process in self.processes for task in process.tasks if task.in_call in wanted
        }

    def refuse(self, thing: str, way_out: str) -> Refused:
        return Refused([Refusal(self.first.pid, self.first.comm, thing, way_out)])


def started(pid: int) -> float:
    """When a process started, seconds since the epoch, to a second or so. Raises OSError."""
    return _began(proc.stat(pid))


def _began(stat: proc.Stat) -> float:
    ticks = stat.starttime / os.sysconf("SC_CLK_TCK")
    return time.time() - time.clock_gettime(time.CLOCK_BOOTTIME) + ticks


def listed(members: Members, nr: int, stat: int, size: int, theirs: Collection[int]) -> list[tuple[int, bytes]]:
    """All objects of one kind in the namespace of stopped processes: (id, structure). None where nothing can be theirs:
    none of the ids `theirs` is there, and all is as old as `Members.are_younger` says.

    nr: shmctl, semctl or msgctl. stat: the command that looks at a place in the kernel's table without asking for
    permission (Linux 4.17). size: of the structure.
    """
    process = members.first
    if not members.private:
        shown = _shown(nr)
        if shown is not None:
            ids, latest = shown
            if not ids or (ids.isdisjoint(theirs) and members.are_younger(latest)):
                return []
        if members.sees_all and proc.namespace(process.pid, "user") == proc.own_namespace("user"):
            return list(sysvipc.listed(nr, stat, size))  # it would see the very same
    highest = process.run([_control(nr, 0, sysvipc.INFO, 128)])[0].value
    answers = process.run([_control(nr, place, stat, size, ANY) for place in range(highest + 1)])
    return [(answer.value, answer.outs[0]) for answer in answers if not answer.error]


def _shown(nr: int) -> tuple[frozenset[int], int] | None:
    """The ids of all objects of a kind in our own namespace, and when one of them was used last (seconds since the
    epoch). None if they are not shown."""
    name = {NR.shmctl: "shm", NR.semctl: "sem", NR.msgctl: "msg"}[nr]
    try:
        return _table(proc.read(f"/proc/sysvipc/{name}"))
    except OSError:
        return None


@lru_cache(8)
def _table(raw: bytes) -> tuple[frozenset[int], int]:
    """A file of /proc/sysvipc. It has a line of headings: the id comes second, the columns of times end in `time`."""
    heads, *lines = (line.split() for line in raw.splitlines())
    times = [at for at, head in enumerate(heads) if head.endswith(b"time")]
    latest = max((int(line[at]) for line in lines for at in times), default=0)
    return frozenset(int(line[1]) for line in lines), latest


def _control(nr: int, number: int, command: int, size: int, accept: Iterable[int] = ()) -> Call:
    if nr == NR.semctl:
        return call(nr, number, 0, command, Out(size), accept=frozenset(accept))
    return call(nr, number, command, Out(size), accept=frozenset(accept))


def check_owner(members: Members, kind: str, mine: Identity) -> None:
    """Can the object be given back to its owners by whoever will restart the job? Raises Refused."""
    if os.geteuid() == 0:
        return
    foreign = {mine.uid, mine.cuid} - {os.geteuid()}
    if foreign:
        raise members.refuse(
            f"{kind} {mine.number} (key {mine.key:#x}) belongs to another user (uid {foreign.pop()})",
            "run torpor as root, or remove it (ipcrm)",
        )


def next_number(process: Process, kind: str, number: int) -> None:
    """The next object of this kind ('shm', 'sem', 'msg') in the namespace of a stub gets this number, if it is free.

    Raises RestartFailed.
    """
    path = f"/proc/sys/kernel/{kind}_next_id"
    answer = process.run([call(NR.open, In(path.encode() + b"\0"), os.O_WRONLY, accept=ANY)])[0]
    if answer.error:
        raise RestartFailed(
            f"System V objects cannot get their old numbers: {path}: {os.strerror(answer.error)} "
            "(needs a namespace of its own or CAP_CHECKPOINT_RESTORE, and CONFIG_CHECKPOINT_RESTORE)"
        )
    text = str(number).encode()
    written = process.run(
        [call(NR.write, answer.value, In(text), len(text)), call(NR.close, answer.value)], check=False
    )
    if written[0].error:
        raise RestartFailed(f"{path}: {os.strerror(written[0].error)}")


def made(process: Process, words: str, mine: Identity, how: Call, remove: Call) -> None:
    """Make an object in a stub by its creator's uid and gid, and see that it got its number. Raises RestartFailed.

    how: the call that makes it (shmget, semget, msgget). remove: the call that removes the wrong one (its first
    argument is replaced).
    """
    answer = _as_creator(process, mine, how)
    if answer.error:
        raise RestartFailed(
            f"{words} {mine.number} (key {mine.key:#x}) cannot be made again: {os.strerror(answer.error)}"
        )
    if answer.value != mine.number:
        process.run([remove._replace(args=(answer.value, *remove.args[1:]))], check=False)
        raise RestartFailed(f"{words} {mine.number} (key {mine.key:#x}) cannot be made again: the number is taken")


def _as_creator(process: Process, mine: Identity, how: Call) -> Answer:
    """The kernel writes the effective ids of the caller down as the creator's; nothing changes them later."""
    keep = (1 << 64) - 1
    uid, gid = os.geteuid(), os.getegid()
    if (mine.cuid, mine.cgid) == (uid, gid) or uid != 0:
        return process.run([how], check=False)[0]
    return process.run(
        [
            call(NR.setresgid, keep, mine.cgid, keep),
            call(NR.setresuid, keep, mine.cuid, keep),
            how,
            call(NR.setresuid, keep, uid, keep),
            call(NR.setresgid, keep, gid, keep),
        ],
        check=False,
    )[2]


def actor(processes: Mapping[int, Process], vpid: int) -> Process:
    """Who does something at the restart that `vpid` did last: itself, or the first process where it is gone."""
    found = processes.get(vpid)
    return found if found is not None else next(iter(processes.values()))
