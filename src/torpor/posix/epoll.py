"""epoll: a set of watches on other open file descriptions.

The kernel keeps for each watch: the open file description, the *number* it was added under (together they
are its key, and the number may long be closed or mean something else), events and data. fdinfo shows all
but the description, which is found by number, or, where that means something else now, by
kcmp(KCMP_EPOLL_TFD).

At the restart the watches are added in one process that has the instance, before its descriptors are at
their numbers: the target is put at the number it was added under, added, and taken away. In that process,
and not in ours, because a watch on a signalfd is one on the signals of whoever adds it.

A one-shot watch that has fired is shown with no events. Adding it so would still watch for errors and
hang-ups (the kernel adds those to every watch), so where its target is ready it is added armed, and the
event is taken at once.

Watches that are ready are reported as ready again, an edge-triggered one once more than without a checkpoint.
"""

from __future__ import annotations

import errno
import os
import select
from collections.abc import Sequence

import msgspec

from torpor.linux import epoll, kcmp, proc
from torpor.linux.arch.x86_64 import NR
from torpor.model.errors import Refusal, Refused
from torpor.posix.descriptors import fresh_info, set_status, status_flags
from torpor.posix.service import Descriptor, DescriptorBase, Job, Restart
from torpor.tracee.call import Call, In, Object, Out, call

_READY = select.EPOLLIN | select.EPOLLOUT


class Watched(msgspec.Struct, frozen=True, array_like=True):
    """One watch: the number it was added under, the object, events and data."""

    number: int
    target: int
    events: int
    data: int
    ready: bool = False
    """A one-shot watch that has fired, and its target could be read from or written to at the checkpoint."""

    @property
    def fired(self) -> bool:
        return bool(self.events & epoll.ONESHOT) and not self.events & ~epoll.HOW


class Epoll(msgspec.Struct, frozen=True):
    """An epoll instance."""

    flags: int
    watches: tuple[Watched, ...] = ()


class EpollService(DescriptorBase):
    name = "epoll"
    record = Epoll

    def claims(self, seen: Descriptor) -> bool:
        return seen.target == "anon_inode:[eventpoll]"

    def survey(self, seen: Descriptor, job: Job) -> Refusal | None:
        if all(target(watch, seen, job) for watch in epoll.watches(seen.info)):
            return None
        # The job may be running and have changed since it was looked at: once more, with what there is now. Only a
        # watch that outlasts our search counts; one that came and went with its descriptor does not.
        try:
            lost = [w for w in _watches_now(seen) if not target(w, seen, job) and not _is_anywhere(w, seen, job)]
            left = {(watch.number, watch.ino) for watch in _watches_now(seen)} if lost else ()
            for watch in lost:
                if (watch.number, watch.ino) in left:
                    return _refusal(seen, watch)
        except OSError:
            pass  # gone meanwhile
        return None

    def capture(self, fd: int, seen: Descriptor, job: Job) -> Epoll:
        out = []
        for watch in epoll.watches(fresh_info(fd)):
            found = target(watch, seen, job)
            number = job.object_of(found.pid, found.number) if found else None
            if found is None or number is None:
                raise Refused([_refusal(seen, watch)])
            one = Watched(watch.number, number, watch.events, watch.data)
            if one.fired and _is_ready(job.hold(found.pid, found.number)):
                one = msgspec.structs.replace(one, ready=True)
            out.append(one)
        return Epoll(status_flags(fd), tuple(out))

    def create(self, record: Epoll, restart: Restart) -> int:
        instance = select.epoll()
        fd = os.dup(instance.fileno())
        instance.close()
        set_status(fd, record.flags)
        return fd

    def highest_number(self, record: Epoll) -> int:
        """The objects have to be held above it."""
        return max((watch.number for watch in record.watches), default=-1)

    def place(self, record: Epoll, number: int) -> Sequence[Call]:
        calls: list[Call] = []
        # Those that have fired come first: taking their events must not take another's.
        for watch in sorted(record.watches, key=lambda one: (not one.ready, not one.fired)):
            events = watch.events | _READY if watch.ready else watch.events
            event = In(epoll.event(events, watch.data))
            calls += [
                call(NR.dup3, Object(watch.target), watch.number, os.O_CLOEXEC),
                # EPERM: an inherited stream is something now that cannot be watched: it is always ready.
                call(NR.epoll_ctl, Object(number), epoll.CTL_ADD, watch.number, event, accept=(errno.EPERM,)),
                call(NR.close, watch.number),
            ]
            if watch.ready:
                calls.append(call(NR.epoll_wait, Object(number), Out(epoll.EVENT_SIZE), 1, 0))
        return calls


def target(watch: epoll.Watch, seen: Descriptor, job: Job) -> Descriptor | None:
    """A descriptor of the job for what a watch is on, None if no process of the job has it open."""
    near = [one for one in job.descriptors if one.ino == watch.ino or not watch.ino]
    # Most often the number still means it, in the same process or in one that inherited the instance.
    near.sort(key=lambda one: (one.number != watch.number, one.pid != seen.pid))
    for one in near:
        if kcmp.is_epoll_target(one.pid, one.number, seen.pid, seen.number, watch.number, watch.which):
            return one
    return None


def _watches_now(seen: Descriptor) -> list[epoll.Watch]:
    return epoll.watches(proc.text(f"/proc/{seen.pid}/fdinfo/{seen.number}").splitlines())


def _is_anywhere(watch: epoll.Watch, seen: Descriptor, job: Job) -> bool:
    """Is what is watched among the descriptors that the job has at this moment?"""
    for pid in job.processes():
        try:
            numbers = proc.descriptors(pid)
        except OSError:
            continue
        for number in numbers:
            if kcmp.is_epoll_target(pid, number, seen.pid, seen.number, watch.number, watch.which):
                return True
    return False


def _is_ready(fd: int) -> bool:
    poll = select.poll()
    poll.register(fd, select.POLLIN | select.POLLOUT)
    return any(events & (select.POLLIN | select.POLLOUT) for _, events in poll.poll(0))


def _refusal(seen: Descriptor, watch: epoll.Watch) -> Refusal:
    return seen.refuse(
        f"an epoll instance that watches something no process of the job has open (added as {watch.number})",
        "take it out (epoll_ctl) before the checkpoint",
    )


SERVICE = EpollService()
