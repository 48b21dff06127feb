"""The restarting process' side: what comes later is decided, a process is forked that brings it, and gets the
userfaultfd of each process of the job."""

from __future__ import annotations

import array
import os
import select
import socket
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import msgspec

from torpor.checkpoint.lazy.choose import Chosen, choose
from torpor.image.manifest import Manifest, ProcessRecord
from torpor.linux import pidfd, uio, userfaultfd
from torpor.linux.arch.x86_64 import NR
from torpor.model.errors import RestartFailed
from torpor.posix.memory.pages import PagesRecord
from torpor.posix.process_file import ProcessFile, ProcessFileService
from torpor.tracee.call import call

if TYPE_CHECKING:
    from torpor.checkpoint.footing import Footing
    from torpor.tracee.stub import StubProcess

WATCHES = b"watches"
TOGETHER = 200
"""Descriptors in one message (SCM_MAX_FD is 253)."""
MESSAGE = 8192
"""Bytes of the longest message."""
_PATIENCE = 30.0
"""Seconds until it has to watch."""


class Where(msgspec.Struct, frozen=True):
    """What is brought from where. store: its location. path: a file for how far it is."""

    store: str
    job: str
    number: int
    untrusted: bool
    path: str


def refused(footing: Footing, alone: bool) -> str:
    """Why all memory has to be there before the release, '' if it has not. alone: the job is whole, and is going to
    run."""
    if not alone:
        return "it is one part of a job over hosts"
    if footing.first != 1:
        return "the job has no PID namespace of its own, whose end would be its own"
    able, why = userfaultfd.probe_missing()
    return "" if able else f"the kernel lets nobody bring it later here: {why}"


class Late:
    """The memory of one job that comes later. `pid` and `link` are those of the process that brings it.

    Raises RestartFailed; `close` then, and nothing of it stays once the job's PID 1 is gone."""

    def __init__(self, where: Where, chosen: Mapping[int, Chosen]) -> None:
        """chosen: by number of the process."""
        self._chosen = chosen
        self._bringer = Bringer(where, chosen)
        self.pid, self.link = self._bringer.pid, self._bringer.link

    def early(self, record: ProcessRecord) -> ProcessRecord:
        """A process with no more contents than are to be there at once."""
        chosen = self._chosen.get(record.pid)
        return record if chosen is None else msgspec.structs.replace(record, pages=chosen.early)

    def begin(self, stubs: Mapping[int, StubProcess], init: int, fill: Callable[[int, PagesRecord], object]) -> None:
        """All early contents are there: have the kernel ask for the rest. stubs: by number. init: pid of the job's PID
        1.  fill: puts contents into a process after all."""
        for number, chosen in self._chosen.items():
            if _holds(stubs[number].pid, chosen.robust):
                fill(number, chosen.late)
            else:
                self._bringer.watch(stubs[number], number, chosen)
        self._bringer.begin(init)

    def close(self) -> None:
        self._bringer.close()


def prepare(manifest: Manifest, where: Where, say: Callable[[str], None]) -> Late | None:
    """Begin, if there is enough memory that can come later, and nobody looks at it in a way in which the kernel does
    not ask for it: /proc/PID/mem gives EIO."""
    if _looks_from_outside(manifest):
        say("all memory is there already (--lazy): the job has /proc/PID/mem open")
        return None
    found = {record.pid: chosen for record in manifest.processes if (chosen := choose(record)) is not None}
    if not found:
        say("all memory is there already (--lazy): the job has no large areas of memory that could come later")
        return None
    return Late(where, found)


def _looks_from_outside(manifest: Manifest) -> bool:
    return any(
        msgspec.msgpack.decode(kept.state, type=ProcessFile).name.endswith(b"/mem")
        for kept in manifest.objects
        if kept.service == ProcessFileService.name
    )


def _holds(pid: int, heads: Sequence[int]) -> bool:
    """Does a thread hold robust mutexes? The kernel looks for these when it ends, and does not ask for memory then. (An
    empty list is a head that points to itself, get_robust_list(2).)"""
    return any(int.from_bytes(uio.read(pid, head, 8), "little") != head for head in heads)


class Bringer:
    """A process that is going to bring memory (arrival.py). Raises RestartFailed where it ends too early; `close` then,
    and nothing of it stays once the job's PID 1 is gone."""

    def __init__(self, where: Where, chosen: Mapping[int, Chosen]) -> None:
        """chosen: by number of the process. Raises OSError."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
        self.pid = os.fork()
        if self.pid == 0:
            _arrive(theirs, where, chosen)
        theirs.close()
        self.link = ours
        self._fds: list[int] = []
        self._spaces: list[tuple[int, int]] = []

    def watch(self, stub: StubProcess, number: int, chosen: Chosen) -> None:
        """Have the kernel ask for memory of a taken-over process that has its areas and early contents. Raises
        RestartFailed."""
        made = stub.run([call(NR.userfaultfd, os.O_CLOEXEC | os.O_NONBLOCK)])[0].value
        process = os.pidfd_open(stub.pid)
        try:
            fd = pidfd.copy(process, made)
        finally:
            os.close(process)
        self._fds.append(fd)
        stub.run([call(NR.close, made)])
        try:
            userfaultfd.hand_out_missing(fd)
            for start, end in chosen.areas:
                userfaultfd.register_missing(fd, start, end - start)
        except OSError as error:
            raise RestartFailed(f"memory cannot be brought later ({error.strerror}); without --lazy it works") from None
        self._spaces.append((stub.pid, number))

    def begin(self, init: int) -> None:
        """Hand everything over. init: pid of the job's PID 1; returns once it is watched. Raises RestartFailed."""
        process = os.pidfd_open(init)
        try:
            for at in range(0, len(self._fds), TOGETHER):
                self._send(self._spaces[at : at + TOGETHER], self._fds[at : at + TOGETHER])
            self._send([], [process])
            poll = select.poll()
            poll.register(self.link, select.POLLIN)
            if not poll.poll(_PATIENCE * 1000):
                raise RestartFailed("the process that is to bring the memory does not answer")
            answer = self.link.recv(1000)
            if answer != WATCHES:
                why = answer.decode(errors="replace") or "killed"
                raise RestartFailed(f"the process that is to bring the memory has ended ({why})")
        except OSError as error:
            raise RestartFailed(f"the process that is to bring the memory has ended ({error.strerror})") from None
        finally:
            os.close(process)
            self._close_fds()

    def _send(self, spaces: list[tuple[int, int]], fds: list[int]) -> None:
        """See `arrival._receive`. Raises OSError."""
        rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))
        self.link.sendmsg([msgspec.msgpack.encode(spaces)], [rights], socket.MSG_NOSIGNAL)

    def _close_fds(self) -> None:
        for fd in self._fds:
            os.close(fd)
        self._fds.clear()

    def close(self) -> None:
        """The restart has failed."""
        self._close_fds()
        self.link.close()


def _arrive(link: socket.socket, where: Where, chosen: Mapping[int, Chosen]) -> None:
    """In the forked process. Never returns."""
    try:
        from torpor.checkpoint.lazy import arrival  # meanwhile the restart goes on

        arrival.main(link, where, chosen)
    finally:
        os._exit(1)
