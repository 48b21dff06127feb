"""What is done again and again must not add up: descriptors and memory of the supervisor, files of the store, what a
job has."""

from __future__ import annotations

import os
import re

import harness
import pytest
from test_robustness import busy_command, picture, program_of, same_again


def resident(pid: int) -> int:
    """Bytes of memory that only this process has."""
    return (
        sum(int(n) for n in re.findall(r"^Private_\w+:\s+(\d+) kB", harness.text(f"/proc/{pid}/smaps_rollup"), re.M))
        << 10
    )


def checkpoints(times: int, bench: harness.Bench) -> None:
    job = bench.run(busy_command("c", bench))
    job.ready()
    assert job.popen is not None
    root, supervisor = program_of(job), job.popen.pid
    before = picture(root)
    for _ in range(5):  # imports, pools, the first packs
        bench.checkpoint(job)
    descriptors = sorted(os.listdir(f"/proc/{supervisor}/fd"))
    threads = sorted(os.listdir(f"/proc/{supervisor}/task"))
    memory = resident(supervisor)
    new = [bench.checkpoint(job)["bytes_new"] for _ in range(times)]
    assert sorted(os.listdir(f"/proc/{supervisor}/fd")) == descriptors
    assert sorted(os.listdir(f"/proc/{supervisor}/task")) == threads
    grown = resident(supervisor) - memory
    assert grown < (4 << 20) + times * (4 << 10), f"{grown} bytes after {times} checkpoints"
    assert max(new[-5:]) < 2 * max(new[:5]) + (1 << 16), "checkpoints of the same job get larger"
    same_again(root, before, f"after {times} checkpoints")
    # What nobody needs any more goes with the checkpoints.
    bench.must("rm", *(f"{job.name}@{number}" for number in range(1, 5 + times)), "--store", bench.store)
    left = sum(os.path.getsize(os.path.join(at, n)) for at, _, names in os.walk(bench.store) for n in names)
    assert left < 40 * (1 << 20), f"{left} bytes for one checkpoint of a small job"
    job.verified()


def generations(times: int, bench: harness.Bench) -> None:
    job = bench.run(busy_command("c", bench))
    job.ready()
    name, root = job.name, program_of(job)
    areas = len(harness.text(f"/proc/{root}/maps").splitlines())
    sizes = []
    for _ in range(times):
        saved = bench.checkpoint(job, "--stop")
        sizes.append(saved["bytes_total"])
        bench.gone("after checkpoint --stop")
        job = bench.restart(f"{name}@{saved['number']}", detach=True)
    entry = next(each for each in bench.must("jobs", "--json").json() if each["name"] == name)
    assert len(harness.text(f"/proc/{entry['pid']}/maps").splitlines()) <= areas + 2
    assert max(sizes[1:]) <= sizes[0] * 1.2 + (1 << 20), f"each generation is larger: {sizes}"
    job.verified()


def test_many_checkpoints(user_bench: harness.Bench) -> None:
    checkpoints(12, user_bench)


def test_many_generations(user_bench: harness.Bench) -> None:
    generations(5, user_bench)


@pytest.mark.exam
def test_hundreds_of_checkpoints(bench: harness.Bench) -> None:
    checkpoints(400, bench)


@pytest.mark.exam
def test_a_hundred_generations(bench: harness.Bench) -> None:
    generations(100, bench)
