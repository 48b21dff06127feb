"""The calls by which a process is told of a message in a POSIX message queue, forgets it, and asks once more. Pure.

Why so, and what may come in between: posix/mqueue_notify.py.
"""

from __future__ import annotations

import fcntl
import os
import signal
import struct
from collections.abc import Sequence
from itertools import pairwise

from torpor.linux import mqueue, siginfo
from torpor.linux.arch.x86_64 import NR
from torpor.tracee.call import RESULT, Call, Common, In, Out, Word, call, copy

COOKIE = 32
"""Bytes that go to a netlink socket (NOTIFY_COOKIE_LEN); the last one is the kernel's, and says why they come."""
VALUE = 24
"""Where the value is in siginfo. A struct sigevent begins with its own."""

_HIGHEST = 32767  # the highest priority of a message
_SI_MESGQ = -3
_AT_FDCWD = -100
_FUTEX_CMP_REQUEUE = 4
_MSG_DONTWAIT = 0x40
_NO_TIME = In(bytes(16))


def sigevent(number: int, kind: int, pointer: In | Common | None = None, value: int = 0) -> In:
    """A struct sigevent. number: the signal, or the socket."""
    return In(struct.pack("=Qii48x", value, number, kind), ((0, pointer),) if pointer is not None else ())


def by_signal(pid: int, queue: int, number: int, size: int, ends: tuple[int, int] | None) -> list[Call]:
    """The calls for a process that is to be told by a signal. If `ask` was made and has not failed, the value is in
    what `take` has filled.

    pid: the one the process has itself. queue: its descriptor. number: of the signal. size: of the largest message.
    ends: descriptors to send and to receive through; None if one is to be opened.
    """
    sender, receiver = ends or (-1, -1)
    first, *rest = taking(pid, queue, number)
    (take,) = (one for one in rest if one.name == "take")
    opening: list[Call] = []
    if ends is None:
        flags = os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC
        hand = copy(pid, *((Word(name, 0), Word("open", RESULT), 8) for name in ("send", "receive", "close")))
        opening = [
            call(NR.openat, _AT_FDCWD, In(b"/proc/self/fd/%d\0" % queue), flags, 0, name="open", if_failed="mask"),
            hand._replace(if_failed="mask"),
        ]
        # Before it asks again: closing a descriptor of the queue would take that back.
        at = [one.name for one in rest].index("ask")
        rest.insert(at, call(NR.close, -1, name="close"))
    return _while_we_live(
        queue,
        [
            first,
            take._replace(name="early", if_failed="", if_done="back"),
            *opening,
            call(NR.mq_timedsend, sender, Out(1), 0, _HIGHEST, _NO_TIME, name="send", if_failed="mask"),
            # Room for the largest message has to be said to be there; ours has no bytes.
            call(NR.mq_timedreceive, receiver, Out(1), size, 0, _NO_TIME, name="receive"),
            *rest,
        ],
    )


def taking(pid: int, queue: int, number: int) -> list[Call]:
    """The calls by which a process takes the signal that the queue has sent it, and asks again. Another signal of that
    number is put back, behind those that wait."""
    info = Common("info", siginfo.SIZE)
    code = info._replace(offset=8)
    mask, before = In((1 << (number - 1)).to_bytes(8, "little")), Common("mask", 8)
    rest = struct.pack("=ii", number, mqueue.SIGNAL)
    return [
        call(NR.rt_sigprocmask, signal.SIG_BLOCK, mask, before, 8),
        call(NR.rt_sigtimedwait, mask, info, _NO_TIME, 8, name="take", if_failed="mask"),
        # Is it the queue's? Nobody waits there; the call fails if the word is another than the last argument.
        call(NR.futex, code, _FUTEX_CMP_REQUEUE, 0, 0, Out(4), _SI_MESGQ & 0xFFFFFFFF, if_failed="back"),
        copy(pid, (info._replace(offset=VALUE + 8), In(rest), len(rest)))._replace(if_failed="mask"),
        call(NR.mq_notify, queue, info._replace(offset=VALUE), name="ask", if_failed="mask", if_done="mask"),
        call(NR.rt_sigqueueinfo, pid, number, info, name="back"),
        call(NR.rt_sigprocmask, signal.SIG_SETMASK, before, 0, 8, name="mask"),
    ]


def by_socket(queue: int, sockets: Sequence[int]) -> list[Call]:
    """The calls for a process that is to be told through one of its netlink sockets. The bytes are in what that `take`
    has filled that has not failed."""
    calls = [call(NR.mq_notify, queue, 0)]
    takes = [*(f"take {number}" for number in sockets), "none"]
    for number, (name, following) in zip(sockets, pairwise(takes)):
        cookie = Common(name, COOKIE)
        calls += [
            call(NR.recvfrom, number, cookie, COOKIE, _MSG_DONTWAIT, 0, 0, name=name, if_failed=following),
            call(NR.mq_notify, queue, sigevent(number, mqueue.THREAD, cookie)),
        ]
    # If none had them: keeps others from asking, as before. Else fails.
    calls.append(call(NR.mq_notify, queue, sigevent(0, mqueue.NONE), name="none"))
    return _while_we_live(queue, calls)


def _while_we_live(queue: int, calls: Sequence[Call]) -> list[Call]:
    """Calls that are made only if the queue is locked by somebody else: by us."""
    return [
        call(NR.flock, queue, fcntl.LOCK_EX | fcntl.LOCK_NB, if_done="unlock"),
        *calls,
        call(NR.flock, queue, fcntl.LOCK_UN, name="unlock"),
    ]
