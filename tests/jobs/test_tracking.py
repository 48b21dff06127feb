"""`--track`: a checkpoint reads only what was written since the last one, and never misses a write."""

from __future__ import annotations

import os
import signal

import harness
import pytest
from harness import Bench, Running
from reader import Checkpoint
from test_robustness import program_of

from torpor.checkpoint import tracking
from torpor.linux import pagemap, userfaultfd


@pytest.fixture(autouse=True)
def _able() -> None:
    for probe in (userfaultfd.probe_wp, pagemap.probe):
        able, why = probe()
        if not able:
            pytest.skip(f"writes cannot be tracked here: {why}")


def tracked(bench: Bench, pace: str = "fast") -> Running:
    job = bench.run([harness.build("tracked.c", "-pthread"), bench.go, "0", pace], flags=["--track"])
    job.ready()
    return job


@pytest.mark.diagonal
def test_no_write_is_missed(bench: Bench) -> None:
    """By a program whose memory changes in every way in which it can; in the second generation as well."""
    job = tracked(bench)
    for _ in range(6):
        saved = bench.checkpoint(job)
    bench.kill()
    again = bench.restart(f"{job.name}@{saved['number']}", detach=True)
    for _ in range(3):
        saved = bench.checkpoint(again)
    bench.kill()
    bench.restart(f"{job.name}@{saved['number']}").verified()
    bench.gone("after the restarted job has ended")


@pytest.mark.diagonal
def test_only_what_was_written_is_read(bench: Bench) -> None:
    """And every byte is that of a save that reads everything: of a job that stands still, by a command that knows
    nothing of the writes, since the supervisor does not answer."""
    job = tracked(bench, "slow")
    bench.checkpoint(job)
    assert job.popen is not None
    programs = harness.descendants(job.popen.pid)
    for pid in programs:
        os.kill(pid, signal.SIGSTOP)
    for pid in programs:
        harness.until(lambda: harness.state_of(pid) == "T", f"{pid} stands")  # noqa: B023
    known = bench.checkpoint(job)
    os.kill(job.popen.pid, signal.SIGSTOP)
    read = bench.checkpoint(job)
    assert read["bytes_read"] > 1.5 * known["bytes_read"], "all of it was read once more"
    one, other = (Checkpoint(bench.store, job.name, saved["number"]) for saved in (known, read))
    assert len(one.manifest["processes"]) >= 3
    for mine, theirs in zip(one.manifest["processes"], other.manifest["processes"], strict=True):
        assert mine["areas"] == theirs["areas"]
        for area in mine["areas"]:
            # At the end of its stack a thread has the number of the processor that it ran on last (rseq).
            place = area["start"], area["end"] - area["start"] - 2 * 4096
            if area["kind"] == "anonymous" and place[1] >= tracking.SMALLEST:
                assert one.memory(mine, *place) == other.memory(theirs, *place), f"{area} of {mine['pid']}"
    for pid in (job.popen.pid, *programs):
        os.kill(pid, signal.SIGCONT)
    job.verified()


def test_marks_that_change_between_checkpoints(user_bench: Bench) -> None:
    """What was supposed of a process' memory does not hold any more: that is noticed, and no reason to stop the job."""
    bench = user_bench
    job = bench.run([harness.build("rewrite.c"), bench.go, "0", "later"], flags=["--track"])
    job.ready()
    for _ in range(2):
        assert bench.checkpoint(job)["notes"] == []
    assert job.popen is not None
    (program,) = harness.descendants(job.popen.pid)
    os.kill(program, signal.SIGUSR1)
    job.wait_for("^MARKED$")
    for _ in range(2):
        saved = bench.checkpoint(job)
        assert saved["notes"] == []
    bench.kill()
    bench.restart(f"{job.name}@{saved['number']}").verified()


def test_a_failed_checkpoint_forgets_nothing(user_bench: Bench) -> None:
    """What was written before a checkpoint that failed is in the next one."""
    bench = user_bench
    job = tracked(bench)
    bench.checkpoint(job)
    packs = os.path.join(bench.store, "packs")
    os.chmod(packs, 0o500)
    try:
        said = bench.torpor("checkpoint", job.name)
        assert said.status == 1 and "cannot write" in said.err
    finally:
        os.chmod(packs, 0o700)
    saved = bench.checkpoint(job)
    bench.kill()
    bench.restart(f"{job.name}@{saved['number']}").verified()


def test_nothing_is_left_in_a_job(user_bench: Bench) -> None:
    """The job has no descriptor of it; if torpor is killed, the kernel forgets."""
    job = tracked(user_bench)
    root = program_of(job)
    before = sorted(os.listdir(f"/proc/{root}/fd"))
    user_bench.checkpoint(job)
    assert sorted(os.listdir(f"/proc/{root}/fd")) == before
    assert " uw" in harness.text(f"/proc/{root}/smaps")
    assert job.popen is not None
    os.kill(job.popen.pid, signal.SIGKILL)
    harness.until(lambda: " uw" not in harness.text(f"/proc/{root}/smaps"), "the marks are gone")
    job.popen.wait()
    user_bench.checkpoint(Running(user_bench, None, job.out, job.name, "run"))
    user_bench.tell()
    job_output = harness.until(lambda: "OK" in job.output(), "it verifies itself")
    assert job_output


def test_where_writes_cannot_be_tracked(user_bench: Bench) -> None:
    """All of it is read, and that is said."""
    user_bench.env["TORPOR_WITHOUT"] = "userfaultfd_wp"
    job = tracked(user_bench)
    first = user_bench.checkpoint(job)
    saved = user_bench.checkpoint(job)
    assert saved["bytes_read"] > first["bytes_read"] / 2
    assert any("writes cannot be tracked here" in note for note in saved["notes"])
    user_bench.kill()
    user_bench.restart(job.name).verified()
