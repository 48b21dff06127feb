"""Job control: what a shell expects of a command that stands for another program.

Started by `run`, the program is in our own process group: the terminal speaks to both of us, and all there is
to do is to stop when the program has stopped, so that the shell notices, and to continue it when the shell
continues us.

A restarted job has groups of its own. The restart put the saved foreground group in front and set the saved
modes; from then on we relay: when the job stops, take the terminal back, with the shell's modes, and stop;
when the shell continues us in the foreground, hand it over again.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterable
from typing import Any

from torpor.linux import proc
from torpor.supervise.registry import Pid
from torpor.supervise.signals import Signals

WATCH_SECONDS = 0.1


def open_terminal() -> int:
    """A descriptor of our controlling terminal, or -1 if there is none."""
    try:
        return os.open("/dev/tty", os.O_RDWR | os.O_CLOEXEC | os.O_NOCTTY)
    except OSError:
        return -1


class Terminal:
    """The controlling terminal of the command, as found at its start.

    fd: a descriptor of it, or -1 (no terminal: then nothing here does anything).
    relay: the job has process groups of its own (it was restarted).
    """

    def __init__(self, fd: int, relay: bool) -> None:
        self.fd = fd
        self.relay = relay and fd >= 0
        self.front = -1
        self._modes: list[Any] | None = None
        self._job_modes: list[Any] | None = None
        self._job_front = 0
        if self.relay:
            try:
                self.front = os.tcgetpgrp(fd)
                self._modes = self._get()
            except OSError:
                self.relay = False

    @property
    def in_front(self) -> bool:
        """Are we in the terminal's foreground group?"""
        try:
            return self.fd >= 0 and os.tcgetpgrp(self.fd) == os.getpgrp()
        except OSError:
            return False

    def stopped(
        self,
        root: Pid,
        number: int,
        signals: Signals,
        members: Callable[[], Iterable[int]],
        set_aside: Callable[[int], None],
    ) -> bool:
        """The job's root has been stopped by that signal: stop too, and continue it once we are continued.

        members: the host pids of the job (asked for only if they matter).  set_aside: told the pid of a
        helper of ours, then 0 when it is gone. Returns whether the root was continued.
        """
        if self.fd < 0 or (number == signal.SIGSTOP and not _noticed()):
            return False
        if self.relay and number in (signal.SIGTTIN, signal.SIGTTOU) and self._has_it(root):
            # It was stopped for touching a terminal that has become its own in the meantime.
            _continue_group(_group(root.pid))
            return True
        self._take(members)
        watcher = _watch(root)
        set_aside(watcher)
        woken = signals.stop_self(number)
        if watcher:
            try:
                os.kill(watcher, signal.SIGKILL)
                os.waitpid(watcher, 0)
            except OSError:
                pass
            set_aside(0)
        if not woken:
            self._give()
            return False
        self.resume(root)
        return True

    def resume(self, root: Pid) -> None:
        """We have been continued: hand the terminal over if it is ours to give, and continue the job."""
        group = self._give()
        own = _group(root.pid)
        if group and self.relay:
            _continue_group(group)
            if own == group:
                return  # a second SIGCONT would undo a stop that has come since
        # Not if it runs already: the shell's SIGCONT went to the whole group, and programs catch it.
        if root.state == "T":
            if own in (0, os.getpgrp()):
                try:
                    os.kill(root.pid, signal.SIGCONT)
                except OSError:
                    pass
            else:
                _continue_group(own)

    def close(self, members: Callable[[], Iterable[int]]) -> None:
        """The root is gone: the terminal as it was at the start, unless somebody else has it by now."""
        if not self.relay or self.front != os.getpgrp():
            return
        try:
            front = os.tcgetpgrp(self.fd)
            if front != self.front:
                if _group_exists(front) and front not in {_group(pid) for pid in members()}:
                    return
                os.tcsetpgrp(self.fd, self.front)
            self._set(self._modes)
        except OSError:
            pass  # hung up, or the group we were started in is no more

    def _has_it(self, root: Pid) -> bool:
        """Is the root in the terminal's foreground group?"""
        try:
            return os.tcgetpgrp(self.fd) == _group(root.pid)
        except OSError:
            return False

    def _take(self, members: Callable[[], Iterable[int]]) -> None:
        """Take the terminal from the job, if one of its groups has it: note which, and put our own in front.

        That may also be one that a program has made for itself, as an interactive shell does.
        """
        try:
            front = os.tcgetpgrp(self.fd)
            if front == os.getpgrp() or front not in {_group(pid) for pid in members()}:
                return
            self._job_front = front
            if self.relay:
                self._job_modes = self._get()
                # From the background this is allowed because SIGTTOU is blocked.
                os.tcsetpgrp(self.fd, os.getpgrp())
                self._set(self._modes)
        except OSError:
            pass

    def _give(self) -> int:
        """Hand the terminal to the job's group that had it, if we have it. Returns that group, 0 for none."""
        group = self._job_front
        try:
            if group and self.in_front:
                if self.relay:
                    self._modes = self._get()
                    self._set(self._job_modes)
                os.tcsetpgrp(self.fd, group)
                self._job_front = 0
        except OSError:
            pass
        return group

    def _get(self) -> list[Any]:
        import termios

        try:
            return termios.tcgetattr(self.fd)
        except termios.error as error:
            raise OSError(*error.args) from None

    def _set(self, modes: list[Any] | None) -> None:
        import termios

        if modes is None:
            return
        try:
            termios.tcsetattr(self.fd, termios.TCSADRAIN, modes)
        except termios.error as error:
            raise OSError(*error.args) from None


def _group(pid: int) -> int:
    try:
        return os.getpgid(pid)
    except OSError:
        return 0


def _continue_group(group: int) -> None:
    try:
        os.killpg(group, signal.SIGCONT)
    except OSError:
        pass


def _group_exists(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _noticed() -> bool:
    """Would somebody notice if we stopped: is our parent a shell of this session that gave us a group of our
    own?"""
    try:
        parent = os.getppid()
        return os.getsid(parent) == os.getsid(0) and os.getpgid(parent) != os.getpgrp()
    except OSError:
        return False


def _watch(root: Pid) -> int:
    """A process that continues us should the root be continued, or die, while we are stopped.

    The shell continues the whole group; but `kill -CONT` or `kill -KILL` may also be sent to the program
    alone, and nobody would then wake us: our caller would wait for ever. Returns its pid, or 0.
    """
    parent = os.getpid()
    try:
        pid = os.fork()
    except OSError:
        return 0
    if pid:
        return pid
    try:
        os.setsid()
        os.closerange(0, 1024)
        for _ in range(20):  # until we have come to a stop
            if proc.stat(parent).state == "T":
                break
            time.sleep(WATCH_SECONDS)
        while os.getppid() == parent and proc.stat(parent).state == "T":
            if root.state not in ("T", "t"):
                os.kill(parent, signal.SIGCONT)
                break
            time.sleep(WATCH_SECONDS)
    finally:
        os._exit(0)
