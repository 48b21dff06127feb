"""A command that comes to a supervisor in the very moment of its end."""

from __future__ import annotations

import os
import socket
import subprocess
import threading
import time
from pathlib import Path

import pytest

from torpor.linux import proc
from torpor.model.errors import NotFound, TorporError
from torpor.supervise import registry
from torpor.supervise.job import Job
from torpor.supervise.registry import Entry, Pid


def entry_of(folder: str, root: int) -> Entry:
    """A job whose supervisor is this process."""
    return Entry(
        "it", supervisor=Pid.of(os.getpid()), root=Pid.of(root), boot=proc.boot_id(), folder=folder, store=folder
    )


class Hangs:
    """Listens as a supervisor does, and closes its socket as soon as somebody waits there, before it has accepted."""

    def __init__(self, folder: str) -> None:
        self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.listener.bind(f"{folder}/socket")
        self.listener.listen(1)
        self.thread = threading.Thread(target=self._close)
        self.thread.start()

    def _close(self) -> None:
        import select

        select.select([self.listener], [], [], 10)
        time.sleep(0.05)  # until the command waits for the greeting
        self.listener.close()


def ended() -> Pid:
    child = subprocess.Popen(["true"])
    pid = Pid.of(child.pid)
    child.wait()
    return pid


def test_a_job_that_is_over_has_ended(tmp_path: Path) -> None:
    """The registry knows nothing of it any more; its supervisor still closes its sockets."""
    gone = ended()
    job = Job(entry_of(str(tmp_path), os.getpid())._replace(root=gone))
    hangs = Hangs(str(tmp_path))
    with pytest.raises(NotFound, match="it has ended"):
        job.check()
    hangs.thread.join()


def test_a_job_that_runs_has_not(tmp_path: Path) -> None:
    """What is wrong with its supervisor then is told as it is."""
    job = Job(entry_of(str(tmp_path), os.getpid()))
    hangs = Hangs(str(tmp_path))
    with pytest.raises(TorporError, match="does not answer") as told:
        job.check()
    assert not isinstance(told.value, NotFound)
    hangs.thread.join()
    assert registry.read(str(tmp_path)) is None
