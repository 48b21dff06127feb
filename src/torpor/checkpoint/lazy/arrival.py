"""The process that brings a running job the memory that it does not have yet (server.py).

It is forked off the restarting process, and so has everything at hand that this one has read of the checkpoint; a
Python of its own would take as long to start as the whole restart of a small job. It outlives the supervisor and is not
of the job. When all memory is there, it ends.

**If it died, the kernel would give the job zeros.** So it is two processes with one table of descriptors
(CLONE_FILES): also the userfaultfd of a child, which the kernel puts into the table of whoever reads of it, is in both
at that moment. Each watches the other, and if that ends too early it kills the job, whose memory is asked for until it
is gone. Whoever restarted the job watches both (supervise/arriving.py).
"""

from __future__ import annotations

import array
import contextlib
import gc
import mmap
import os
import select
import signal
import socket
import time
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from torpor.checkpoint.lazy.books import Run
from torpor.checkpoint.lazy.choose import Chosen
from torpor.checkpoint.lazy.fetch import Chunks, Fetcher
from torpor.checkpoint.lazy.hand_over import MESSAGE, TOGETHER, WATCHES, Where
from torpor.checkpoint.lazy.server import Server, Space, books
from torpor.linux import clone, prctl
from torpor.linux.arch.x86_64 import NR
from torpor.linux.libc import syscall
from torpor.posix.memory.pages import FULL, WINDOW, PagesRecord, Window, rows

LINK = 3
"""Its socket to whoever restarts the job."""
_THREADS = 4
"""That fetch."""


def main(link: socket.socket, where: Where, chosen: Mapping[int, Chosen]) -> None:
    """The process, right after it was forked: what to bring from where is known, and whose memory that is will be told
    over the link (hand_over.py). It answers when it watches. Never returns.

    Nothing of what it was forked with is let go of: descriptors of objects that ended now have other numbers' owners.
    """
    _apart(link)
    pair = _Pair()
    _call_us(b"torpor-arrival")
    link = socket.socket(fileno=LINK)
    try:
        _bring(pair, link, where, chosen)
    except BaseException as error:
        # Whoever waits for us to begin is told why we do not; later nobody listens, or it was said already.
        with contextlib.suppress(OSError):
            link.send(f"{type(error).__name__}: {error}".encode()[:1000], socket.MSG_NOSIGNAL | socket.MSG_DONTWAIT)
        raise


def _apart(link: socket.socket) -> None:
    """Have nothing to do any more with the process that we were forked off: its session, its streams, its descriptors,
    its way with signals."""
    gc.freeze()  # what it has left behind would close its descriptors, which are somebody else's by then
    gc.enable()
    os.setsid()
    os.dup2(link.detach(), LINK)
    null = os.open("/dev/null", os.O_RDWR)
    for number in (0, 1, 2):
        os.dup2(null, number)
    os.closerange(LINK + 1, 1 << 30)
    signal.set_wakeup_fd(-1)
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
        signal.signal(number, signal.SIG_IGN if number in _IGNORED else signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


_IGNORED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGTSTP, signal.SIGPIPE)


def _bring(pair: _Pair, link: socket.socket, where: Where, chosen: Mapping[int, Chosen]) -> None:
    """Be told whose memory it is, and bring it. Never returns."""
    fetcher = Fetcher(lambda: _opened(where), _THREADS)
    missing = {number: runs(each.late) for number, each in chosen.items()}
    given = _receive(link)
    if given is None:
        os._exit(0)  # the restart has failed
    init, whose = given
    pair.know(init)
    telling = _Telling(link, where.path, sum(chosen[number].size for _, _, number in whose))
    spaces = [Space(fd, pid, books(fd, chosen[number].areas, missing[number])) for fd, pid, number in whose]
    missing.clear()
    server = Server(spaces, fetcher, telling)
    link.send(WATCHES)
    began = time.monotonic()
    try:
        ended = server.serve((init, pair.twin))
    except BaseException as error:
        telling.say({"broken": str(error) or type(error).__name__})
        pair.kill()
        os._exit(1)
    if ended == pair.twin:
        pair.kill()
        os._exit(1)
    pair.done()
    telling.end()
    if ended < 0:
        telling.say({"done": server.brought, "seconds": time.monotonic() - began})
    else:
        telling.say({"over": True})
    os._exit(0)


def _receive(link: socket.socket) -> tuple[int, list[tuple[int, int, int]]] | None:
    """What `Bringer.begin` sends: the job's PID 1 (a descriptor), and whose memory is asked for through which
    descriptor: (that, pid, number in the job); None if nothing is to be brought."""
    whose: list[tuple[int, int, int]] = []
    while True:
        data, ancillary, _, _ = link.recvmsg(MESSAGE, socket.CMSG_SPACE(4 * TOGETHER), socket.MSG_CMSG_CLOEXEC)
        if not data:
            return None
        fds = array.array("i")
        for _, _, received in ancillary:
            fds.frombytes(received[: len(received) // 4 * 4])
        spaces = msgspec.msgpack.decode(data, type=list[tuple[int, int]])
        if not spaces:
            return fds[0], whose
        whose += [(fd, pid, number) for fd, (pid, number) in zip(fds, spaces)]


def runs(late: PagesRecord) -> Sequence[Run]:
    """What is missing at first. Pure."""
    found = []
    for start, bitmap, ref in rows(late):
        if bitmap == FULL:
            found.append(Run(start, start + WINDOW, ref, 0))
            continue
        skip = 0
        for address, size in Window(start, bitmap).ranges():
            found.append(Run(address, address + size, ref, skip))
            skip += size
    return found


def _opened(where: Where) -> Chunks:
    """The checkpoint. Raises TorporError."""
    from torpor.image.seal import Opening
    from torpor.store import open_store

    return open_store(where.store).load(where.job, where.number, Opening(where.untrusted))


class _Pair:
    """This process and its twin. Both know how it ends by a byte of shared memory."""

    def __init__(self) -> None:
        self._done = mmap.mmap(-1, 1)
        self.init = -1
        """A descriptor of the job's PID 1: its end is the job's. In both, once the job's memory is asked for."""
        here = os.getpid()
        us = os.pidfd_open(here)
        link_r, link_w = os.pipe()
        twin = clone.fork(flags=clone.FILES)
        if twin == 0:
            try:
                self._twin(us, link_r)
            finally:
                os._exit(1)
        self._init_told = link_w
        self.twin = os.pidfd_open(twin)

    def know(self, init: int) -> None:
        """Its memory is asked for from now on."""
        self.init = init
        os.write(self._init_told, init.to_bytes(4, "little"))

    def _twin(self, other: int, told: int) -> None:
        """Wait for the other's end."""
        _call_us(b"torpor-arrival")
        poll = select.poll()
        poll.register(other, select.POLLIN)
        poll.register(told, select.POLLIN)
        while True:
            ready = [fd for fd, _ in poll.poll()]
            if told in ready:
                self.init = int.from_bytes(os.read(told, 4), "little")
                poll.unregister(told)
            elif other in ready:
                if self.init >= 0 and not self._done[0]:
                    self.kill()
                os._exit(0)

    def kill(self) -> None:
        """Kill the job; its memory is asked for until it has ended, so that it never computes with zeros."""
        try:
            os.write(LINK, b'{"lost": true}')
        except OSError:
            pass  # nobody supervises it any more
        try:
            signal.pidfd_send_signal(self.init, signal.SIGKILL)
        except ProcessLookupError:
            return
        poll = select.poll()
        poll.register(self.init, select.POLLIN)
        poll.poll()

    def done(self) -> None:
        """Everything is there, or nobody is left who needs it."""
        self._done[0] = 1


class _Telling:
    """How far it is: to whoever supervises the job, and into a file for whoever asks."""

    def __init__(self, link: socket.socket, path: str, total: int) -> None:
        self._link, self._path, self._total = link, path, total
        self._last: tuple[int, str] = -1, ""
        self._said = ""

    def __call__(self, brought: int, why: str) -> None:
        import json

        if why != self._said:
            self._said = why
            self.say({"why": why})
        if (brought, why) != self._last:
            self._last = brought, why
            try:
                with open(f"{self._path}.new", "w") as f:
                    json.dump({"done": brought, "total": self._total, "why": why}, f)
                os.rename(f"{self._path}.new", self._path)
            except OSError:
                pass  # the job has ended, and its folder is gone

    def say(self, what: dict[str, Any]) -> None:
        import json

        try:
            self._link.send(json.dumps(what).encode(), socket.MSG_NOSIGNAL | socket.MSG_DONTWAIT)
        except OSError:
            pass  # nobody supervises the job any more

    def end(self) -> None:
        for path in (self._path, f"{self._path}.new"):
            try:
                os.unlink(path)
            except OSError:
                pass


def _call_us(name: bytes) -> None:
    import ctypes

    text = ctypes.create_string_buffer(name)
    syscall(NR.prctl, prctl.SET_NAME, ctypes.addressof(text), 0, 0, 0)
