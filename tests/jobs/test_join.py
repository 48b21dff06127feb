"""`torpor run --join`: programs that become part of a job from another terminal."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
from typing import Any

import harness
import pytest

LOOP = "n=0; while ! [ -e {go} ]; do n=$((n+1)); echo $n; sleep 0.02; done"


def count(bench: harness.Bench, end: str) -> list[str]:
    """A program that counts until it is told to end."""
    return ["sh", "-c", f"{LOOP.format(go=bench.go)}; {end}"]


def join(bench: harness.Bench, job: str, *program: str, **options: Any) -> subprocess.Popen[bytes]:
    options.setdefault("stderr", subprocess.DEVNULL)
    return bench.popen([*bench.account.torpor, "run", "--join", job, "--", *program], **options)


def counted(text: str) -> int:
    """How far it has come; no number is missing."""
    numbers = [int(line) for line in text.split("\n")[:-1] if line.isdigit()]
    assert numbers == list(range(1, len(numbers) + 1)), text[-500:]
    return len(numbers)


@pytest.mark.diagonal
def test_saved_and_restarted_with_the_job(bench: harness.Bench) -> None:
    """One program writes into a file of its own, one to a terminal; the first ends before they do."""
    job = bench.run(count(bench, "exit 4"))
    job.wait_for("^3$")
    out = bench.output_file()
    with open(out, "wb") as file:
        one = join(bench, job.name, *count(bench, "sleep 0.5; exit 5"), stdout=file)
    master, slave = pty.openpty()
    two = join(bench, job.name, "sh", "-c", "tty; stty size; read line; echo got $line; exit 6",
               stdin=slave, stdout=slave, stderr=slave)  # fmt: skip
    name = os.ttyname(slave)
    os.close(slave)
    harness.until(lambda: counted(harness.text(out)) > 3, "it counts")
    seen = b""
    while b"0 0" not in seen:
        seen += os.read(master, 1000)
    assert name.encode() in seen
    bench.checkpoint(job)
    os.write(master, b"on\n")
    assert two.wait(harness.PATIENCE) == 6
    while b"got on" not in seen:
        seen += os.read(master, 1000)
    bench.tell()
    assert (job.finish(), one.wait(harness.PATIENCE)) == (4, 5)  # both are known, and the job waits for both
    bench.gone("after the job has ended")
    bench.untell()
    for _ in range(2):  # the program at the terminal has whoever restarts to read from: /dev/null
        job = bench.restart(job.name)
        job.wait_for(r"^\d+$")
        before = counted(harness.text(out))
        harness.until(lambda at=before: counted(harness.text(out)) > at, "the other goes on")  # type: ignore[misc]
        bench.checkpoint(job, "--stop")
        assert job.finish() == 75
    os.close(master)


@pytest.mark.diagonal
def test_status_signals_and_refusals(bench: harness.Bench) -> None:
    job = bench.run(count(bench, "exit 0"))
    job.wait_for("^3$")

    def said(*program: str) -> tuple[int, str, str]:
        return bench.torpor("run", "--join", job.name, "--", *program)

    assert said("sh", "-c", "echo out; echo err >&2; umask; pwd; exit 9") == (
        9, f"out\n{os.umask(os.umask(0o22)):04o}\n{bench.folder}\n", "err\n")  # fmt: skip
    assert said("sh", "-c", "kill -USR1 $$") == (-signal.SIGUSR1, "", "")
    assert said("/no/such")[::2] == (127, "torpor: /no/such: No such file or directory\n")
    assert bench.torpor("run", "--join", "nobody", "--", "true")[::2] == (2, "torpor: no job named nobody is running\n")
    assert bench.torpor("run", "--join", job.name, "--name", "x", "--", "true").status == 2
    for number in (signal.SIGTERM, signal.SIGINT):
        trap = f"trap 'echo caught; exit 8' {int(number)}; echo READY; while :; do sleep 0.02; done"
        process = join(bench, job.name, "sh", "-c", trap, stdout=subprocess.PIPE)
        assert process.stdout is not None and process.stdout.readline() == b"READY\n"
        process.send_signal(number)
        assert process.wait(harness.PATIENCE) == 8 and process.stdout.read() == b"caught\n"
        process.stdout.close()
    bench.checkpoint(job, "--stop")
    assert job.finish() == 75
    job = bench.restart(job.name)
    job.wait_for(r"^\d+$")
    assert "namespaces of its own" in said("true")[2]
    bench.tell()
    assert job.finish() == 0


@pytest.mark.exam
def test_saved_and_stopped_with_the_job(bench: harness.Bench) -> None:
    """Whoever started it is told what whoever started the job is told; what is stopped stops its command."""
    job = bench.run(count(bench, "exit 0"))
    job.wait_for("^3$")
    one = join(bench, job.name, *count(bench, "exit 3"), stdout=subprocess.DEVNULL)
    two = join(bench, job.name, "sh", "-c", "kill -STOP $$; exit 7")
    harness.until(lambda: harness.state_of(two.pid) == "T", "the command has stopped")
    two.send_signal(signal.SIGCONT)
    assert two.wait(harness.PATIENCE) == 7
    bench.checkpoint(job, "--stop")
    assert (job.finish(), one.wait(harness.PATIENCE)) == (75, 75)
