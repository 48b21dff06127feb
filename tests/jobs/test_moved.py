"""Jobs restarted where their peers have other addresses: new calls to the old ones arrive at the new ones."""

from __future__ import annotations

import os
import re
import shutil

import harness
import pytest


def serve(bench: harness.Bench, host: str, name: str, port: int = 0, *prefix: str) -> int:
    """A server that says `name`; its port."""
    out = bench.output_file()
    with open(out, "ab") as file:
        words = [*prefix, bench.account.python, harness.script("where.py"), host, str(port), name]
        bench.popen(words, stdout=file)
    harness.until(lambda: "PORT" in harness.text(out), f"the server at {host}")
    return int(harness.text(out).split()[1])


def found(job: harness.Running) -> list[str]:
    return re.findall(r"^FOUND (.*)$", job.output(), re.MULTILINE)


def test_new_calls_to_old_addresses(bench: harness.Bench) -> None:
    """The old server is still there, and says so if it is asked by mistake."""
    old = serve(bench, "127.7.0.2", "old")
    new = serve(bench, "127.8.0.2", "new")
    script = harness.script("moved.py")
    job = bench.run([bench.account.python, script, bench.go, "127.7.0.2", str(old), "127.7.0.1"])
    job.ready()
    assert found(job) == ["old"]
    saved = bench.checkpoint(job)
    assert job.popen is not None
    bench.must("stop", job.name)
    moves = [f"--map-host=127.7.0.2:{old}=127.8.0.2:{new}", "--map-host=127.7.0.1=127.8.0.1"]
    first = bench.restart(f"{job.name}@{saved['number']}", *moves, detach=True)
    saved = bench.checkpoint(first)
    bench.must("stop", first.name)
    # It has moved once more since: from where it was at that checkpoint.
    newer = serve(bench, "127.9.0.2", "newer")
    last = bench.restart(f"{job.name}@{saved['number']}", f"--map-host=127.8.0.2:{new}=127.9.0.2:{newer}")
    last.verified()
    assert found(last)[-1] == "newer"
    # And where nothing more has moved, what was said before holds.
    bench.untell()
    again = bench.restart(f"{job.name}@{saved['number']}")
    again.verified()
    assert found(again)[-1] == "new"


def test_two_networks(root_bench: harness.Bench) -> None:
    """Hosts with other addresses, where the old ones lead nowhere."""
    bench = root_bench
    if not shutil.which("ip") or not shutil.which("nsenter"):
        pytest.skip("needs iproute2 and nsenter")
    hosts = []
    for network in ("10.97.0", "10.98.0"):
        out = bench.output_file()
        setup = f"ip link set lo up && ip addr add {network}.1/32 dev lo && ip addr add {network}.2/32 dev lo"
        with open(out, "ab") as file:
            place = bench.popen(
                ["unshare", "--net", "sh", "-c", f"{setup} && echo there && exec sleep 1000"], stdout=file
            )
        harness.until(lambda out=out: harness.text(out), "a network")
        hosts.append(["nsenter", f"--net=/proc/{place.pid}/ns/net", "--"])
    serve(bench, "10.97.0.2", "old", 5000, *hosts[0])
    serve(bench, "10.98.0.2", "new", 5000, *hosts[1])
    out = bench.output_file()
    words = [bench.account.python, harness.script("moved.py"), bench.go, "10.97.0.2", "5000", "10.97.0.1"]
    with open(out, "ab") as file:
        process = bench.popen(
            [*hosts[0], *bench.account.torpor, "run", "--name", "moved", "--store", bench.store, "--", *words],
            stdout=file, start_new_session=True,
        )  # fmt: skip
    job = harness.Running(bench, process, out, "moved", "run")
    job.ready()
    saved = bench.checkpoint(job)
    bench.must("stop", "moved")
    bench.tell()
    name = f"moved@{saved['number']}"
    moves = ["--map-host", "10.97.0.1=10.98.0.1", "--map-host", "10.97.0.2=10.98.0.2"]
    for options, status, says in (((), 1, "Network is unreachable"), (moves, 0, "FOUND new")):
        log = bench.output_file()
        with open(log, "ab") as file:
            again = bench.popen(
                [*hosts[1], *bench.account.torpor, "restart", name, "--store", bench.store, *options],
                stdout=file, stderr=file, start_new_session=True,
            )  # fmt: skip
        assert again.wait(harness.PATIENCE) == status, harness.text(log)
        assert says in harness.text(log)


def test_what_makes_no_sense_is_said(user_bench: harness.Bench) -> None:
    for words in (
        "10.0.0.1",
        "10.0.0.1=",
        "name=10.0.0.1",
        "10.0.0.1:80=10.0.0.2",
        "10.0.0.1=::1",
        "10.0.0.1:0x=1.1.1.1:1",
    ):
        said = user_bench.torpor("restart", "nothing", "--map-host", words)
        assert said.status == 2 and f"--map-host {words}" in said.err, said
    assert not os.path.exists(user_bench.store)
