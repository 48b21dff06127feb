"""`torpor restart --clone --count N`: several copies of one job, all or none, each for itself."""

from __future__ import annotations

import os
import re
import signal
import subprocess

import harness
import pytest

COUNT = 5
MUCH = 13 << 20
"""Less than apart.c has in an area of private memory, more than torpor's processes share with each other."""

LISTENS = """
import os, socket, sys, time
server = socket.create_server(("127.0.0.1", 0))
print("READY", flush=True)
while not os.path.exists(sys.argv[1]):
    time.sleep(0.01)
print("OK", flush=True)
"""

WAITS = """
import os, sys, time
print("READY", flush=True)
while not os.path.exists(sys.argv[1]):
    time.sleep(0.01)
print("OK", flush=True)
"""


def clones(bench: harness.Bench, name: str, *options: str, count: int = COUNT) -> list[harness.Running]:
    said = bench.must("restart", name, "--store", bench.store, "--clone", "--count", str(count), "--json", *options)
    return [harness.Running(bench, None, each["log"], each["name"], "restart") for each in said.json()]


def running(bench: harness.Bench) -> dict[str, int]:
    return {job["name"]: job["pid"] for job in bench.must("jobs", "--json").json()}


def shared(pid: int) -> int:
    """Bytes that a process has written, or that were written for it, and that others have too."""
    found = re.search(r"^Shared_Dirty: +(\d+) kB$", harness.text_of_proc(f"/proc/{pid}/smaps_rollup"), re.MULTILINE)
    return int(found[1]) << 10 if found else 0


def huge(pid: int) -> int:
    """Bytes of private memory in huge pages."""
    found = re.search(r"^AnonHugePages: +(\d+) kB$", harness.text_of_proc(f"/proc/{pid}/smaps_rollup"), re.MULTILINE)
    return int(found[1]) << 10 if found else 0


def test_each_goes_its_own_way(bench: harness.Bench) -> None:
    job = bench.run([harness.build("apart.c"), bench.go, "0"])
    job.ready()
    bench.checkpoint(job, "--stop")
    copies = clones(bench, job.name)
    assert [copy.name for copy in copies] == [f"{job.name}-{number}" for number in range(1, COUNT + 1)]
    there = running(bench)
    pids = {there[copy.name] for copy in copies}
    assert len(pids) == COUNT
    # Nobody has written to it yet: private memory, which all of them share, and none of torpor's own processes.
    assert all(shared(pid) > MUCH for pid in pids), [shared(pid) for pid in pids]
    assert not any(huge(pid) for pid in pids), "where the program had small pages"
    harness.until(
        lambda: not any(shared(pid) > MUCH for pid in {*harness.tagged(bench.tag)} - pids),
        "torpor's processes let go of the job's memory",
    )
    # One of them is saved and comes back as itself.
    bench.checkpoint(copies[2], "--stop")
    copies[2] = bench.restart(copies[2].name, detach=True)
    seeds = set()
    for copy in copies:
        copy.verified()
        seeds |= set(re.findall(r"^SEED (\w+)$", copy.output(), re.MULTILINE))
    assert len(seeds) == COUNT, seeds


def test_shared_memory_is_like_its_own(user_bench: harness.Bench) -> None:
    """Whatever a program may do to an area of its memory it can do to one that it shares with other copies."""
    job = user_bench.run([harness.build("late_memory.c"), user_bench.go, "0"])
    job.ready()
    user_bench.checkpoint(job, "--stop")
    user_bench.tell()
    for copy in clones(user_bench, job.name, count=2):
        copy.verified()


@pytest.mark.parametrize("wrong", (1, 2))
def test_the_program_notices_what_is_wrong(wrong: int, user_bench: harness.Bench) -> None:
    job = user_bench.run([harness.build("apart.c"), user_bench.go, str(wrong)])
    job.ready()
    user_bench.tell()
    assert job.finish() == 1
    assert "FAIL" in job.output()


def test_all_or_none(user_bench: harness.Bench) -> None:
    """The second one cannot listen where the first one does."""
    job = user_bench.run(["/usr/bin/python3", "-c", LISTENS, user_bench.go])
    job.ready()
    user_bench.checkpoint(job, "--stop")
    said = user_bench.torpor("restart", job.name, "--store", user_bench.store, "--clone", "--count", "2")
    assert said.status == 1, said.err
    assert "in use" in said.err.splitlines()[-1], said.err
    assert not any(name.startswith(job.name) for name in running(user_bench))
    harness.until(lambda: not harness.tagged(user_bench.tag), "the end of all that was made")
    user_bench.restart(job.name).verified()


@pytest.mark.parametrize("number", (signal.SIGINT, signal.SIGKILL))
@pytest.mark.parametrize("maker", (False, True))
def test_nothing_is_left_of_what_was_interrupted(maker: bool, number: int, user_bench: harness.Bench) -> None:
    """Neither when the command is ended, nor the process that makes the copies for it."""
    job = user_bench.run(["/usr/bin/python3", "-c", WAITS, user_bench.go])
    job.ready()
    user_bench.checkpoint(job, "--stop")
    words = ["restart", job.name, "--store", user_bench.store, "--clone", "--count", "40"]
    command = user_bench.popen(
        [*user_bench.account.torpor, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
    )
    harness.until(lambda: len(harness.tagged(user_bench.tag)) > 6, "the first of the copies")
    os.kill(harness.children(command.pid)[0] if maker else command.pid, number)
    _, said = command.communicate(timeout=60)
    assert command.returncode != 0, said
    assert b"Traceback" not in said, said
    harness.until(lambda: not harness.tagged(user_bench.tag), "the end of all that was made")
    assert not any(name.startswith(job.name) for name in running(user_bench))
    user_bench.restart(job.name).verified()


@pytest.mark.exam
def test_a_second_lot_has_the_next_names(user_bench: harness.Bench) -> None:
    job = user_bench.run([harness.build("apart.c"), user_bench.go, "0"])
    job.ready()
    user_bench.checkpoint(job)
    clones(user_bench, job.name, "--name", "lot")
    second = clones(user_bench, job.name, "--name", "lot")
    assert [copy.name for copy in second] == [f"lot-{number}" for number in range(COUNT + 1, 2 * COUNT + 1)]
    for each in (job, *second):
        each.verified()


@pytest.mark.parametrize(
    "words", (("--count", "2"), ("--clone", "--count", "0"), ("--clone", "--count", "2", "--in-place"))
)
def test_what_makes_no_sense(words: tuple[str, ...], user_bench: harness.Bench) -> None:
    said = user_bench.torpor("restart", "none", "--store", user_bench.store, *words)
    assert said.status == 2
    assert "--count" in said.err
