"""A terminal with a real shell in it, and a place of their own for jobs."""

from __future__ import annotations

import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

SOURCE = str(Path(__file__).parents[3] / "src")
TORPOR = [sys.executable, "-m", "torpor"]


# What a program that waits may be in (asm/unistd_64.h).
CALLS = {
    "read": 0,
    "poll": 7,
    "select": 23,
    "wait4": 61,
    "restart_syscall": 219,
    "clock_nanosleep": 230,
    "pselect6": 270,
}


class Task(NamedTuple):
    pid: int
    name: str
    state: str
    parent: int
    group: int
    session: int


def until(there: Callable[[], bool], what: str, seconds: float = 15.0) -> None:
    """Wait until it is so. Raises AssertionError with `what` after that many seconds."""
    deadline = time.monotonic() + seconds
    while not there():
        assert time.monotonic() < deadline, f"not seen in {seconds} s: {what}"
        time.sleep(0.01)


def _task(pid: int) -> Task | None:
    """A process as proc_pid_stat(5) shows it; None if it is gone."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except OSError:
        return None
    name, _, rest = text.partition("(")[2].rpartition(")")
    state, parent, group, session, *_ = rest.split()
    return Task(pid, name, state, int(parent), int(group), int(session))


def _call(pid: int) -> int | None:
    """The number of the system call that it waits in (/proc/PID/syscall); None if it runs, or is gone."""
    try:
        return int(Path(f"/proc/{pid}/syscall").read_text().split()[0])
    except (OSError, ValueError):
        return None


class Screen:
    """Type into a terminal and read what appears."""

    def __init__(self, argv: list[str], env: dict[str, str], cwd: Path) -> None:
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            try:
                for number in (signal.SIGINT, signal.SIGPIPE, signal.SIGXFSZ, signal.SIGQUIT, signal.SIGTSTP):
                    signal.signal(number, signal.SIG_DFL)
                os.chdir(cwd)
                os.execvpe(argv[0], argv, env)
            finally:
                os._exit(127)
        self.seen = ""
        self.gone = False

    def send(self, text: str) -> None:
        os.write(self.fd, text.encode())

    def expect(self, pattern: str, seconds: float = 15.0) -> re.Match[str]:
        """Wait until that appears after what was expected before."""
        deadline = time.monotonic() + seconds
        while True:
            if match := re.search(pattern, self.seen):
                self.seen = self.seen[match.end() :]
                return match
            left = deadline - time.monotonic()
            if left <= 0 or self.gone:
                raise AssertionError(f"{pattern!r} not seen; on the screen: {self.seen!r}")
            if select.select([self.fd], [], [], left)[0]:
                try:
                    data = os.read(self.fd, 65536)
                except OSError:
                    data = b""
                if not data:
                    self.gone = True
                self.seen += data.decode(errors="replace")

    def doing(self, program: str, *calls: str, seconds: float = 15.0) -> None:
        """Wait until that program is in front and waits in one of those system calls: what is typed now is for it."""
        numbers = {CALLS[call] for call in calls}

        def waits() -> bool:
            front = os.tcgetpgrp(self.fd)
            return any(
                task.group == front and task.name == program and task.pid != self.pid and _call(task.pid) in numbers
                for task in self._tasks()
            )

        until(waits, f"{program} in front, in {calls}", seconds)

    def stopped(self, seconds: float = 15.0) -> None:
        """Wait until what the shell started is stopped."""

        def is_stopped() -> bool:
            return bool(self.children()) and all(task.state == "T" for task in self.children())

        until(is_stopped, "all stopped", seconds)

    def children(self) -> list[Task]:
        """What the shell started and has not waited for."""
        return [task for task in self._tasks() if task.parent == self.pid]

    def _tasks(self) -> list[Task]:
        """The processes of this session."""
        found = (_task(int(name)) for name in os.listdir("/proc") if name.isdigit())
        return [task for task in found if task is not None and task.session == self.pid]

    def close(self) -> None:
        try:
            os.kill(self.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        os.close(self.fd)
        os.waitpid(self.pid, 0)


@pytest.fixture
def env(tmp_path: Path) -> dict[str, str]:
    """An environment in which `torpor` is a command, and whose jobs are nobody else's."""
    runtime = tmp_path / "run"
    runtime.mkdir(mode=0o700)
    bin_folder = tmp_path / "bin"
    bin_folder.mkdir()
    command = bin_folder / "torpor"
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -m torpor "$@"\n')
    command.chmod(0o755)
    return {
        "PATH": f"{bin_folder}:{os.environ['PATH']}",
        "HOME": str(tmp_path),
        "TORPOR_RUNTIME": str(runtime),
        "XDG_STATE_HOME": str(tmp_path / "state"),
        "PYTHONPATH": SOURCE,
        "TERM": "dumb",
        "PS1": "$ ",
        "LC_ALL": "C.UTF-8",
    }


@pytest.fixture
def torpor(env: dict[str, str], tmp_path: Path) -> Iterator[Callable[..., subprocess.CompletedProcess[str]]]:
    """Run a torpor command to its end."""

    def run(*words: str, **more: object) -> subprocess.CompletedProcess[str]:
        options: dict[str, Any] = {
            "env": env, "cwd": tmp_path, "capture_output": True, "text": True, "timeout": 60,
        }  # fmt: skip
        return subprocess.run([*TORPOR, *words], **{**options, **more})

    apart = dict(env)  # what is stopped at the end are jobs of this test and no others
    yield run
    env.clear()
    env.update(apart)
    import json

    for job in json.loads(run("jobs", "--json").stdout or "[]"):
        run("stop", job["name"], "--grace", "0.1")


@pytest.fixture
def shell(env: dict[str, str], tmp_path: Path) -> Iterator[Screen]:
    """An interactive bash in a terminal."""
    screen = Screen(["bash", "--norc", "--noprofile", "--noediting", "-i"], env, tmp_path)
    screen.expect(r"\$ ")
    yield screen
    screen.close()


# A shell starts what it puts in the background with these ignored, and everything below would inherit that.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(signal.SIGQUIT) == signal.SIG_IGN:
    signal.signal(signal.SIGQUIT, signal.SIG_DFL)
