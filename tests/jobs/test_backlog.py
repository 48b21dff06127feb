"""Connections that wait to be accepted with data in them: a server under load can be saved at any moment, and so can
one that does not accept at all."""

from __future__ import annotations

import contextlib
import os
import pathlib
import random
import signal
import subprocess
import time
from typing import Any

import catalogue
import harness
import pytest
from test_robustness import SEED, differences, picture


def save_and_restart(program: catalogue.Program, bench: harness.Bench) -> None:
    job = bench.run(program.command(bench.go), "run")
    job.ready()
    for _ in range(10):
        saved = bench.checkpoint(job)
    bench.kill()
    again = bench.restart(f"{job.name}@{saved['number']}", detach=True)
    saved = bench.checkpoint(again)
    bench.kill()
    bench.restart(f"{job.name}@{saved['number']}").verified()
    bench.gone("after the restarted job has ended")


@pytest.mark.parametrize("program", catalogue.parameters(catalogue.SERVED[:1]))
def test_every_checkpoint_of_a_busy_server_succeeds(program: catalogue.Program, user_bench: harness.Bench) -> None:
    save_and_restart(program, user_bench)


@pytest.mark.parametrize("program", catalogue.parameters(catalogue.SERVED[1:]))
def test_the_same_as_root(program: catalogue.Program, root_bench: harness.Bench) -> None:
    save_and_restart(program, root_bench)


MODES = [f"{kind}{more}" for kind in ("path", "abstract", "packet", "tcp4", "tcp6") for more in ("", "-apart", "-full")]
REST = [catalogue.Program("backlog_data.c", m) for m in MODES if m not in [one.mode for one in catalogue.BACKLOG]]


@pytest.mark.diagonal
@pytest.mark.parametrize("program", catalogue.parameters(catalogue.BACKLOG))
def test_data_that_nobody_has_accepted_comes_through(
    program: catalogue.Program, via: str, bench: harness.Bench
) -> None:
    bench.cycle(program.command(bench.go), via)


@pytest.mark.exam
@pytest.mark.parametrize("program", catalogue.parameters(REST))
def test_and_so_it_does_in_every_other_way(program: catalogue.Program, via: str, bench: harness.Bench) -> None:
    bench.cycle(program.command(bench.go), via)


def still(root: int) -> dict[str, Any]:
    """What a killed checkpoint could have spoiled; of descriptors the numbers only: a UNIX client's end is another
    socket afterwards."""
    found = picture(root)
    for one in found.values():
        one["descriptors"] = sorted(one["descriptors"])
    return found


def same_again(root: int, before: dict[str, Any], what: str) -> None:
    """A tracer's death takes effect a little later, and code of ours that was running comes to its end."""
    found: list[str] = []

    def look() -> bool:
        with contextlib.suppress(OSError, ValueError, IndexError, KeyError):
            found[:] = differences(before, still(root))
            return not found
        return False

    try:
        harness.until(look, "the program as it was")
    except harness.Failed:
        raise AssertionError(f"{what}: " + "\n".join(found)) from None


def kill_while_it_looks(mode: str, times: int, bench: harness.Bench) -> None:
    """Kill torpor when it has begun to look into a line; nothing may be lost, whatever was under way."""
    chance = random.Random(f"{SEED} {mode} {bench.account.label}")
    job = bench.run([harness.build("backlog_data.c"), bench.go, "0", mode, "any"], "pid")
    job.ready()
    assert job.popen is not None
    root = job.popen.pid
    bench.checkpoint(job)
    before = still(root)
    came = 0
    for turn in range(times):
        command = bench.popen(
            [*bench.account.torpor, "checkpoint", *job.which(), "--store", bench.store],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        moment = chance.uniform(0, 0.02)
        while command.poll() is None and b"torpor-turnover-" not in pathlib.Path("/proc/net/unix").read_bytes():
            pass
        time.sleep(moment)  # a random moment: the subject of this test
        came += command.poll() is None
        with contextlib.suppress(ProcessLookupError):
            os.kill(command.pid, signal.SIGKILL)
        command.wait()
        same_again(root, before, f"kill {turn} of {mode} after {moment:.4f} s (TORPOR_TEST_SEED={SEED})")
    assert came > times // 2
    bench.checkpoint(job)
    job.verified()
    bench.gone("after the job has ended")


@pytest.mark.parametrize("mode", ["abstract", "packet-apart", "tcp4-apart"])
def test_torpor_is_killed_while_it_looks(mode: str, user_bench: harness.Bench) -> None:
    kill_while_it_looks(mode, 6, user_bench)


@pytest.mark.exam
@pytest.mark.parametrize("mode", MODES)
def test_torpor_is_killed_while_it_looks_many_times(mode: str, bench: harness.Bench) -> None:
    kill_while_it_looks(mode, 60, bench)


@pytest.mark.parametrize("mode", ["tcp4-apart", pytest.param("abstract-apart", marks=pytest.mark.exam)])
def test_a_watched_job_as_well(mode: str, user_bench: harness.Bench) -> None:
    """Somebody else answers for the calls by which a line is turned over."""
    bench = user_bench
    job = bench.run([harness.build("backlog_data.c"), bench.go, "0", mode], flags=["--watch"])
    job.ready()
    saved = [bench.checkpoint(job) for _ in range(2)][-1]
    bench.kill()
    bench.restart(f"{job.name}@{saved['number']}").verified()
    bench.gone("after the restarted job has ended")


@pytest.mark.exam
@pytest.mark.parametrize("attempt", range(6))
def test_its_supervisor_is_killed_while_it_looks(attempt: int, bench: harness.Bench) -> None:
    chance = random.Random(f"{SEED} {attempt} {bench.account.label}")
    job = bench.run([harness.build("backlog_data.c"), bench.go, "0", "tcp4-apart", "any"], flags=["--watch"])
    job.ready()
    assert job.popen is not None
    command = bench.popen(
        [*bench.account.torpor, "checkpoint", job.name, "--store", bench.store],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    while command.poll() is None and b"torpor-turnover-" not in pathlib.Path("/proc/net/unix").read_bytes():
        pass
    time.sleep(chance.uniform(0, 0.02))  # a random moment: the subject of this test
    os.kill(job.popen.pid, signal.SIGKILL)
    command.wait()
    pathlib.Path(bench.go).touch()
    harness.until(lambda: "OK" in harness.text(job.out), "the program's own verdict")
