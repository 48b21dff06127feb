"""Who is to be told of the next message in a POSIX message queue (mq_notify(3)).

The kernel keeps for a queue one process and how it is to be told: by a signal with a value, by 32 bytes for a netlink
socket of its (SIGEV_THREAD: a thread of the C library waits there, and the bytes say what it is to call), or not at all
(SIGEV_NONE: it only keeps others from asking). read(2) on a descriptor of the queue tells process, way and signal, but
neither the value nor the bytes. These come out only by being told. So the process is made to be told, to take what it
was told away again, and to ask for the same once more, in one batch of calls, which is brought to its end also if we
are killed. Everybody else in the job is stopped: nobody sees anything.

By a signal. An empty message is put into the queue, which is empty, with the highest priority, and taken out: the
kernel queues the signal and forgets who asked. The signal is blocked and taken; what came with it is laid so that it
is the beginning of the next mq_notify. A process without a descriptor to send through opens one and closes it before it
asks again (closing any descriptor of the queue takes back what the process has asked for).

By a thread. mq_notify(NULL) makes the kernel send the bytes, with a mark that they are not the news; no message is
needed. Which of its netlink sockets it is shows by where they come.

The batch begins with a try to lock the queue (flock), which we have locked: if that succeeds we are dead (all our
threads are), the job runs, and all the rest is left out. Should the job be let go by our death in the few microseconds
between that and the taking away, and another task of it come in between just then, it may be told for nothing, or
receive the empty message. What is taken away is compared first, and nothing is asked for again that did not come.

At the restart the process asks again by itself.

Seen by edge-triggered watchers (epoll(7)): a queue that can be written to may become news once more. Not kept: times.

Source: mq_notify(3), ipc/mqueue.c (do_mq_notify, __do_notify, remove_notification, mqueue_flush_file).
"""

from __future__ import annotations

import fcntl
import os
import select
import signal
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec

from torpor.linux import mqueue, proc
from torpor.linux.arch.x86_64 import NR
from torpor.model.errors import NotNow, Refused
from torpor.posix import locks, netlink, socket_kinds, socket_queue
from torpor.posix import mqueue_told as told
from torpor.posix.descriptors import O_PATH, siblings
from torpor.posix.mqueue import open_own, queues
from torpor.posix.outside import last_name
from torpor.posix.service import Descriptor, Job, JobBase
from torpor.tracee.call import LEFT_OUT, Answer, Call, In, call
from torpor.tracee.process import Process

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
    """One that is to be told. seen, own: a descriptor of the queue in the job, and ours. mine: those of the process."""

    seen: Descriptor
    own: int
    how: mqueue.Notification
    size: int
    process: Process
    mine: tuple[Descriptor, ...]
    sockets: tuple[int, ...]

    def thing(self, what: str) -> str:
        return f"the message queue /{last_name(self.seen.target)}, {what}"

    def waits(self, what: str, way_out: str) -> NotNow:
        return NotNow([self.seen.refuse(self.thing(what), way_out)], [self.process.pid])


class NotifyService(JobBase):
    name = "mqueue_notify"
    record: type[msgspec.Struct] = Notices

    def capture(self, job: Job, processes: Sequence[Process]) -> Notices | None:
        known = {(one.dev, one.ino): one for one in queues(job)}
        found: list[_Asked] = []
        ours: list[int] = []
        try:
            for seen in known.values():
                ours.append(open_own(job.hold(seen.pid, seen.number), seen))
                how = mqueue.notification(ours[-1])
                if how is not None:
                    found.append(_look(seen, ours[-1], how, job, processes))
            # Nothing has been touched yet, and nothing is in the way any more.
            notices = [_notice(asked, job) for asked in found]
        finally:
            for own in ours:
                os.close(own)
        kept = tuple(notice for notice in notices if notice is not None)
        return Notices(kept) if kept else None

    def create(self, record: Any, processes: Mapping[int, Process], source: Any) -> None:
        """Its descriptor has no number yet."""

    def finish(self, record: Any, processes: Mapping[int, Process]) -> None:
        for notice in record.notices:
            if notice.kind == mqueue.THREAD:
                event = told.sigevent(notice.socket, notice.kind, In(notice.cookie))
            else:
                event = told.sigevent(notice.signal, notice.kind, value=notice.value)
            processes[notice.pid].run([call(NR.mq_notify, notice.number, event)])


def _look(seen: Descriptor, own: int, how: mqueue.Notification, job: Job, processes: Sequence[Process]) -> _Asked:
    """Who is to be told, and by which descriptors. Raises Refused for what could not be found out."""
    process = next((one for one in processes if one.tgid == how.pid), None)
    mine = tuple(one for one in siblings(seen, job) if process and one.pid == process.pid and not one.flags & O_PATH)
    if process is None or not mine:
        thing = f"the message queue /{last_name(seen.target)}, of whose next message a process without a descriptor"
        raise Refused([seen.refuse(f"{thing} is to be told (mq_notify)", "close it before the checkpoint")])
    asked = _Asked(seen, own, how, mqueue.attributes(own).size, process, mine, ())
    if how.kind == mqueue.THREAD:
        asked = asked._replace(sockets=_sockets(asked, job))
    elif how.kind == mqueue.SIGNAL and how.signal:
        _look_at_signal(asked)
    else:
        return asked
    try:
        fcntl.flock(own, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        way_out = "give the lock back before the checkpoint"
        raise Refused([seen.refuse(asked.thing("which is locked (flock) and has a notification"), way_out)]) from None
    return asked


def _look_at_signal(asked: _Asked) -> None:
    """Raises Refused where the signal would do harm or would not be the one that is taken."""
    number = asked.how.signal
    name = f"signal {number}"
    if number in _UNTOUCHABLE:
        what = f"of whose next message {name} is to tell, which cannot be blocked or stops a process (mq_notify)"
        raise Refused([asked.seen.refuse(asked.thing(what), _TAKE_BACK)])
    if asked.process.pid != asked.process.tgid:
        what = f"of whose next message {name} is to tell a process whose first thread has ended (mq_notify)"
        raise Refused([asked.seen.refuse(asked.thing(what), _TAKE_BACK)])
    status = proc.status(asked.process.pid)
    if (int(status["SigPnd"], 16) | int(status["ShdPnd"], 16)) >> (number - 1) & 1:
        what = f"of whose next message {name} is to tell, which is waiting already (mq_notify)"
        raise asked.waits(what, "let the program take the signal first")
    queued, limit = (int(part) for part in status["SigQ"].split("/"))
    if queued + SPARE > limit:
        what = f"of whose next message {name} is to tell, while {queued} of {limit} signals wait for this user"
        raise asked.waits(what, "let programs take their signals, or raise the limit (ulimit -i)")
    if _ends(asked) is None and any(lock.kind == locks.POSIX for one in asked.mine for lock in locks.held(one.info)):
        what = "which is locked (fcntl), and of whose next message a process without the right to send is to be told"
        raise Refused([asked.seen.refuse(asked.thing(what), "give the lock back before the checkpoint")])


def _ends(asked: _Asked) -> tuple[int, int] | None:
    """The process' descriptors to send and to receive through; None if it has not both."""
    senders = [one.number for one in asked.mine if one.access != os.O_RDONLY]
    receivers = [one.number for one in asked.mine if one.access != os.O_WRONLY]
    return (min(senders), min(receivers)) if senders and receivers else None


def _sockets(asked: _Asked, job: Job) -> tuple[int, ...]:
    """The netlink sockets of the process (one descriptor of each) to which the kernel sends only what is asked for.
    Raises Refused if there is none."""
    found: dict[int, Descriptor] = {}
    for one in job.descriptors:
        if one.pid == asked.process.pid and one.ino not in found and socket_kinds.kind(one) == "NETLINK":
            found[one.ino] = one
    held = {one.number: job.hold(one.pid, one.number) for one in found.values()}
    silent = [number for number, fd in held.items() if not netlink.groups(fd)]
    if any(socket_queue.readable(held[number]) & (select.POLLIN | select.POLLERR) for number in silent):
        what = "of whose next message a thread is to be told, by a netlink socket with something to read (mq_notify)"
        raise asked.waits(what, "try again, or let the program read it first")
    if not silent:
        what = "of whose next message a thread is to be told, by a netlink socket that is not to be found (mq_notify)"
        raise Refused([asked.seen.refuse(asked.thing(what), _TAKE_BACK)])
    return tuple(silent)


def _notice(asked: _Asked, job: Job) -> Notice | None:
    """The record of one. None if it was never going to be told."""
    how = asked.how
    plain = Notice(job.vpid(asked.process.pid), min(one.number for one in asked.mine), how.kind, how.signal)
    if how.kind == mqueue.THREAD:
        return _told_by_socket(asked, plain)
    return _told_by_signal(asked, plain, job.say) if how.kind == mqueue.SIGNAL and how.signal else plain


def _told_by_signal(asked: _Asked, plain: Notice, say: Callable[[str], None]) -> Notice | None:
    process, queue, number = asked.process, plain.number, plain.signal
    answers = _made(process, told.by_signal(process.vpid, queue, number, asked.size, _ends(asked)))
    opened = answers.get("open", Answer(0))
    if answers["early"].value == number:
        what = f"of whose next message signal {number} is to tell, which came at this moment (mq_notify)"
        raise asked.waits(what, "let the program take the signal first")
    if opened.error and opened.value != LEFT_OUT:
        what = f"which process {process.pid} cannot open for sending ({os.strerror(opened.error)})"
        way_out = "let it open the queue for sending too, or take the notification back (mq_notify(queue, NULL))"
        raise Refused([asked.seen.refuse(asked.thing(what), way_out)])
    if answers["back"].value == 0:
        # Another one came in between, and waits behind ours now.
        _close(process, opened)
        answers, opened = _made(process, told.taking(process.vpid, queue, number)), Answer(0)
    if answers["ask"].value == 0:
        value = answers["take"].outs[0][told.VALUE : told.VALUE + 8]
        return msgspec.structs.replace(plain, value=int.from_bytes(value, "little"))
    if mqueue.notification(asked.own) is not None:
        what = f"of whose next message signal {number} is to tell, and whose value could not be found out (mq_notify)"
        raise Refused([asked.seen.refuse(asked.thing(what), "try again")])
    _close(process, opened)
    if answers["back"].value == 0:
        what = f"of whose next message signal {number} was to tell, in whose place another one came at this very moment"
        raise Refused([asked.seen.refuse(asked.thing(what), "let the program ask again (mq_notify)")])
    # The kernel tells only the program that has asked, not another one that the process has executed since.
    say(asked.thing(f"of whose next message signal {number} was to tell a program that is gone: forgotten"))
    return None


def _close(process: Process, opened: Answer) -> None:
    """Close what was opened for sending, if anything was. The process asks for nothing, or closing would end that."""
    if opened.value > 0:
        process.run([call(NR.close, opened.value)])


def _told_by_socket(asked: _Asked, plain: Notice) -> Notice:
    answers = _made(asked.process, told.by_socket(plain.number, asked.sockets))
    for number in asked.sockets:
        answer = answers[f"take {number}"]
        if answer.value == told.COOKIE:
            return msgspec.structs.replace(plain, socket=number, cookie=answer.outs[0])
    # Nobody has the socket any more: as good as SIGEV_NONE, which it was made to be.
    return msgspec.structs.replace(plain, kind=mqueue.NONE)


def _made(process: Process, calls: Sequence[Call]) -> dict[str, Answer]:
    """Make calls in a process; the answers of those that have names."""
    answers = process.run(calls, check=False)
    return {one.name: answer for one, answer in zip(calls, answers)}
