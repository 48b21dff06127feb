"""The wrapper around a job's calls, as whoever starts or supervises the job holds it.

The filter is put on the job's first process before that becomes the program: `inside` runs there, `outside` in us. The
listener is then in our hands and a holder's (watch/holder.py). If the holder dies, nobody answers for a moment, but the
calls wait, because we have the listener too, and a new holder goes on. If we die, the holder is alone.
"""

from __future__ import annotations

import errno
import fcntl
import os
import select
import signal
import struct
import sys

from torpor.linux import pidfd, seccomp_notify
from torpor.linux.arch.x86_64 import NR
from torpor.model.errors import Unwatched
from torpor.model.ledger import Ledger
from torpor.watch import ledger
from torpor.watch.holder import BOOK, CONTROL, LISTENERS, READY

_TOLD = struct.Struct("<ii")
_CODE = "import sys; sys.path.insert(0, {!r}); from torpor.watch.holder import main; main()"
_PATIENCE = 10.0
"""Seconds that a holder may take to say that it answers."""
_MARGIN = 16
"""Copies of descriptors are made above those that a holder is given."""


class Wrapper:
    """See above. holder: pid of the process that answers, 0 before `outside`.

    prior: the ledger to go on from; it also says what is wrapped.
    """

    def __init__(self, prior: Ledger) -> None:
        self.holder = 0
        self._program = program(prior)
        self._listeners: list[int] = []
        self._book = ledger.write(prior)
        self._up, self._down = os.pipe(), os.pipe()

    def more(self) -> None:
        """Be put around one more process, that is not below the first: `inside` and `outside` are for that one now."""
        self._up, self._down = os.pipe(), os.pipe()

    def inside(self) -> None:
        """In the first process: put the filter on, and wait until it is answered. Ends the process if that fails or
        whoever started us is gone: `outside` raises then."""
        try:
            listener, number = seccomp_notify.install(self._program), 0
        except OSError as error:
            listener, number = -1, error.errno or errno.EIO
        os.write(self._up[1], _TOLD.pack(listener, number))
        os.close(self._down[1])
        if listener < 0 or not os.read(self._down[0], 1):
            os._exit(1)
        for fd in (*self._up, self._down[0], listener):
            os.close(fd)

    def outside(self, pid: int) -> None:
        """In us: take the listener from the first process, which is our child `pid`, and start a holder.

        Raises Unwatched; the process then ends by itself.
        """
        os.close(self._up[1])
        os.close(self._down[0])
        try:
            told = os.read(self._up[0], _TOLD.size)
            if len(told) < _TOLD.size:
                raise Unwatched("the job cannot be watched: its first process ended")
            listener, number = _TOLD.unpack(told)
            if number:
                why = seccomp_notify.why_not(OSError(number, os.strerror(number)))
                raise Unwatched(f"the job cannot be watched: {why}")
            try:
                process = os.pidfd_open(pid)
                try:
                    self._listeners.append(pidfd.copy(process, listener))
                finally:
                    os.close(process)
                if self.holder:  # another one is to answer for both; what this one owes it answers, too
                    os.kill(self.holder, signal.SIGKILL)
                    os.waitpid(self.holder, 0)
                self.revive()
            except OSError as error:
                raise Unwatched(f"the job cannot be watched: {error.strerror}") from None
            os.write(self._down[1], b"!")
        finally:
            os.close(self._up[0])
            os.close(self._down[1])

    def revive(self, control: int = -1) -> None:
        """Start a holder. control: where it will get more listeners, -1 if it will not. Raises OSError."""
        ready, told = os.pipe()
        count = len(self._listeners)
        given = [*([control] if control >= 0 else []), self._book, told, *self._listeners]
        numbers = [*([CONTROL] if control >= 0 else []), BOOK, READY, *range(LISTENERS, LISTENERS + count)]
        margin = LISTENERS + count + _MARGIN
        moved = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, margin) for fd in given]
        os.close(told)
        home = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
        null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
        try:
            self.holder = os.posix_spawn(
                sys.executable,
                [sys.executable, "-I", "-S", "-c", _CODE.format(home), str(count), str(int(control >= 0))],
                # What is not ours is none of its business; the rest says how torpor is to behave.
                {key: value for key, value in os.environb.items() if key.startswith(b"TORPOR")},
                file_actions=[
                    *((os.POSIX_SPAWN_DUP2, null, number) for number in (0, 1, 2)),
                    *((os.POSIX_SPAWN_DUP2, fd, number) for fd, number in zip(moved, numbers)),
                ],
                setsid=True,
                setsigmask=(),
                setsigdef=set(signal.Signals) - {signal.SIGKILL, signal.SIGSTOP},
            )
        finally:
            for fd in (*moved, null):
                os.close(fd)
        poll = select.poll()
        poll.register(ready, select.POLLIN)
        try:
            if not poll.poll(_PATIENCE * 1000) or not os.read(ready, 1):
                os.kill(self.holder, signal.SIGKILL)
                raise TimeoutError(errno.ETIMEDOUT, "the process that is to answer does not start")
        finally:
            os.close(ready)

    def needed(self) -> bool:
        """Has anybody a filter still?"""
        poll = select.poll()
        for fd in self._listeners:
            poll.register(fd, 0)
        return len(poll.poll(0)) < len(self._listeners)

    def ledger(self) -> Ledger:
        """What has been written down so far."""
        return ledger.read(self._book)

    def close(self) -> None:
        """Leave the listener to the holder."""
        for fd in (*self._listeners, self._book):
            os.close(fd)
        self._listeners.clear()


def program(prior: Ledger) -> bytes:
    """The filter."""
    more = ((NR.sendmsg, NR.sendmmsg) if prior.with_sendmsg else ()) + ((NR.bind,) if prior.moved else ())
    return seccomp_notify.program(
        (NR.connect, *more), (NR.sendto, *((NR.recvfrom,) if prior.with_answers else ())), listeners=True
    )
