"""System V message queues.

The kernel keeps for one: its identity (posix/sysv.py), how many bytes may be in it, the messages with their types in
order, who sent and who received last. Messages are looked at with msgrcv(MSG_COPY), which consumes nothing and leaves
no trace (needs CONFIG_CHECKPOINT_RESTORE, without which a queue that is not empty is refused); they are sent again, in
order. Who waits to send or to receive makes its call again.

A queue that may hold more than the restarted namespace's kernel.msgmnb allows needs CAP_SYS_RESOURCE.

Source: msgctl(2), msgop(2), ipc/msg.c.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from torpor.linux import sysvipc
from torpor.linux.arch.x86_64 import NR
from torpor.linux.sysvipc import Queue
from torpor.model.data import CHUNK_SIZE, Source
from torpor.model.errors import Refused, RestartFailed
from torpor.posix.service import Job, JobBase
from torpor.posix.sysv import Identity, Members, actor, identity, listed, made, next_number
from torpor.tracee.call import In, Out, call
from torpor.tracee.process import Process

_LARGEST = 48 * 1024
"""The scratch memory in a task holds no larger message."""


class MessageQueue(msgspec.Struct, frozen=True):
    """A queue. room: bytes that may be in it. sizes: bytes of each message, types: its type. refs: all texts, one
    after the other. lspid, lrpid: who sent and received last."""

    identity: Identity
    room: int
    types: tuple[int, ...]
    sizes: tuple[int, ...]
    refs: tuple[int, ...]
    lspid: int
    lrpid: int


class MessageQueues(msgspec.Struct, frozen=True):
    queues: tuple[MessageQueue, ...]


class MessageService(JobBase):
    name = "sysv_messages"
    record: type[msgspec.Struct] = MessageQueues

    def capture(self, job: Job, processes: Sequence[Process]) -> MessageQueues | None:
        members = Members(processes)
        waiting = members.waiting((NR.msgrcv, NR.msgsnd))
        found = []
        for number, raw in listed(members, NR.msgctl, sysvipc.MSG_STAT_ANY, sysvipc.QUEUE_SIZE, waiting):
            queue = sysvipc.queue(raw)
            if number not in waiting and members.are_younger(max(queue.stime, queue.rtime, queue.ctime)):
                continue
            mine = identity(number, queue.perm)
            used = ((queue.lspid, queue.stime), (queue.lrpid, queue.rtime))
            if members.own("the message queue", mine, queue.perm, queue.ctime, used, waiting):
                found.append(self._capture(members, mine, queue, job))
        return MessageQueues(tuple(found)) if found else None

    def _capture(self, members: Members, mine: Identity, queue: Queue, job: Job) -> MessageQueue:
        size = min(queue.bytes, _LARGEST)
        flags = sysvipc.MSG_COPY | sysvipc.NOWAIT
        calls = [
            call(NR.msgrcv, mine.number, Out(size + 8), size, place, flags, accept=range(1, 200))
            for place in range(queue.messages)
        ]
        types, sizes, texts = [], [], []
        for answer in members.first.run(calls):
            if answer.error:
                raise _unreadable(members, mine, answer.error)
            raw = answer.outs[0]
            types.append(int.from_bytes(raw[:8], "little", signed=True))
            sizes.append(answer.value)
            texts.append(raw[8 : 8 + answer.value])
        whole = b"".join(texts)
        refs = tuple(job.sink.put(whole[at : at + CHUNK_SIZE]) for at in range(0, len(whole), CHUNK_SIZE))
        return MessageQueue(mine, queue.room, tuple(types), tuple(sizes), refs, queue.lspid, queue.lrpid)

    def create(self, record: Any, processes: Mapping[int, Process], source: Source) -> None:
        for queue in record.queues:
            self._create(queue, processes, source)

    def _create(self, queue: MessageQueue, processes: Mapping[int, Process], source: Source) -> None:
        mine = queue.identity
        first = actor(processes, 0)
        next_number(first, "msg", mine.number)
        flags = sysvipc.CREAT | sysvipc.EXCL | mine.mode
        made(
            first, "the message queue", mine,
            call(NR.msgget, mine.key, flags), call(NR.msgctl, 0, sysvipc.RMID, 0),
        )  # fmt: skip
        raw = sysvipc.permissions(sysvipc.QUEUE_SIZE, mine.uid, mine.gid, mine.mode, queue.room)
        error = first.run([call(NR.msgctl, mine.number, sysvipc.SET, In(raw))], check=False)[0].error
        if error:
            raise RestartFailed(
                f"the message queue {mine.number} cannot have room for {queue.room} bytes again: {os.strerror(error)} "
                "(see kernel.msgmnb in proc_sys_kernel(5))"
            )
        if queue.lrpid:
            # Who received last is known from a message of its own.
            note = In(bytes([1]) + bytes(8))
            actor(processes, queue.lrpid).run(
                [
                    call(NR.msgsnd, mine.number, note, 1, sysvipc.NOWAIT),
                    call(NR.msgrcv, mine.number, Out(16), 1, 0, sysvipc.NOWAIT),
                ]
            )
        whole = b"".join(bytes(source.get(ref)) for ref in queue.refs)
        calls, at = [], 0
        for kind, size in zip(queue.types, queue.sizes):
            message = In(kind.to_bytes(8, "little", signed=True) + whole[at : at + size])
            calls.append(call(NR.msgsnd, mine.number, message, size, sysvipc.NOWAIT))
            at += size
        first.run(calls[:-1])
        if calls:
            actor(processes, queue.lspid).run(calls[-1:])


def _unreadable(members: Members, mine: Identity, error: int) -> Refused:
    words = f"the message queue {mine.number} (key {mine.key:#x}) holds messages that cannot be looked at"
    if error in (errno.ENOSYS, errno.EINVAL):
        return members.refuse(words, "let the job read them, or use a kernel with CONFIG_CHECKPOINT_RESTORE")
    if error == errno.E2BIG:
        return members.refuse(f"{words} (larger than {_LARGEST} bytes)", "let the job read them first")
    return members.refuse(f"{words} ({os.strerror(error)})", "let the job read them, or run torpor as root")


SERVICE = MessageService()
