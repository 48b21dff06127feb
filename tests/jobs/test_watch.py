"""Jobs that are watched: the ledger has every address they asked for, and they do not notice.

The programs (tests/programs/watched.*) check the result of each call themselves, and print what they ask for.
"""

from __future__ import annotations

import json
import os
import re
import signal
from typing import Any

import harness
import pytest
from toolchain import go, needs


def command(kind: str, bench: harness.Bench) -> list[str]:
    if kind == "c":
        needs("gcc")
        return [harness.build("watched.c", "-static"), bench.go, "0"]
    if kind == "go":
        return [go("watched.go"), bench.go]
    return [bench.account.python, harness.script("watched.py"), bench.go]


def services(bench: harness.Bench, name: str) -> dict[str, Any]:
    """What `torpor inspect --services` says, by `kind address:port`."""
    said = bench.must("inspect", name, "--services", "--json", "--store", bench.store).json()
    out = {}
    for each in said["services"]:
        host = f"[{each['host']}]" if ":" in each["host"] else each["host"]
        assert each["first"] <= each["last"] and each["calls"] > 0
        assert said["since"] <= each["first"], each
        out[f"{each['protocol']} {host}:{each['port']}"] = each
    return out


def asked(job: harness.Running) -> set[str]:
    """What the program says that it has asked for."""
    return set(re.findall(r"^ASK (.*)$", job.output(), re.MULTILINE))


def start(bench: harness.Bench, words: list[str], how: str = "") -> harness.Running:
    bench.policy()  # the programs ask for addresses that they are not connected to later
    job = bench.run(words, flags=[f"--watch={how}" if how else "--watch"])
    job.ready()
    return job


def again(bench: harness.Bench, job: harness.Running, more: int = 5, where: str = "") -> str:
    """Wait until the address that the program goes on asking for was asked for some more times; that address."""
    where = where or f"tcp 127.0.0.1:{job.wait_for(r'^AGAIN .*$').split()[1]}"
    before = services(bench, job.name)[where]["calls"]
    harness.until(lambda: services(bench, job.name)[where]["calls"] >= before + more, "more calls")
    return where


def entry(bench: harness.Bench, name: str) -> dict[str, Any]:
    """The job as it stands in the registry."""
    (folder,) = [
        os.path.join(top, name)
        for top in (bench.env.get("TORPOR_RUNTIME", ""), f"/tmp/torpor-{bench.account.uid}")
        if os.path.isdir(os.path.join(top, name))
    ]
    found: dict[str, Any] = json.loads(harness.text(os.path.join(folder, "info.json")))
    return found


@pytest.mark.parametrize("kind", ["c", pytest.param("go", marks=pytest.mark.exam), "python"])
def test_the_ledger_is_complete_and_goes_along(bench: harness.Bench, kind: str) -> None:
    """Started, saved, killed, restarted, saved, killed, restarted: everything asked for is there, with who did."""
    words = command(kind, bench)
    job = start(bench, words)
    said = services(bench, job.name)
    assert asked(job) and asked(job) <= set(said), (asked(job), set(said))
    root = int(job.wait_for(r"^READY pid \d+$").split()[2])
    program = os.path.realpath(words[0])
    assert {each["pid"] for each in said.values()} == {root}
    assert {os.path.realpath(each["program"]) for each in said.values()} == {program}
    where = again(bench, job)
    first = f"{job.name}@{bench.checkpoint(job)['number']}"
    kept = services(bench, job.name)[where]["calls"]
    again(bench, job)
    bench.kill()
    saved = services(bench, first)[where]["calls"]
    assert saved <= kept
    kept = saved
    for _ in range(2):
        job = bench.restart(first, detach=True)
        again(bench, job, where=where)
        assert services(bench, job.name)[where]["calls"] > kept
        now = services(bench, job.name)
        assert set(said) <= set(now)
        assert all(now[one]["first"] == said[one]["first"] for one in said)
        first = f"{job.name}@{bench.checkpoint(job)['number']}"
        kept = services(bench, first)[where]["calls"]
        bench.kill()
    last = bench.restart(first)
    last.verified()
    bench.gone("after the watched job has ended")


def test_a_program_goes_on_unharmed_and_its_ledger_ends_with_it(bench: harness.Bench) -> None:
    job = start(bench, command("c", bench))
    for _ in range(3):
        bench.checkpoint(job)
    job.verified()
    bench.gone("after the watched job has ended")


def test_a_killed_holder_is_replaced(bench: harness.Bench) -> None:
    """Whatever it was doing at that moment: no call fails, and the ledger goes on."""
    job = start(bench, command("c", bench))
    before = services(bench, job.name)
    for _ in range(5):
        holder = entry(bench, job.name)["holder"][0]
        os.kill(holder, signal.SIGKILL)
        harness.until(lambda gone=holder: entry(bench, job.name)["holder"][0] != gone, "another holder")
        again(bench, job, 1)
    now = services(bench, job.name)
    assert set(before) <= set(now) and all(now[one]["first"] == before[one]["first"] for one in before)
    saved = bench.checkpoint(job)
    bench.kill()
    last = bench.restart(f"{job.name}@{saved['number']}")
    last.verified()
    bench.gone("after the watched job has ended")


def test_calls_go_on_without_the_supervisor(bench: harness.Bench) -> None:
    """It is killed: the holder goes on, and the job can be saved with its ledger."""
    job = start(bench, command("c", bench))
    supervisor = entry(bench, job.name)["supervisor"][0]
    os.kill(supervisor, signal.SIGKILL)
    assert job.popen is not None
    job.popen.wait(30)
    where = again(bench, job)
    saved = bench.checkpoint(job)
    again(bench, job)
    bench.kill()
    name = f"{job.name}@{saved['number']}"
    assert where in services(bench, name)
    last = bench.restart(name)
    last.verified()
    bench.gone("after the watched job has ended")


@pytest.mark.exam
def test_restarted_in_place(bench: harness.Bench, one_walk: None) -> None:
    job = start(bench, command("c", bench))
    said, where = services(bench, job.name), again(bench, job)
    saved = bench.checkpoint(job)
    bench.kill()
    last = bench.restart(f"{job.name}@{saved['number']}", "--in-place", "--pid-budget", "100", detach=True)
    again(bench, last, where=where)
    assert set(said) <= set(services(bench, job.name))
    last.verified()
    bench.gone("after the watched job has ended")


def test_addresses_that_only_sendmsg_names(user_bench: harness.Bench) -> None:
    words = [*command("c", user_bench), "sendmsg"]
    job = start(user_bench, words, "sendmsg")
    said = services(user_bench, job.name)
    assert asked(job) <= set(said)
    assert {f"udp 127.0.0.1:{port}" for port in (7001, 7002, 7003)} <= set(said)
    job.verified()
    user_bench.untell()
    job = start(user_bench, words)
    assert "udp 127.0.0.1:7001" not in services(user_bench, job.name)
    job.verified()


def test_what_cannot_be_read_is_counted(user_bench: harness.Bench) -> None:
    """A program that nobody may look into asks all the same; the ledger says that it does not know for what."""
    job = start(user_bench, [*command("c", user_bench), "hidden"])
    said = services(user_bench, job.name)
    assert list(said) == ["? :0"] and said["? :0"]["calls"] > 200, said
    job.verified()


def test_a_job_below_a_listener_runs_unwatched(bench: harness.Bench) -> None:
    """There can be one listener only; the program runs all the same, and torpor says so."""
    inner = [*bench.account.torpor, "run", "--watch", "--name", bench.new_name(), "--"]
    job = bench.run([*inner, *command("c", bench)], flags=["--watch"])
    job.ready()
    assert "runs unwatched: somebody above us listens already" in harness.text(job.out + ".err")
    # It was torpor's own attempt here; of a sandbox in the job the ledger says the same.
    said = bench.must("inspect", job.name, "--services")
    assert said.out.count(" wanted to see system calls itself, and could not") == 1, said.out
    name = f"{job.name}@{bench.checkpoint(job)['number']}"
    listeners = bench.must("inspect", name, "--services", "--json", "--store", bench.store).json()["listeners"]
    assert [os.path.basename(one)[:6] for one in listeners] == ["python"]
    job.verified()
    bench.gone("after the job has ended")


def test_a_job_that_is_not_watched_has_no_ledger(user_bench: harness.Bench) -> None:
    job = user_bench.run(command("c", user_bench))
    job.ready()
    said = user_bench.torpor("inspect", job.name, "--services")
    assert said.status == 2 and "is not watched" in said.err
    user_bench.checkpoint(job)
    said = user_bench.torpor("inspect", f"{job.name}@1", "--services", "--store", user_bench.store)
    assert said.status == 2 and "is not watched" in said.err
    job.verified()
