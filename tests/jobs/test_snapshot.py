"""Checkpoints of jobs that go on while they are saved: what is saved is one moment, and nobody notices the copies."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
from collections.abc import Iterator

import harness
import pytest
from test_robustness import picture, same_again
from toolchain import needs

from torpor.linux import proc

pytestmark = pytest.mark.usefixtures("compiler")


@pytest.fixture
def compiler() -> None:
    needs("gcc")


# -- killed in the middle of it


def kill_at(bench: harness.Bench, steps: range, program: str = "busy.c", *mode: str) -> None:
    """Checkpoints that are killed at each of these steps; the last one is beyond the end."""
    job = bench.run([harness.build(program), bench.go, *mode], "pid")
    job.ready()
    assert job.popen is not None
    before, processes = picture(job.popen.pid), len(harness.tagged(bench.tag))
    killed = 0
    for step in steps:
        words = [bench.account.python, harness.script("dying_snapshot.py"), str(step), "checkpoint", *job.which()]
        command = bench.popen([*words, "--store", bench.store], stdout=subprocess.DEVNULL)
        status = command.wait(harness.PATIENCE)
        assert status in (-signal.SIGKILL, 0), (step, job.trace())
        killed += status != 0
        same_again(job.popen.pid, before, f"killed at step {step}")
        harness.until(lambda: len(harness.tagged(bench.tag)) == processes, f"the end of copies, step {step}")
        if not status:
            break
    assert killed >= 18 // steps.step and not status, f"killed {killed} times"
    bench.checkpoint(job)
    job.verified()


def test_killed_while_copies_are_made(user_bench: harness.Bench) -> None:
    kill_at(user_bench, range(1, 200, 3))


def test_killed_while_advisers_are_made(user_bench: harness.Bench) -> None:
    """A program with huge pages has an adviser where we are not root."""
    kill_at(user_bench, range(1, 200, 3), "rewrite.c", "0", "huge")


@pytest.mark.exam
def test_killed_at_every_step(bench: harness.Bench) -> None:
    kill_at(bench, range(1, 200))


# -- copies that are not what was thought


@pytest.mark.parametrize(
    ("how", "note", "program"),
    [
        ("unmarked", "changed the marks of its memory", ("rewrite.c", "0", "marked")),
        ("killed", "was killed", ("rewrite.c", "0", "marked")),
        ("late", "was killed", ("busy.c",)),  # nothing in it for which a copy is traced from its birth
        ("refused", "no copy of it can be made", ("rewrite.c", "0", "marked")),
    ],
)
def test_it_is_saved_while_it_stands_still(
    how: str, note: str, program: tuple[str, ...], user_bench: harness.Bench
) -> None:
    bench = user_bench
    job = bench.run([harness.build(program[0]), bench.go, *program[1:]], "pid")
    job.ready()
    words = [bench.account.python, harness.script("odd_snapshot.py"), how, "checkpoint", *job.which()]
    command = bench.popen([*words, "--store", bench.store, "--json"], stdout=subprocess.PIPE)
    said, _ = command.communicate(timeout=harness.PATIENCE)
    (found,) = json.loads(said)["notes"]
    assert note in found and "while it was stopped" in found
    bench.kill()
    bench.restart(f"{job.name}@1").verified()


# -- pages that are copied ahead of a program that writes to them


def save_eagerly(bench: harness.Bench, job: harness.Running) -> None:
    """A checkpoint in which nearly all of the memory is copied for the program, which rewrites it."""
    words = [bench.account.python, harness.script("eager_snapshot.py"), "checkpoint", *job.which()]
    words += ["--store", bench.store, "--json", "--compress", "none"]
    command = bench.popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    said, heard = command.communicate(timeout=harness.PATIENCE)
    assert command.returncode == 0 and json.loads(said)["notes"] == [], (said, heard)
    copies, claimed = map(int, heard.split()[-2:])
    assert copies > 90 << 20 and claimed > 50 << 20, heard


def test_it_is_gone_ahead_of(user_bench: harness.Bench) -> None:
    """What is saved is one moment, and the program finds what it wrote."""
    bench = user_bench
    job = bench.run([harness.build("rewrite.c"), bench.go, "0", "big"], "pid")
    job.ready()
    save_eagerly(bench, job)
    job.verified()
    bench.gone("after the job has ended")
    bench.untell()
    bench.checkpoint(bench.restart(f"{job.name}@1", detach=True))
    bench.kill()
    bench.restart(f"{job.name}@2").verified()


# -- huge pages


def in_huge_pages(pid: int) -> int:
    """Bytes of a process."""
    return proc.rollup(pid)["AnonHugePages"]


def test_huge_pages_are_whole_again(bench: harness.Bench) -> None:
    """A program that writes splits them while it is saved, and they are put together: at the end it has them all."""
    job = bench.run([harness.build("rewrite.c"), bench.go, "0", "huge"], "pid")
    job.ready()
    assert job.popen is not None
    before = in_huge_pages(job.popen.pid)
    if before < 64 << 20:
        pytest.skip(f"{before >> 20} MiB are in huge pages here")
    for _ in range(2):
        bench.checkpoint(job)
        assert in_huge_pages(job.popen.pid) >= before
    job.verified()
    bench.gone("after the job has ended")
    bench.restart(f"{job.name}@2").verified()


# -- limits


@contextlib.contextmanager
def memory_limit(mib: int) -> Iterator[str]:
    """A control group with a limit; its folder. Skips where none can be made."""
    for top, name in (("/sys/fs/cgroup/memory", "memory.limit_in_bytes"), ("/sys/fs/cgroup", "memory.max")):
        folder = f"{top}/torpor-test-{os.getpid()}"
        try:
            os.mkdir(folder)
        except OSError:
            continue
        try:
            with open(f"{folder}/{name}", "w") as file:
                file.write(str(mib << 20))
        except OSError:
            os.rmdir(folder)
            continue
        try:
            yield folder
        finally:
            harness.until(lambda at=folder: not harness.text(f"{at}/cgroup.procs"), "the end of all in the group")
            os.rmdir(folder)
        return
    pytest.skip("no control group with a limit of memory can be made here")


def save_under_limit(bench: harness.Bench, mib: int, times: int) -> list[str]:
    """A job that rewrites 96 MiB over and over is saved; what the checkpoints noted."""
    with memory_limit(mib) as group:
        words = [harness.build("rewrite.c"), bench.go, "0", "big"]
        job = bench.run(["sh", "-c", f'echo $$ > {group}/cgroup.procs; exec "$@"', "sh", *words], "pid")
        job.ready()
        notes = [note for _ in range(times) for note in bench.checkpoint(job, "--compress", "none")["notes"]]
        job.verified()
        bench.gone("after the job has ended")
    return notes


def test_a_job_near_its_memory_limit(root_bench: harness.Bench) -> None:
    """There is no room for copies: the job stands still instead."""
    notes = save_under_limit(root_bench, 128, 2)
    assert len(notes) == 2 and all("saved while it was stopped: the memory limit of" in note for note in notes), notes


def test_a_job_with_room(root_bench: harness.Bench) -> None:
    assert save_under_limit(root_bench, 400, 1) == []


def test_memory_becomes_short_in_the_middle(root_bench: harness.Bench) -> None:
    """Somebody else takes what the copies may need: the job stands still until they are gone."""
    bench = root_bench
    with memory_limit(320) as group:
        words = [harness.build("rewrite.c"), bench.go, "0", "big"]
        job = bench.run(["sh", "-c", f'echo $$ > {group}/cgroup.procs; exec "$@"', "sh", *words], "pid")
        job.ready()
        words = [bench.account.python, harness.script("short_of_memory.py"), group, "108", "checkpoint", *job.which()]
        command = bench.popen([*words, "--store", bench.store, "--json"], stdout=subprocess.PIPE)
        said, _ = command.communicate(timeout=harness.PATIENCE)
        saved = json.loads(said)
        (note,) = saved["notes"]
        assert note.startswith("stood still again, for ") and f"the memory limit of {group} leaves " in note
        assert saved["pause_seconds"] * 1000 > int(note.split()[4])
        job.verified()
        bench.gone("after the job has ended")
    bench.restart(f"{job.name}@1").verified()


@pytest.mark.exam
def test_a_job_near_its_memory_limit_often(root_bench: harness.Bench) -> None:
    assert len(save_under_limit(root_bench, 128, 20)) == 20
