"""Two thousand connections between two hosts, and datagrams that wait to be read, over two generations."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time

import pytest
from bed import NEEDED, Bed, Host, bed
from over import TORPOR, running, said, start, text, until

pytest.importorskip("nats")
pytestmark = [pytest.mark.exam, *NEEDED]
MANY = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "programs", "far_many.py")
COUNT = 2000
PAUSE = 60.0
"""Seconds that it may stand still at most, however busy the machine is."""


def checkpoint(made: Bed, host: Host, *more: str) -> str:
    """What the command has said, as soon as a restart is over."""
    deadline = time.monotonic() + 180
    while True:
        words = host.command([TORPOR, "checkpoint", "many", *more])
        done = subprocess.run(words, capture_output=True, text=True, timeout=200)
        if done.returncode == 0:
            return done.stdout
        early = "does not answer" in done.stderr
        assert early and time.monotonic() < deadline, (done, said(made))
        time.sleep(0.1)


def talking(host: Host) -> list[int]:
    """Pids there of the programs that have the connections; none before the job has come back."""
    found = [process["pid"] for job in json.loads(host.run([TORPOR, "jobs", "--json"])) for process in job["processes"]]
    lines = {pid: host.run(["sh", "-c", f"cat /proc/{pid}/cmdline || true"]) for pid in found}
    return [pid for pid, line in lines.items() if line.split("\0")[1:2] == [MANY]]


def test_two_thousand_connections() -> None:
    with bed(["h1", "h2", "h3", "h4"]) as made:
        h1, h2, h3, h4 = made.hosts.values()
        store, port = f"{made.folder}/store", f"{made.folder}/port"
        outs = {name: f"{made.folder}/{name}.out" for name in ("server", "client")}
        words = {name: f"exec {sys.executable} {MANY} {name} {h1.address} {port} {COUNT} > {outs[name]} 2>&1"
                 for name in outs}  # fmt: skip
        script = f"{TORPOR}-rsh h2 '{words['client']}' & {words['server']}"
        job = start(made, h1, "run", "--name", "many", "--store", store, "--hosts", "h1,h2", "--", "sh", "-c", script)
        for out in outs.values():
            until(out, "READY", made)
        for host in (h1, h2):
            told = checkpoint(made, host)
            print(told)
            assert float(told.split("paused ")[1].split(" s")[0]) < PAUSE, told
        h1.crash()
        h2.crash()
        job.wait(30)
        job = start(made, h3, "restart", "many", "--store", store, "--wait", "60s", "--hosts", "h3,h4")
        running(made, job, h4, "many")
        saved = checkpoint(made, h4, "--stop")
        number = saved.split("many@")[1].split(",")[0]
        job.wait(60)
        job = start(made, h4, "restart", f"many@{number}", "--store", store, "--hosts", "h4,h3")
        running(made, job, h3, "many")
        for host in (h3, h4):
            deadline = time.monotonic() + 180
            while not (talkers := talking(host)):
                assert time.monotonic() < deadline, (said(made), *map(text, outs.values()))
                time.sleep(0.2)
            host.run(["kill", "-USR1", str(talkers[0])])
        for out in outs.values():
            until(out, "OK", made)
            assert "WRONG" not in text(out)
        assert job.wait(60) == 0, said(made)
