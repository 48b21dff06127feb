"""Who is to be told of the next message in a POSIX message queue (mq_notify(3)).

The kernel keeps for a queue one process and how it is to be told: by a signal with a value, by 32 bytes for a netlink
socket of its (SIGEV_THREAD: a thread of the C library waits there, and the bytes say what it is to call), or not at all
(SIGEV_NONE: it only keeps others from asking). read(2) on a descriptor of the queue tells process, way and signal, but
neither the value nor the bytes. These come out only by being told. So the process (the *actor*) is made to be told, to
take what it was told away again, and to ask for the same once more (posix/mqueue_told.py).

By a signal. An empty message is put into the queue, which is empty, with the highest priority, and taken out: the
kernel queues the signal and forgets who asked. The signal is blocked and taken; what came with it is laid so that it
is the beginning of the next mq_notify. It is sent through a descriptor of ours, since many may only receive.

By a thread. mq_notify(NULL) makes the kernel send the bytes, with a mark that they are not the news; no message is
needed. Which of its netlink sockets it is shows by where they come.

All of that is one batch of calls, which is brought to its end also if we are killed, and for which everybody who could
come in between stands still, also if we are killed (posix/turnover.py): all other threads of the actor, and all
processes that have the queue open, or the sockets. The batch begins with our word; before, nothing has happened.

What else may come in between, in the microseconds of it: another signal of that number, from outside the job. A
real-time signal stays where it is in the line. If it is a classic one, of which the kernel keeps only one, ours is lost
in it, and what was asked for with that; this is said, and the checkpoint fails. And a program that opens the queue by
its name at just that moment can find the empty message.

At the restart the process asks again by itself.

Seen by edge-triggered watchers (epoll(7)): a queue that can be written to may become news once more. Not kept: times.

Source: mq_notify(3), ipc/mqueue.c (do_mq_notify, __do_notify, remove_notification, mqueue_flush_file).
"""

from __future__ import annotations

import _socket
import os
import select
import signal
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec

from torpor.linux import mqueue, proc
from torpor.linux.arch.x86_64 import NR
from torpor.model.errors import CheckpointFailed, NotNow, Refused
from torpor.named_tuple import NamedTuple
from torpor.posix import locks, netlink, socket_kinds, turnover
from torpor.posix import mqueue_told as told
from torpor.posix.descriptors import O_PATH, siblings
from torpor.posix.mqueue import open_own, queues
from torpor.posix.outside import last_name
from torpor.posix.service import Descriptor, Job, JobBase
from torpor.posix.socket_peek import readable
from torpor.posix.turnover import Meeting, Numbers, Run, Script
from torpor.tracee.call import Answer, In, call
from torpor.tracee.process import LivingProcess, Process

SPARE = 8
"""Signals that may still be queued for the user before we have one more queued: without room, the value is lost."""

_UNTOUCHABLE = (
    signal.SIGKILL, signal.SIGSTOP, signal.SIGCONT, signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU
)  # fmt: skip
"""Signals that do something already as they are sent, or cannot be blocked."""
_TAKE_BACK = "take that back for the checkpoint (mq_notify(queue, NULL)), or wait in mq_receive or poll instead"


class Notice(msgspec.Struct, frozen=True, array_like=True):
    """The process (pid in the job) asks through its descriptor `number`. kind: sigev_notify. signal, value: what it is
    told with. socket, cookie: where it has a thread waiting (its number in the process), and what that is told."""

    pid: int
    number: int
    kind: int
    signal: int = 0
    value: int = 0
    socket: int = -1
    cookie: bytes = b""


class Notices(msgspec.Struct, frozen=True):
    notices: tuple[Notice, ...]


class _Asked(NamedTuple):
    """One that is to be told. seen, own: a descriptor of the queue in the job, and ours. actor: the process that asks;
    number: its descriptor; sockets: its netlink sockets. bystanders: the other processes that have to stand still.
    waiting: signals that wait at the actor (a mask)."""

    seen: Descriptor
    own: int
    how: mqueue.Notification
    actor: LivingProcess
    number: int
    sockets: tuple[int, ...] = ()
    bystanders: tuple[LivingProcess, ...] = ()
    waiting: int = 0

    @property
    def what(self) -> str:
        """How it is told."""
        return "a thread" if self.how.kind == mqueue.THREAD else f"signal {self.how.signal}"

    @property
    def plain(self) -> bool:
        """Nothing is told: nothing is to be found out."""
        return (self.how.kind, self.how.signal) in ((mqueue.NONE, 0), (mqueue.SIGNAL, 0))

    def thing(self, more: str) -> str:
        """more: what about it, to be read behind `... is to tell'."""
        name = f"the message queue /{last_name(self.seen.target)}"
        return f"{name}, of whose next message {self.what} is to tell (mq_notify){more}"

    def refused(self, more: str, way_out: str = _TAKE_BACK) -> Refused:
        return Refused([self.seen.refuse(self.thing(more), way_out)])

    def waits(self, more: str, way_out: str) -> NotNow:
        return NotNow([self.seen.refuse(self.thing(more), way_out)], [self.actor.pid])


class NotifyService(JobBase):
    name = "mqueue_notify"
    record: type[msgspec.Struct] = Notices

    def capture(self, job: Job, processes: Sequence[Process]) -> Notices | None:
        living = {one.pid: one for one in processes if isinstance(one, LivingProcess)}
        known = {(one.dev, one.ino): one for one in queues(job)}
        found: list[_Asked] = []
        ours: list[int] = []
        try:
            for seen in known.values():
                ours.append(open_own(job.hold(seen.pid, seen.number), seen))
                how = mqueue.notification(ours[-1])
                if how is not None:
                    found.append(_look(seen, ours[-1], how, job, living))
            # Nothing has been touched yet, and nothing is in the way any more.
            notices = tuple(one for one in (_notice(asked, job.say) for asked in found) if one is not None)
        finally:
            for own in ours:
                os.close(own)
        return Notices(notices) if notices else None

    def create(self, record: Any, processes: Mapping[int, Process], source: Any) -> None:
        """Its descriptor has no number yet."""

    def finish(self, record: Any, processes: Mapping[int, Process]) -> None:
        for notice in record.notices:
            if notice.kind == mqueue.THREAD:
                event = told.sigevent(notice.socket, notice.kind, In(notice.cookie))
            else:
                event = told.sigevent(notice.signal, notice.kind, value=notice.value)
            processes[notice.pid].run([call(NR.mq_notify, notice.number, event)])


def _look(
    seen: Descriptor, own: int, how: mqueue.Notification, job: Job, living: Mapping[int, LivingProcess]
) -> _Asked:
    """Who is to be told, and what is needed for it. Raises Refused for what could not be found out."""
    actor = next((one for one in living.values() if one.tgid == how.pid), None)
    mine = [one for one in siblings(seen, job) if actor and one.pid == actor.pid and not one.flags & O_PATH]
    if actor is None or not mine:
        thing = f"the message queue /{last_name(seen.target)}, of whose next message a process without a descriptor"
        raise Refused([seen.refuse(f"{thing} is to be told (mq_notify)", "close it before the checkpoint")])
    asked = _Asked(seen, own, how, actor, min(one.number for one in mine))
    if asked.plain:
        return asked
    sockets = _sockets(asked, job) if how.kind == mqueue.THREAD else {}
    others = {one.pid for one in siblings(seen, job)}
    others |= {one.pid for ino in sockets.values() for one in job.descriptors if one.ino == ino}
    bystanders = tuple(living[pid] for pid in sorted(others - {actor.pid}) if pid in living)
    if turnover.share_descriptors([actor.pid, *(one.pid for one in bystanders)]):
        raise asked.refused(", of processes that share their descriptors (CLONE_FILES)")
    if bystanders and actor.leader.stop_signal:
        raise asked.waits(", of a process that is stopped", "let it go on first (kill -CONT)")
    asked = asked._replace(sockets=tuple(sockets), bystanders=bystanders)
    return _with_signals(asked, mine) if how.kind == mqueue.SIGNAL else asked


def _with_signals(asked: _Asked, mine: Sequence[Descriptor]) -> _Asked:
    """Raises Refused where the signal would do harm or would not be the one that is taken."""
    number, actor = asked.how.signal, asked.actor
    if number in _UNTOUCHABLE:
        raise asked.refused(", which cannot be blocked or stops a process")
    if actor.pid != actor.tgid:
        raise asked.refused(" a process whose first thread has ended")
    if any(lock.kind == locks.POSIX for one in mine for lock in locks.held(one.info)):
        raise asked.refused(", and which is locked (fcntl)", "give the lock back before the checkpoint")
    status = proc.status(actor.pid, actor.leader.tid)
    waiting = int(status["SigPnd"], 16) | int(status["ShdPnd"], 16)
    if waiting >> (number - 1) & 1:
        raise asked.waits(", which is waiting already", "let the program take the signal first")
    queued, limit = (int(part) for part in status["SigQ"].split("/"))
    if queued + SPARE > limit:
        way_out = "let programs take their signals, or raise the limit (ulimit -i)"
        raise asked.waits(f", while {queued} of {limit} signals wait for this user", way_out)
    return asked._replace(waiting=waiting)


def _sockets(asked: _Asked, job: Job) -> dict[int, int]:
    """The netlink sockets of the actor to which the kernel sends only what is asked for: a number of each, and its
    inode number. Raises Refused if there is none."""
    found: dict[int, Descriptor] = {}
    for one in job.descriptors:
        if one.pid == asked.actor.pid and one.ino not in found and socket_kinds.kind(one) == "NETLINK":
            found[one.ino] = one
    held = {one.number: job.hold(one.pid, one.number) for one in found.values()}
    silent = {one.number: ino for ino, one in found.items() if not netlink.groups(held[one.number])}
    if any(readable(held[number]) & (select.POLLIN | select.POLLERR) for number in silent):
        way_out = "try again, or let the program read it first"
        raise asked.waits(", by a netlink socket with something to read", way_out)
    if not silent:
        raise asked.refused(", by a netlink socket that is not to be found")
    return silent


def _notice(asked: _Asked, say: Callable[[str], None]) -> Notice | None:
    """The record of one. None if it was never going to be told."""
    plain = Notice(asked.actor.vpid, asked.number, asked.how.kind, asked.how.signal)
    if asked.plain:
        return plain
    return _told_by_socket(asked, plain) if asked.how.kind == mqueue.THREAD else _told_by_signal(asked, plain, say)


def _told_by_signal(asked: _Asked, plain: Notice, say: Callable[[str], None]) -> Notice | None:
    size = mqueue.attributes(asked.own).size
    calls = told.BySignal(asked.actor.vpid, plain.number, plain.signal, size, asked.waiting)
    stage = _Stage(asked)
    calls.look(stage.script, "back")
    own = stage.receive(1, "back")
    calls.make(stage.script, own, "back")
    stage.script.label("back")
    calls.let(stage.script)
    answers = stage.play([asked.own])
    value = calls.value(answers)
    if value is not None:
        return msgspec.structs.replace(plain, value=value)
    if mqueue.notification(asked.own) is not None:
        raise asked.waits(", and whose value could not be found out", "try again")
    if calls.others(answers):
        raise CheckpointFailed(asked.thing(": another one has come in its place, and the program has to ask again"))
    # The kernel tells only the program that has asked, not another one that the process has executed since.
    say(asked.thing(" a program that is gone: forgotten"))
    return None


def _told_by_socket(asked: _Asked, plain: Notice) -> Notice:
    stage = _Stage(asked)
    stage.receive(0, "over")
    takes = told.by_socket(plain.number, asked.sockets, stage.script)
    answers = stage.play([])
    for number, place in takes.items():
        if answers[place].value == told.COOKIE:
            return msgspec.structs.replace(plain, socket=number, cookie=answers[place].outs[0])
    if mqueue.notification(asked.own) != asked.how._replace(kind=mqueue.NONE):
        raise asked.waits(", and what stands for it could not be found out", "try again")
    # Nobody has the socket any more: as good as SIGEV_NONE, which it was made to be.
    return msgspec.structs.replace(plain, kind=mqueue.NONE)


class _Stage:
    """The batch of the actor in the making, and with it everybody who stands still meanwhile."""

    def __init__(self, asked: _Asked) -> None:
        self._asked = asked
        self._meeting = Meeting(_socket.SOCK_SEQPACKET)
        self._numbers = Numbers(asked.actor.pid)
        self.script = Script()
        self._restore = turnover.more_descriptors(asked.actor.pid, self.script)
        self._opened = [self._meeting.connect(self._numbers, self.script, "over")]
        turnover.receive_descriptors(self._opened[0], 0, self.script, "over")

    def receive(self, count: int, otherwise: str) -> int:
        """Add: wait for our word, and for `count` descriptors; the number of the first one. It stays open."""
        gates = len(self._asked.bystanders)
        turnover.receive_descriptors(self._opened[0], count + gates, self.script, otherwise)
        numbers = [self._numbers.take() for _ in range(count + gates)]
        self._opened += numbers[count:]
        return numbers[0] if count else -1

    def play(self, fds: Sequence[int]) -> list[Answer]:
        """Make the calls; `fds` are the descriptors of ours that the batch receives. Raises Refused, NotNow."""
        asked, script, run = self._asked, self.script, Run(self._meeting)
        script.label("over")
        for number in self._opened:
            script.add(NR.close, number)
        self._restore()
        try:
            run.hold(turnover.bystander(one, self._meeting) for one in asked.bystanders)
            link = run.start(asked.actor, script)
            if run.loose:
                more = f", of processes with so many threads that {run.loose} cannot be held"
                raise asked.refused(more)
            link.send(b"\0", turnover.NOSIGNAL)
            run.commit(fds)
            return run.finish()
        finally:
            run.close()


SERVICE = NotifyService()
