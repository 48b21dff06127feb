"""`torpor restart --lazy`: memory arrives while the job runs, and nothing that a program does shows it.

The store is a kind of its own, which gives slowly, or nothing at all, as a file says: so that memory has not arrived.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time

import harness
import pytest
from harness import Bench, Running

from torpor.linux import userfaultfd

STORE = '''
import os, time
from torpor.store.folder import Folder

class Slow(Folder):
    """slow:FOLDER: packs are read as FOLDER.pace says: so many seconds each, or `away`, or `wrong`, or
    `held`: then only single chunks, which somebody waits for."""

    def __init__(self, location, **options):
        super().__init__(location.removeprefix("slow:"), **options)
        self.pace = location.removeprefix("slow:") + ".pace"

    def get(self, name, offset=0, length=-1):
        if name.startswith("packs/") and length > 0:
            while (pace := open(self.pace).read()) == "held" and length > 300_000:
                time.sleep(0.05)
            if pace == "away":
                raise OSError(5, "the store is away")
            if pace == "wrong":
                return bytes(length)
            if pace != "held":
                time.sleep(float(pace))
        return super().get(name, offset, length)
'''


@pytest.fixture
def bench(root_bench: Bench) -> Bench:
    """With such a store."""
    able, why = userfaultfd.probe_missing()
    if not able:
        pytest.skip(f"memory cannot be brought later here: {why}")
    bench = root_bench
    site = os.path.join(bench.folder, "site")
    os.makedirs(os.path.join(site, "slow_store-1.dist-info"))
    with open(os.path.join(site, "slow_store.py"), "w") as f:
        f.write(STORE)
    with open(os.path.join(site, "slow_store-1.dist-info", "METADATA"), "w") as f:
        f.write("Metadata-Version: 2.1\nName: slow-store\nVersion: 1\n")
    with open(os.path.join(site, "slow_store-1.dist-info", "entry_points.txt"), "w") as f:
        f.write("[torpor.stores]\nslow = slow_store:Slow\n")
    bench.env["PYTHONPATH"] = site
    bench.store = f"slow:{bench.store}"
    pace(bench, "0")
    return bench


def pace(bench: Bench, what: str) -> None:
    path = f"{bench.store.removeprefix('slow:')}.pace"
    with open(f"{path}.new", "w") as f:
        f.write(what)
    os.rename(f"{path}.new", path)


def saved(bench: Bench, *mode: str, before: tuple[str, ...] = ()) -> str:
    """A job with memory, saved and ended; its checkpoint."""
    job = bench.run([*before, harness.build("late_memory.c"), bench.go, *(mode or ("0",))])
    job.ready()
    number = bench.checkpoint(job, "--stop")["number"]
    assert job.popen is not None
    job.popen.wait(harness.PATIENCE)
    return f"{job.name}@{number}"


def bringers(bench: Bench) -> list[int]:
    return [pid for pid in harness.tagged(bench.tag) if harness.text_of_proc(f"/proc/{pid}/comm") == "torpor-arrival\n"]


def late(job: Running) -> int:
    return int(job.wait_for(r"^late \d+$").split()[1])


def there(bench: Bench) -> bool:
    return all(job["arriving"] is None for job in bench.must("jobs", "--json").json())


def test_nothing_shows_it(bench: Bench) -> None:
    """Twice: the job that was restarted is saved while its memory arrives, and restarted once more."""
    name = saved(bench)
    pace(bench, "0.2")
    first = bench.restart(name, "--lazy", detach=True)
    assert bringers(bench) and not there(bench), first.trace()
    pace(bench, "0")
    again = bench.checkpoint(first, "--stop")
    assert not bringers(bench)
    pace(bench, "held")
    bench.tell()
    job = bench.restart(f"{first.name}@{again['number']}", "--lazy")
    assert late(job) > 18, "memory had not arrived when something was done to it"
    job.verified()
    bench.gone("after a lazily restarted job has ended")


@pytest.mark.exam
def test_a_byte_that_is_wrong_is_seen(bench: Bench) -> None:
    name = saved(bench, "1")
    bench.tell()
    assert bench.restart(name, "--lazy").finish() == 1


@pytest.mark.exam
def test_it_waits_for_a_store_that_is_away(bench: Bench) -> None:
    """And for one that gives something else: zeros never."""
    name = saved(bench)
    for what in ("away", "wrong"):
        pace(bench, what)
        job = bench.restart(name, "--lazy", detach=True)
        bench.tell()
        listed = harness.until(
            lambda: [each for each in bench.must("jobs", "--json").json() if (each["arriving"] or {}).get("why")],
            "torpor jobs says what is waited for",
        )
        assert ("away" if what == "away" else "damaged") in listed[0]["arriving"]["why"]
        assert "is waited for" in bench.must("jobs").out
        assert "OK" not in job.output()
        pace(bench, "0")
        assert job.finish() == 0
        assert "OK" in job.output()
        bench.untell()
    bench.gone("after jobs that waited")


@pytest.mark.parametrize("which", [0, pytest.param(1, marks=pytest.mark.exam)])
def test_who_brings_it_is_killed(bench: Bench, which: int) -> None:
    """Either of the two: the job is killed, and can be restarted."""
    name = saved(bench)
    pace(bench, "away")
    job = bench.restart(name, "--lazy")
    pids = harness.until(lambda: len(found := bringers(bench)) == 2 and found, "two bring it")
    harness.until(lambda: harness.text(job.out + ".err").count("is waited for"), "it waits")
    bench.tell()
    os.kill(pids[which], signal.SIGKILL)
    assert job.finish() not in (0, 1)
    assert "OK" not in job.output() and "FAIL" not in job.output()
    harness.until(lambda: "starts it again" in harness.text(job.out + ".err"), "it is said why")
    bench.gone("after it was killed")
    pace(bench, "0")
    bench.restart(name, "--lazy").verified()


@pytest.mark.exam
def test_it_ends_with_the_job(bench: Bench) -> None:
    name = saved(bench)
    pace(bench, "away")
    for end in ("stop", "kill"):
        job = bench.restart(name, "--lazy", detach=True)
        assert bringers(bench)
        if end == "stop":
            bench.must("stop", job.name)
        else:
            bench.kill()
        bench.gone(f"after {end}")


def test_where_it_may_not(user_bench: Bench) -> None:
    """Said in one line, and filled."""
    bench = user_bench
    name = saved(bench)
    bench.tell()
    job = bench.restart(name, "--lazy")
    job.verified()
    assert harness.text(job.out + ".err").count("all memory is there already (--lazy)") == 1
    assert late(job) == 0


@pytest.mark.exam
def test_a_storm(bench: Bench) -> None:
    """Threads that move, drop and fork at once, while it arrives: every byte is right. Where it cannot be known what
    came first, the job is killed, and that is said (docs/lazy.md)."""
    # On one processor, since it is known less often where its threads really run at once.
    name = saved(bench, "0", "storm", before=("taskset", "-c", "0"))
    bench.tell()
    well = 0
    for _ in range(8):
        pace(bench, "held")
        job = bench.restart(name, "--lazy")
        status = job.finish()
        assert "FAIL" not in job.output(), job.trace()
        assert status == 0 or "cannot be told apart" in harness.text(job.out + ".err"), job.trace()
        well += status == 0
        bench.gone("after a storm")
    assert well


@pytest.mark.exam
def test_it_is_killed_at_any_moment(bench: Bench) -> None:
    """It brings all, or the job is killed: wrong bytes are never seen."""
    name = saved(bench)
    bench.tell()
    for step in range(12):
        pace(bench, "0.02")
        job = bench.restart(name, "--lazy")
        pids = harness.until(lambda: len(found := bringers(bench)) == 2 and found, "two bring it")
        time.sleep(step * 0.04)
        with contextlib.suppress(ProcessLookupError):
            os.kill(pids[step % 2], signal.SIGKILL)
        status = job.finish()
        assert "FAIL" not in job.output(), job.trace()
        assert (status == 0) == ("OK" in job.output()), job.trace()
        bench.gone("after it was killed at any moment")
