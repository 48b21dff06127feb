"""Watch a job that runs already: its processes are stopped, and each puts the filter on itself, for all of its threads.

A filter takes a listener, and whoever makes calls that the filter picks waits for it: so the listener must not be lost,
even if we are killed in the middle. A holder is there before; the process connects to it, makes the filter, says the
number that its listener has, waits until the holder has taken a copy, and closes both; all in one batch, which comes to
its end without us (tracee/call.py). Each process has a listener of its own from then on, which its later children
inherit.

Source: seccomp(2), SECCOMP_FILTER_FLAG_TSYNC; kernel/seccomp.c.
"""

from __future__ import annotations

import errno
import os
import secrets
import socket
import struct
from collections.abc import Callable

import msgspec

from torpor.checkpoint.tree import Tree
from torpor.linux import capability, pidfd, prctl, proc, seccomp_notify
from torpor.linux.arch.x86_64 import NR
from torpor.model.errors import Refusal, Refused, Unwatched
from torpor.named_tuple import NamedTuple
from torpor.posix import seccomp_filters
from torpor.posix.obstacles import Seen
from torpor.posix.turnover import Numbers, Script, result
from torpor.tracee.call import In, Out
from torpor.tracee.freeze import freeze
from torpor.tracee.process import LivingProcess
from torpor.tracee.task import Gone
from torpor.watch import ledger
from torpor.watch.holder import DONE
from torpor.watch.possible import impossible
from torpor.watch.wrapper import Wrapper

_PATIENCE = struct.pack("<qq", 10, 0)
"""How long a process waits for the holder, as a struct timeval: a stopped job must not stand still for ever."""
_NOTIFY = "anon_inode:seccomp notify"
"""What /proc/PID/fd shows of a listener."""


class Watched(NamedTuple):
    """processes: how many are watched now. notes: what there is to say."""

    processes: int
    notes: tuple[str, ...]


def refusals(tree: Tree, no_new_privs: bool) -> list[Refusal]:
    """What is in the way, told without touching anything. no_new_privs: programs may lose what set-user-ID gives."""
    if why := impossible():
        return [Refusal(0, "", "the job cannot be watched", why)]
    if no_new_privs:
        return []
    for pid in tree.find():
        status = proc.status(pid)
        privileged = int(status["CapEff"], 16) >> capability.SYS_ADMIN & 1
        if not (privileged or int(status.get("NoNewPrivs", "0"))):
            thing = "could then no longer execute set-user-ID programs with their privileges (no_new_privs)"
            return [Refusal(pid, status["Name"], thing, "if that is all right, say --no-new-privs")]
    return []


class LateWrapper(Wrapper):
    """The wrapper around a job that runs already."""

    def __init__(self, how: str) -> None:
        super().__init__(ledger.begun(how, late=True))
        for fd in (*self._up, *self._down):
            os.close(fd)
        self._address = b"\0torpor-watch-" + secrets.token_hex(16).encode()
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as control:
            control.bind(self._address)
            control.listen(64)
            self.revive(control.fileno())

    def wrap(self, tree: Tree) -> Watched:
        """Stop the job, put filters on all of its processes, and let it go on. In one thread, which nobody else's waits
        disturb. Raises Unwatched if none of them is watched then, Refused, CheckpointFailed."""
        notes: list[str] = []
        count = 0
        try:
            with freeze(tree.find) as frozen:
                for process in frozen.processes.values():
                    why = self._wrap(process)
                    count += not why
                    if why:
                        notes.append(f"process {process.vpid} ({process.comm}) runs unwatched: {why}")
            self._gather()
        finally:
            self._done()
        if not count:
            raise Unwatched("; ".join(notes) or "the job has ended")
        return Watched(count, tuple(notes))

    def _wrap(self, process: LivingProcess) -> str:
        """Why a stopped process is not watched, '' if it is now."""
        for refusal in seccomp_filters.survey(Seen(process.pid, process.leader.tid), False):
            return refusal.thing
        numbers = Numbers(process.pid)
        sock, listener = numbers.take(), numbers.take()
        to = struct.pack("<H", socket.AF_UNIX) + self._address
        script = Script()
        script.add(NR.socket, socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC, 0, otherwise="over")
        script.add(NR.setsockopt, sock, socket.SOL_SOCKET, socket.SO_RCVTIMEO, In(_PATIENCE), 16, otherwise="back")
        connected = script.add(NR.connect, sock, In(to), len(to), otherwise="back")
        if not int(process.status["CapEff"], 16) >> capability.SYS_ADMIN & 1:
            script.add(NR.prctl, prctl.SET_NO_NEW_PRIVS, 1, 0, 0, 0, otherwise="back")
        code = In(self._program)
        filters = In(struct.pack("<H6xQ", len(self._program) // 8, 0), ((8, code),))
        made = script.add(
            NR.seccomp, seccomp_notify.SET_MODE_FILTER, seccomp_notify.FOR_ALL_THREADS, filters, otherwise="back"
        )  # fmt: skip
        script.add(NR.write, sock, result(made), 8)
        taken = script.add(NR.read, sock, Out(1), 1)
        script.add(NR.close, listener)
        script.label("back")
        script.add(NR.close, sock)
        script.label("over")
        script.add(NR.getpid)
        try:
            answers = process.run(script.calls, check=False)
        except (Gone, ProcessLookupError, FileNotFoundError):
            return "it has ended"
        for answer in answers[: connected + 1]:
            if answer.error:
                return f"it cannot reach us ({os.strerror(answer.error)})"
        if answers[made].value == listener and answers[taken].value == 1:
            return ""
        return _why(answers[made].error)

    def _gather(self) -> None:
        """Take copies of the listeners that the holder has, for another one should it die."""
        process = os.pidfd_open(self.holder)
        try:
            for number in proc.descriptors(self.holder):
                if os.readlink(f"/proc/{self.holder}/fd/{number}") == _NOTIFY:
                    self._listeners.append(pidfd.copy(process, number))
        finally:
            os.close(process)

    def _done(self) -> None:
        """No more listeners will be brought."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
            try:
                sock.connect(self._address)
                sock.sendall(struct.pack("<q", DONE))
            except OSError:
                pass  # it has died: who notices that starts another one


def _why(error: int) -> str:
    if error == errno.EBUSY:
        return "it, or who started it, listens to its calls already (a container, a sandbox)"
    if error == errno.ESRCH:
        return "its threads have different filters"
    return f"no filter can be put on it ({os.strerror(error)})" if error else "nobody took its listener"


def begin(tree: Tree, how: str, no_new_privs: bool, known: Callable[[int], None]) -> tuple[Wrapper, Watched]:
    """Watch a job from now on. how: see `ledger.begun`.  known: called with the pid of the holder before anything is
    touched. Raises Refused, Unwatched, CheckpointFailed, OSError; what is watched by then stays so."""
    found = refusals(tree, no_new_privs)
    if found:
        raise Refused(found, "cannot watch")
    wrapper = LateWrapper(how)
    known(wrapper.holder)
    # It may be a descendant of the job's anchor, and has to run.
    return wrapper, wrapper.wrap(msgspec.structs.replace(tree, skip=(*tree.skip, wrapper.holder)))
