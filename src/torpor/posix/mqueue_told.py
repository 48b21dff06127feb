"""The calls by which a process is told of a message in a POSIX message queue, forgets it, and asks once more. Pure.

Why so, and who stands still meanwhile: posix/mqueue_notify.py.
"""

from __future__ import annotations

import signal
import struct
from collections.abc import Sequence

from torpor.linux import mqueue, siginfo
from torpor.linux.arch.x86_64 import NR
from torpor.posix.turnover import Script, compare
from torpor.tracee.call import Answer, Common, In, Out, copy

COOKIE = 32
"""Bytes that go to a netlink socket (NOTIFY_COOKIE_LEN); the last one is the kernel's, and says why they come."""
VALUE = 24
"""Where the value is in siginfo. A struct sigevent begins with its own."""
TRIES = 3
"""So many other signals of the same number may come in between."""

_HIGHEST = 32767  # the highest priority of a message
_SI_MESGQ = -3
_MSG_DONTWAIT = 0x40
_NO_TIME = In(bytes(16))


def sigevent(number: int, kind: int, pointer: In | Common | None = None, value: int = 0) -> In:
    """A struct sigevent. number: the signal, or the socket."""
    return In(struct.pack("=Qii48x", value, number, kind), ((0, pointer),) if pointer is not None else ())


class BySignal:
    """The calls for a process that is to be told by a signal, and what came of them.

    pid: the one the process has itself. queue: its descriptor. number: of the signal. size: of the largest message.
    waiting: the mask of its signals that wait, which must not have changed.
    """

    def __init__(self, pid: int, queue: int, number: int, size: int, waiting: int) -> None:
        self._pid, self._queue, self._number, self._size, self._waiting = pid, queue, number, size, waiting
        self._mask = In((1 << (number - 1)).to_bytes(8, "little"))
        self._before = Common("mask", 8)
        self._tries: list[tuple[int, int, int]] = []

    def look(self, script: Script, otherwise: str) -> None:
        """Add: block the signal; go on only if no signal has come since it was looked for from outside."""
        script.add(NR.rt_sigprocmask, signal.SIG_BLOCK, self._mask, self._before, 8)
        now = Common("waiting", 8)
        script.add(NR.rt_sigpending, now, 8)
        for offset in (0, 4):
            compare(now._replace(offset=offset), self._waiting >> 8 * offset & 0xFFFFFFFF, script, otherwise)

    def make(self, script: Script, own: int, otherwise: str) -> None:
        """Add: all the rest. own: a descriptor for both directions. It is closed before the process asks again, since
        closing one takes back what a process asks for. For that reason it stays open if nothing could be sent (there
        was no memory); then `otherwise` is next."""
        script.add(NR.mq_timedsend, own, Out(1), 0, _HIGHEST, _NO_TIME, otherwise=otherwise)
        # Room for the largest message has to be said to be there; ours has no bytes.
        script.add(NR.mq_timedreceive, own, Out(1), self._size, 0, _NO_TIME)
        script.add(NR.close, own)
        info = Common("info", siginfo.SIZE)
        rest = struct.pack("=ii", self._number, mqueue.SIGNAL)
        for turn in range(TRIES):
            take = script.add(NR.rt_sigtimedwait, self._mask, info, _NO_TIME, 8, otherwise="taken")
            compare(info._replace(offset=8), _SI_MESGQ & 0xFFFFFFFF, script, f"another {turn}")
            filling = copy(self._pid, (info._replace(offset=VALUE + 8), In(rest), len(rest)))
            script.add(filling.nr, *filling.args)
            event = info._replace(offset=VALUE)
            ask = script.add(NR.mq_notify, self._queue, event, otherwise="taken", then="taken")
            # It is another's: it is put back, behind those that wait.
            script.label(f"another {turn}")
            back = script.add(NR.rt_sigqueueinfo, self._pid, self._number, info)
            self._tries.append((take, ask, back))
        script.label("taken")

    def let(self, script: Script) -> None:
        """Add: the signal is blocked no more if it was not."""
        script.add(NR.rt_sigprocmask, signal.SIG_SETMASK, self._before, 0, 8)

    def value(self, answers: Sequence[Answer]) -> int | None:
        """The value that the process is told with, if it asks once more."""
        for take, ask, _ in self._tries:
            if answers[ask].value == 0:
                return int.from_bytes(answers[take].outs[0][VALUE : VALUE + 8], "little")
        return None

    def others(self, answers: Sequence[Answer]) -> bool:
        """Have other signals of that number come in between?"""
        return any(answers[back].value == 0 for _, _, back in self._tries)


def by_socket(queue: int, sockets: Sequence[int], script: Script) -> dict[int, int]:
    """Add: the process is told through one of its netlink sockets, and asks once more. Places of the calls that take
    the bytes, by socket: which is the one shows by where they come."""
    takes = {}
    script.add(NR.mq_notify, queue, 0)
    for number in sockets:
        cookie = Common(f"cookie {number}", COOKIE)
        takes[number] = script.add(
            NR.recvfrom, number, cookie, COOKIE, _MSG_DONTWAIT, 0, 0, otherwise=f"behind {number}"
        )
        event = sigevent(number, mqueue.THREAD, cookie)
        script.add(NR.mq_notify, queue, event, otherwise="taken", then="taken")
        script.label(f"behind {number}")
    # None has them: it keeps others from asking, as before.
    script.add(NR.mq_notify, queue, sigevent(0, mqueue.NONE))
    script.label("taken")
    return takes
