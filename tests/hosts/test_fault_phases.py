"""Something dies, or stands still, in every phase of a checkpoint and of a restart of a job over hosts, here all on one
machine: the job goes on or comes back from the checkpoint before, nobody waits for ever, and who asked is told what
happened, and where. The programs talk all the time, and check themselves that nothing of it is lost."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator

import pytest
from apart import FIRST, Apart
from over import text

pytest.importorskip("nats")
PROGRAMS = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "programs")
TALK = f"{PROGRAMS}/far_talk.py"
SAVES = ("survey", "freeze", "settle", "capture", "resume", "store")
RESTARTS = ("recreate", "connect", "fill", "release")
SECOND = "h2"
PATIENCE = 60.0


def until(condition: Callable[[], object], what: str, job: Apart) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, f"{what}; {job.said()}"
        time.sleep(0.01)


class Talking(Apart):
    """Two hosts whose programs talk. hasty: as for Apart."""

    def __init__(self, folder: str, hasty: bool = True) -> None:
        super().__init__(folder, [FIRST, SECOND], hasty=hasty, program=[sys.executable, f"{PROGRAMS}/held_member.py"])
        self.outputs = [f"{folder}/server.out", f"{folder}/client.out"]

    def talk(self) -> subprocess.Popen[bytes]:
        words = f"exec {sys.executable} {TALK}"
        there = f"{words} client 127.0.0.2 {self.folder}/port > {self.outputs[1]} 2>&1"
        here = f"{words} server 127.0.0.2 {self.folder}/port > {self.outputs[0]} 2>&1"
        first = self.begin(["sh", "-c", f"{sys.executable} -m torpor rsh {SECOND} '{there}' & {here}"])
        for output in self.outputs:
            until(lambda output=output: "READY" in text(output), output, self)  # type: ignore[misc]
        return first

    def hold(self, name: str, phase: str) -> None:
        """The next time that this part comes to the end of that phase it stays there."""
        for old in self.holds(name):
            os.unlink(old)
        open(f"{self.folder}/{name}/hold.{phase}", "w").close()

    def holds(self, name: str) -> list[str]:
        folder = f"{self.folder}/{name}"
        return [f"{folder}/{each}" for each in os.listdir(folder) if each.startswith("hold.")]

    def held(self, name: str) -> None:
        until(lambda: os.path.exists(f"{self.folder}/{name}/hold.reached"), f"{name} comes to that phase", self)

    def go_on(self, name: str) -> None:
        for old in self.holds(name):
            os.unlink(old)

    def save(self, name: str = FIRST) -> subprocess.Popen[str]:
        """Ask for a checkpoint, and do not wait."""
        return subprocess.Popen(
            [sys.executable, "-m", "torpor", "checkpoint", "far"], env=self.environment(name), text=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip

    def talkers(self) -> list[int]:
        found = []
        for name in self.names:
            for pid in self.everything(name):
                words = text(f"/proc/{pid}/cmdline").split("\0")
                if len(words) > 2 and words[1] == TALK:
                    found.append(pid)
        return found

    def runs(self) -> None:
        """Nobody of the programs stands still any more: each does something."""
        pids = self.talkers()
        assert len(pids) == 2, (pids, self.said())
        before = [_ticks(pid) for pid in pids]
        until(lambda: all(_ticks(pid) > n + 1 for pid, n in zip(pids, before)), "the programs go on", self)

    def checkpoints(self) -> list[int]:
        """The numbers of those that exist: all have both parts."""
        found = json.loads(self.torpor(FIRST, "list", "--store", self.store, "--json"))
        assert all(sorted(each["parts"]) == sorted(self.names) for each in found), found
        return [each["number"] for each in found]

    def saved(self, name: str = FIRST) -> None:
        """Sooner or later it can be saved again."""
        until(lambda: self.can_be_saved(name), "it is saved", self)

    def can_be_saved(self, name: str = FIRST) -> bool:
        done = self.save(name)
        done.communicate(timeout=PATIENCE)
        return done.returncode == 0

    def end(self, first: subprocess.Popen[bytes]) -> None:
        """Nothing of the conversation is lost, and nothing of the job is left."""
        for pid in self.talkers():
            os.kill(pid, signal.SIGUSR1)
        for output in self.outputs:
            until(lambda output=output: "OK" in text(output), text(output), self)  # type: ignore[misc]
        assert text(self.outputs[0]) == text(self.outputs[1])
        assert first.wait(30) == 0
        self.nothing()

    def nothing(self) -> None:
        """Nothing is left of it on any host."""
        until(lambda: not any(map(self.everything, self.names)), "nothing is left", self)
        for name in self.names:
            assert "no job" in self.torpor(name, "jobs")


@contextlib.contextmanager
def talking(prefix: str, hasty: bool = True) -> Iterator[Talking]:
    """A job whose hosts stand still no more, and are gone, at the end. hasty: see Talking."""
    with tempfile.TemporaryDirectory(prefix=prefix, dir="/var/tmp") as folder:
        made = Talking(folder, hasty)
        try:
            yield made
        finally:
            for name in made.names:
                with contextlib.suppress(OSError):
                    made.go_on(name)
                for pid in made.everything(name):
                    with contextlib.suppress(OSError):
                        os.kill(pid, signal.SIGCONT)
            made.close()


@pytest.fixture
def job() -> Iterator[Talking]:
    with talking("torpor-faults-") as made:
        yield made


def kill(find: Callable[[], int], job: Talking) -> None:
    until(find, "it is there", job)
    os.kill(find(), signal.SIGKILL)


def member_of_other(job: Talking) -> None:
    kill(lambda: job.member(SECOND), job)


def member_of_first(job: Talking) -> None:
    """It coordinates: it was there first."""
    kill(lambda: job.member(FIRST), job)


def server(job: Talking) -> None:
    kill(job.nats, job)


def supervisor(job: Talking) -> None:
    kill(lambda: job.supervisor(SECOND), job)


def answered(asker: subprocess.Popen[str], job: Talking) -> bool:
    """Was it saved? If not, one line says what happened, and on which host."""
    out, err = asker.communicate(timeout=PATIENCE)
    if asker.returncode == 0:
        assert out.startswith("saved far@"), out
        return True
    err = err.strip().splitlines()[-1]  # lines about how far it is may come before
    assert "not saved: " in err, (err, job.said())
    assert any(word in err for word in (*job.names, "coordinator")), err
    return False


@pytest.mark.exam
@pytest.mark.parametrize("phases", [SAVES[:3], SAVES[3:]])
@pytest.mark.parametrize("fault", [member_of_other, member_of_first, server])
def test_in_a_checkpoint(job: Talking, fault: Callable[[Talking], None], phases: tuple[str, ...]) -> None:
    first = job.talk()
    job.torpor(FIRST, "checkpoint")
    for number, phase in enumerate(phases):
        job.hold(SECOND, phase)
        asker = job.save(job.names[number % 2])
        job.held(SECOND)
        until(lambda: job.member(FIRST) and job.member(SECOND), "there are member processes", job)
        before = job.checkpoints()
        fault(job)
        job.go_on(SECOND)
        made = answered(asker, job)
        assert job.checkpoints()[: len(before)] == before and len(job.checkpoints()) == len(before) + made
        job.runs()
        job.saved(job.names[number % 2])
    last = job.checkpoints()[-1]
    job.runs()
    job.kill()
    first.wait(20)
    first = job.restart(f"far@{last}")
    job.runs()
    job.saved()
    job.end(first)


@pytest.mark.exam
@pytest.mark.parametrize("phase", SAVES)
def test_the_only_server_is_gone_for_good(job: Talking, phase: str) -> None:
    """What cannot be saved any more goes on, can be ended, and comes back from the checkpoint before."""
    first = job.talk()
    job.torpor(FIRST, "checkpoint")
    job.hold(SECOND, phase)
    asker = job.save()
    job.held(SECOND)
    keeper = job.nats(keeper=True)
    os.kill(job.nats(), signal.SIGKILL)
    os.kill(keeper, signal.SIGKILL)
    job.go_on(SECOND)
    answered(asker, job)
    job.runs()
    assert not answered(job.save(SECOND), job)
    for name in job.names:
        job.torpor(name, "stop", "far")
    first.wait(30)
    job.nothing()
    first = job.restart(f"far@{job.checkpoints()[-1]}", at=12)
    job.runs()
    job.saved()
    job.end(first)


@pytest.mark.exam
@pytest.mark.parametrize("phase", SAVES)
def test_a_supervisor_dies_in_a_checkpoint(job: Talking, phase: str) -> None:
    first = job.talk()
    job.torpor(FIRST, "checkpoint")
    job.hold(SECOND, phase)
    asker = job.save()
    job.held(SECOND)
    supervisor(job)
    job.go_on(SECOND)
    made = answered(asker, job)
    assert job.checkpoints() == ([1, 2] if made else [1])
    job.runs()
    again = job.save()
    assert not answered(again, job)
    job.kill()
    first.wait(20)
    first = job.restart(f"far@{job.checkpoints()[-1]}", at=12)
    job.runs()
    job.saved()
    job.end(first)


@pytest.mark.exam
@pytest.mark.parametrize("phase", SAVES)
def test_a_host_stands_still_in_a_checkpoint(job: Talking, phase: str) -> None:
    """For longer than anybody waits for it: as a minute is where nobody is hasty."""
    first = job.talk()
    job.torpor(FIRST, "checkpoint")
    job.hold(SECOND, phase)
    asker = job.save()
    job.held(SECOND)
    frozen = job.everything(SECOND)
    for pid in frozen:
        os.kill(pid, signal.SIGSTOP)
    job.go_on(SECOND)
    began = time.monotonic()
    made = answered(asker, job)
    assert not made and time.monotonic() - began < 20
    time.sleep(max(0.0, began + 8 - time.monotonic()))
    for pid in frozen:
        os.kill(pid, signal.SIGCONT)
    job.runs()
    assert job.checkpoints() == [1]
    job.saved(SECOND)
    job.end(first)


@pytest.mark.exam
@pytest.mark.parametrize("fault", [member_of_other, member_of_first, server, supervisor])
@pytest.mark.parametrize("phase", RESTARTS)
def test_in_a_restart(job: Talking, phase: str, fault: Callable[[Talking], None]) -> None:
    """It comes back, or nothing is left and it can be brought back again."""
    first = job.talk()
    job.torpor(FIRST, "checkpoint")
    job.kill()
    first.wait(20)
    job.hold(SECOND, phase)
    first = job.restart("far", come=False)
    job.held(SECOND)
    fault(job)
    job.go_on(SECOND)
    failed(job, first)


@pytest.mark.exam
@pytest.mark.parametrize("phase", RESTARTS)
def test_a_host_stands_still_in_a_restart(job: Talking, phase: str) -> None:
    first = job.talk()
    job.torpor(FIRST, "checkpoint")
    job.kill()
    first.wait(20)
    job.hold(SECOND, phase)
    first = job.restart("far", come=False)
    job.held(SECOND)
    frozen = job.everything(SECOND)
    for pid in frozen:
        os.kill(pid, signal.SIGSTOP)
    job.go_on(SECOND)
    time.sleep(8)
    for pid in frozen:
        with contextlib.suppress(OSError):
            os.kill(pid, signal.SIGCONT)
    failed(job, first)


def failed(job: Talking, first: subprocess.Popen[bytes]) -> None:
    """The restart has failed, or has not; see above."""
    until(lambda: first.poll() is not None or len(job.talkers()) == 2, "it comes to an end", job)
    until(lambda: first.poll() is not None or job.can_be_saved(), "it comes to an end, or can be saved", job)
    if first.poll() is not None:
        err = text(job.err(FIRST))
        assert first.returncode and any(word in err for word in (*job.names, "coordinator")), (err, job.said())
        job.nothing()
        first = job.restart("far", at=12)
    job.runs()
    job.saved()
    job.end(first)


def _ticks(pid: int) -> int:
    """Clock ticks that a process has had a processor for (proc_pid_stat(5))."""
    fields = text(f"/proc/{pid}/stat").rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12]) if fields else 0
