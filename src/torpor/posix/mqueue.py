"""POSIX message queues.

The kernel keeps for one: its name (or none, once it is unlinked), mode and owner, how many messages of what size may be
in it, the messages, ordered by priority and then by age, and who is to be told of the next one
(posix/mqueue_notify.py). Descriptions have an access mode, O_NONBLOCK, and a position for read(2). All but the
messages is told by mq_getattr(3), fstat(2) and read(2) on a descriptor of our own.

Messages can only be looked at by receiving them. So they are received and sent again, in order, by a process that
outlives us (posix/apart.py): if we are killed in between, none is lost. The job is stopped meanwhile; nobody outside
has the queue open, else it is refused. While a notification is asked for, messages are not taken out: putting the
first one back would be news. A queue that has no descriptor in the job is not the job's.

Names belong to an IPC namespace. A restarted job has one of its own, so that neither what a crash has left behind nor
somebody else's queue is in its way, and its queues end with it. (Programs outside do not find them by name then.) In
place, or where a new namespace would not allow queues as large as these, they come back in the host's: a queue of the
same name there is taken over if nobody has it open and it is the one that was saved (its inode number and boot tell) or
holds just the same; else the restart is refused. Who waits to send or to receive makes its call again.

Not kept: times. Seen by edge-triggered watchers (epoll(7)): messages that were there become news once more.

Source: mq_overview(7), ipc/mqueue.c.
"""

from __future__ import annotations

import errno
import os
import stat
import time
from collections.abc import Iterable, Sequence

import msgspec

from torpor.linux import filesystem, mqueue, proc
from torpor.model.data import CHUNK_SIZE, Source
from torpor.model.errors import NotNow, Refusal, Refused, RestartFailed
from torpor.posix import outside
from torpor.posix.apart import apart
from torpor.posix.descriptors import (
    O_ACCMODE,
    O_LARGEFILE,
    O_PATH,
    PerJob,
    first_object,
    is_type,
    reopen,
    siblings,
    status_flags,
)
from torpor.posix.directory import missing
from torpor.posix.service import Descriptor, DescriptorBase, Job, Restart

PATIENCE = 60.0
"""Seconds that looking at a queue may take."""
LONG = 600.0
"""Seconds for which messages that do not fit any more (somebody has sent others meanwhile) are offered."""

Messages = list[tuple[int, bytes]]
"""(priority, data) of each, the first to be received first."""


class QueueState(msgspec.Struct, frozen=True):
    """What all descriptions of a queue have in common. messages, size: how many there may be, bytes of the largest.
    priorities, sizes: of the messages in it; refs: their bytes, one after the other. ino, boot: which one it was."""

    mode: int
    uid: int
    gid: int
    messages: int
    size: int
    ino: int
    boot: str
    priorities: tuple[int, ...] = ()
    sizes: tuple[int, ...] = ()
    refs: tuple[int, ...] = ()


class OpenQueue(msgspec.Struct, frozen=True):
    """An open file description of a message queue. name: without a slash. process: one that has it (pid in the job)."""

    name: bytes
    flags: int
    process: int
    holder: int
    """The object whose record has the state."""
    position: int = 0
    deleted: bool = False
    after: tuple[int, ...] = ()
    """Objects that have to be made first: queues that had the name before."""
    state: QueueState | None = None
    """Here only in the record of the holder."""


def _outside(job: Job) -> dict[tuple[int, int], int]:
    return outside.holders(job, {outside.last_name(one.target) for one in queues(job)})


_holders: PerJob[dict[tuple[int, int], int]] = PerJob(_outside)


class MessageQueueService(DescriptorBase):
    name = "mqueue"
    record = OpenQueue

    def claims(self, seen: Descriptor) -> bool:
        if not is_type(seen, stat.S_IFREG) or os.major(seen.dev) or not seen.target.startswith("/"):
            return False
        return filesystem.kind_of(f"/proc/{seen.pid}/fd/{seen.number}") == filesystem.MQUEUE

    def survey(self, seen: Descriptor, job: Job) -> Refusal | None:
        holder = _holders.of(job).get((seen.dev, seen.ino), 0)
        if holder:
            thing = (
                f"the message queue {_shown(seen)}, which process {holder} ({proc.comm(holder)}) outside the job has"
            )
            return seen.refuse(f"{thing} open too", "start both in one job, or close it before the checkpoint")
        return None

    def capture(self, fd: int, seen: Descriptor, job: Job) -> OpenQueue:
        if seen.pid == os.getpid():
            thing = f"the message queue {_shown(seen)}, on its way through a socket"
            raise NotNow([seen.refuse(thing, "let the program receive it first")])
        mine = job.object_of(seen.pid, seen.number)
        holder = first_object([one for one in siblings(seen, job) if not one.flags & O_PATH], job)
        deleted = not os.fstat(fd).st_nlink
        earlier = (
            [one for one in queues(job) if one.ino != seen.ino and _shown(one) == _shown(seen)] if not deleted else []
        )
        return OpenQueue(
            name=os.fsencode(outside.last_name(seen.target)),
            flags=status_flags(fd),
            process=job.vpid(seen.pid),
            holder=holder,
            position=os.lseek(fd, 0, os.SEEK_CUR),
            deleted=deleted,
            after=tuple(sorted({job.object_of(one.pid, one.number) or 0 for one in earlier})),
            state=self._state(fd, seen, job) if mine == holder else None,
        )

    def _state(self, fd: int, seen: Descriptor, job: Job) -> QueueState:
        st = os.fstat(fd)
        if os.geteuid() not in (0, st.st_uid):
            thing = f"the message queue {_shown(seen)}, which belongs to another user (uid {st.st_uid})"
            raise Refused([seen.refuse(thing, "run torpor as root")])
        own = open_own(fd, seen)
        try:
            shape = mqueue.attributes(own)
            if shape.now and mqueue.notification(own):
                thing = f"the message queue {_shown(seen)} with messages in it and a notification (mq_notify)"
                raise NotNow(
                    [seen.refuse(thing, "let the program receive them first")],
                    [one.pid for one in siblings(seen, job)],
                )
            found = look(own, shape.size) if shape.now else []
        finally:
            os.close(own)
        if found is None:
            raise Refused([seen.refuse(f"the message queue {_shown(seen)}, which could not be looked at", "try again")])
        whole = memoryview(b"".join(data for _, data in found))
        return QueueState(
            stat.S_IMODE(st.st_mode), st.st_uid, st.st_gid, shape.messages, shape.size, st.st_ino, proc.boot_id(),
            tuple(priority for priority, _ in found), tuple(len(data) for _, data in found),
            tuple(job.sink.put(whole[at : at + CHUNK_SIZE]) for at in range(0, len(whole), CHUNK_SIZE)),
        )  # fmt: skip

    def needs(self, record: OpenQueue) -> Iterable[int]:
        return (*record.after, *(() if record.state else (record.holder,)))

    def create(self, record: OpenQueue, restart: Restart) -> int:
        """Something that holds the place: the namespace of its name is not there yet."""
        return os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)

    def create_late(self, record: OpenQueue, restart: Restart) -> int:
        inside = restart.host_pid(record.process)
        flags = record.flags & (O_ACCMODE | os.O_NONBLOCK)
        try:
            if record.state is not None:
                fd = self._make(record, record.state, flags, inside, restart)
            elif record.deleted or record.flags & O_LARGEFILE:
                fd = reopen(restart.object(record.holder), record.flags)
            else:
                fd = mqueue.open_inside(inside, record.name, flags)
            if record.position:
                os.lseek(fd, record.position, os.SEEK_SET)
        except OSError as error:
            raise RestartFailed(f"the message queue {_path(record)}: {_hint(record, error)}") from None
        return fd

    def _make(self, record: OpenQueue, state: QueueState, flags: int, inside: int, restart: Restart) -> int:
        shape = (state.messages, state.size)
        names = [record.name]
        if record.deleted:
            names += [b"%b.%d" % (record.name[:240], number) for number in range(2, 100)]
        for name in names:
            try:
                made = mqueue.open_inside(inside, name, flags | os.O_CREAT | os.O_EXCL, shape, record.deleted)
                break
            except FileExistsError:
                continue
        else:
            made = self._taken_over(record, state, inside, flags, restart)
        if not record.flags & O_LARGEFILE:
            return made
        try:
            return reopen(made, record.flags)
        finally:
            os.close(made)

    def _taken_over(self, record: OpenQueue, state: QueueState, inside: int, flags: int, restart: Restart) -> int:
        """There is a queue of that name: it must be the job's own. Nothing is changed yet. Raises Refused."""
        fd = mqueue.open_inside(inside, record.name, flags)
        try:
            own = reopen(fd, os.O_RDWR | os.O_NONBLOCK)
            try:
                reason = _foreign(own, state, restart.source)
            finally:
                os.close(own)
            if reason:
                remove = f"remove it if nobody needs it (mq_unlink(3), or rm /dev/mqueue{_path(record)})"
                raise missing(_path(record), reason, remove)
        except BaseException:
            os.close(fd)
            raise
        return fd

    def finish(self, record: OpenQueue, fd: int, restart: Restart) -> None:
        state = record.state
        if state is None:
            return
        own = reopen(fd, os.O_RDWR | os.O_NONBLOCK)
        try:
            gone = take(own, state.size)
            wanted = messages(state, restart.source)
            put(own, wanted)
            if gone and gone != wanted:
                restart.say(
                    f"{_path(record)}: the {len(gone)} messages in it gave way to the {len(wanted)} of the checkpoint"
                )
            st = os.fstat(own)
            if (st.st_uid, st.st_gid) != (state.uid, state.gid):
                os.fchown(own, state.uid, state.gid)
            os.fchmod(own, state.mode)
        except OSError as error:
            raise RestartFailed(f"the message queue {_path(record)}: {error.strerror}") from None
        finally:
            os.close(own)


def queues(job: Job) -> list[Descriptor]:
    """All descriptors of message queues in the job."""
    kinds: dict[tuple[int, int, str, int], bool] = {}
    found = []
    for one in job.descriptors:
        kind = one.dev, one.ino, one.target, one.flags & os.O_PATH
        if kind not in kinds:
            kinds[kind] = SERVICE.claims(one)
        if kinds[kind]:
            found.append(one)
    return found


def open_own(fd: int, seen: Descriptor) -> int:
    """A description of our own of a queue of the job, for both directions, that never waits. Raises Refused."""
    try:
        return reopen(fd, os.O_RDWR | os.O_NONBLOCK)
    except PermissionError:
        thing = f"the message queue {_shown(seen)}, which we have no right to read and write"
        raise Refused([seen.refuse(thing, "run torpor as root, or give its owner that right")]) from None


def look(fd: int, size: int) -> Messages | None:
    """The messages of a queue that nobody uses meanwhile; they are there again afterwards. None if that failed."""

    def look() -> bytes:
        found = take(fd, size)
        put(fd, found)
        return msgspec.msgpack.encode(found)

    told = apart(look, PATIENCE)
    return None if told is None else msgspec.msgpack.decode(told, type=Messages)


def take(fd: int, size: int) -> Messages:
    """Receive all there is. fd: does not wait."""
    found: Messages = []
    while True:
        try:
            found.append(mqueue.receive(fd, size))
        except BlockingIOError:
            return found


def put(fd: int, what: Sequence[tuple[int, bytes]]) -> None:
    """Send messages, each once there is room for it. fd: does not wait."""
    end = time.monotonic() + LONG
    for priority, data in what:
        while True:
            try:
                mqueue.send(fd, priority, data)
                break
            except BlockingIOError:
                if time.monotonic() > end:
                    raise
                time.sleep(0.001)


def messages(state: QueueState, source: Source) -> Messages:
    """The messages that were saved."""
    whole = b"".join(bytes(source.get(ref)) for ref in state.refs)
    out, at = [], 0
    for priority, size in zip(state.priorities, state.sizes):
        out.append((priority, whole[at : at + size]))
        at += size
    return out


def fit_anew(records: Iterable[OpenQueue]) -> bool:
    """May queues like these be made in a new IPC namespace? (root may raise its limits.)"""
    states = [record.state for record in records if record.state is not None]
    return os.geteuid() == 0 or all(
        state.messages <= mqueue.NEW_MESSAGES and state.size <= mqueue.NEW_SIZE for state in states
    )


def smaller(state: QueueState) -> QueueState:
    """The same queue, empty, and small enough to be made in any new IPC namespace."""
    return msgspec.structs.replace(
        state, messages=min(state.messages, mqueue.NEW_MESSAGES), size=min(state.size, mqueue.NEW_SIZE),
        priorities=(), sizes=(), refs=(),
    )  # fmt: skip


def _foreign(own: int, state: QueueState, source: Source) -> str:
    """Why a queue that was found at its name is not the one that was saved; '' if it is."""
    holder = outside.users(own)
    if holder:
        return f"is a message queue that process {holder} ({proc.comm(holder)}) has open"
    st, shape = os.fstat(own), mqueue.attributes(own)
    if (st.st_uid, shape.messages, shape.size) != (state.uid, state.messages, state.size):
        return "is another message queue now"
    if (st.st_ino, proc.boot_id()) != (state.ino, state.boot) and look(own, shape.size) != messages(state, source):
        return "is another message queue now, with other messages in it"
    return ""


def _shown(seen: Descriptor) -> str:
    return f"/{outside.last_name(seen.target)}"


def _path(record: OpenQueue) -> str:
    return f"/{os.fsdecode(record.name)}"


def _hint(record: OpenQueue, error: OSError) -> str:
    """What an error says, and which limit is meant."""
    state = record.state
    if state is None:
        return str(error.strerror)
    needed = f"{state.messages} messages of {state.size} bytes"
    hints = {
        errno.EINVAL: f"{needed} are more than fs.mqueue.msg_max or msgsize_max allows; raise them, or restart as root",
        errno.EMFILE: f"no room for {needed}; raise the limit of queues in bytes (ulimit -q), or remove other queues",
        errno.ENOSPC: "there are too many queues (fs.mqueue.queues_max); raise it, or remove others",
        errno.ENOSYS: "this kernel has none; use one with CONFIG_POSIX_MQUEUE",
    }
    return hints.get(error.errno or 0, str(error.strerror))


SERVICE = MessageQueueService()
