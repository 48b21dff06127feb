"""`torpor restart --stopped`: the whole job stands still before its first instruction, and goes on as if it had not."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess

import harness
import pytest


def restarted(bench: harness.Bench, name: str) -> tuple[harness.Running, int, int]:
    """A job that is held, with its supervisor and its root (host pids)."""
    job = bench.restart(name, "--stopped", detach=True)
    (said,) = [line for line in bench.history if line.startswith(f"torpor restart {name}")][-1:]
    found = re.search(r"stands before its first instruction; kill -CONT (\d+) .*gdb .* -p (\d+)", said)
    assert found, said
    return job, int(found[1]), int(found[2])


def living(bench: harness.Bench) -> dict[int, str]:
    """The job's processes, without torpor's own, and the letters of their states."""
    out = {}
    for pid in harness.tagged(bench.tag):
        command = os.path.basename(harness.text_of_proc(f"/proc/{pid}/cmdline").split("\0")[0])
        if command and "torpor" not in command and "python" not in command:
            out[pid] = harness.state_of(pid)
    return out


def held_twice(bench: harness.Bench, source: str) -> harness.Running:
    """Saved, restarted and held, let go on, and all of that once more; it runs now."""
    job = bench.run([harness.build(source), bench.go, "0"])
    job.ready()
    own = sorted(state for state in living(bench).values() if state == "T")
    for _ in range(2):
        name = f"{job.name}@{bench.checkpoint(job)['number']}"
        bench.kill()
        job, supervisor, root = restarted(bench, name)
        assert root in living(bench)
        assert set(living(bench).values()) <= {"T", "Z"}, living(bench)
        os.kill(supervisor, signal.SIGCONT)
        harness.until(lambda: sorted(s for s in living(bench).values() if s == "T") == own, f"{own} stopped")
    return job


@pytest.mark.diagonal
@pytest.mark.parametrize(
    "source",
    [pytest.param("signals.c", marks=pytest.mark.exam), "threads.c", pytest.param("tree.c", marks=pytest.mark.exam)],
)
def test_a_held_job_goes_on(bench: harness.Bench, source: str) -> None:
    held_twice(bench, source).verified()
    bench.gone("after the job has ended")


@pytest.mark.diagonal
def test_what_was_stopped_of_itself_stays_so(bench: harness.Bench) -> None:
    held_twice(bench, "family.c")  # which then finds that running children have gone on, as after any SIGCONT


@pytest.mark.exam
def test_one_that_goes_on_takes_the_others_along(bench: harness.Bench) -> None:
    job = bench.run([harness.build("tree.c"), bench.go, "0"])
    job.ready()
    name = f"{job.name}@{bench.checkpoint(job)['number']}"
    bench.kill()
    job, _, root = restarted(bench, name)
    os.kill(root, signal.SIGCONT)
    job.verified()


@pytest.mark.diagonal
@pytest.mark.skipif(shutil.which("gdb") is None, reason="needs gdb")
def test_a_debugger_sees_it_where_it_was(bench: harness.Bench) -> None:
    """It can be attached, by an ordinary user too."""
    job = bench.run([harness.build("threads.c"), bench.go, "0"])
    job.ready()
    name = f"{job.name}@{bench.checkpoint(job)['number']}"
    bench.kill()
    job, supervisor, root = restarted(bench, name)
    look = ["-ex", "thread apply all backtrace", "-ex", "print go_path"]
    words = ["gdb", "-nx", "-q", "-batch", "-iex", "set sysroot /", "-p", str(root), *look]
    seen = bench.popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT).communicate(timeout=60)[0].decode()
    assert re.search(r"#\d+ .* main \(", seen), seen
    assert f'"{bench.go}"' in seen, seen
    os.kill(supervisor, signal.SIGCONT)
    job.verified()
