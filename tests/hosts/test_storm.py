"""Fifty connections between two hosts that never rest, through many checkpoints and restarts on swapped hosts."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from bed import NEEDED, bed
from over import TORPOR, keys, running, said, start, text, until

pytest.importorskip("nats")
pytestmark = [pytest.mark.exam, *NEEDED]
STORM = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "programs", "far_storm.py")
CHECKPOINTS, RESTARTS = 20, 5


def test_not_one_is_lost_doubled_or_reordered() -> None:
    with bed(["h1", "h2"]) as made:
        h1, h2 = made.hosts.values()
        store, port, go = (f"{made.folder}/{name}" for name in ("store", "port", "go"))
        outs = [f"{made.folder}/{name}.out" for name in ("server", "client")]
        server = f"exec {sys.executable} {STORM} server {port} {go} > {outs[0]} 2>&1"
        client = f"exec {sys.executable} {STORM} client h1 {port} {go} > {outs[1]} 2>&1"
        script = f"{TORPOR}-rsh h2 '{client}' & {server}"
        job = start(made, h1, "run", "--name", "storm", "--store", store, "--hosts", "h1,h2", "--", "sh", "-c", script)
        until(outs[1], "READY", made)
        here, there = h1, h2
        for life in range(RESTARTS + 1):
            for number in range(CHECKPOINTS // (RESTARTS + 1) + 1):
                host = (here, there)[number % 2]
                done = subprocess.run(host.command([TORPOR, "checkpoint", "storm"], keys(made)), capture_output=True,
                                      text=True, timeout=120)  # fmt: skip
                assert done.returncode == 0, (life, number, done)
                assert "WRONG" not in text(outs[0]) and "Error" not in text(outs[0]) + text(outs[1]), outs
            if life == RESTARTS:
                break
            here.run([TORPOR, "checkpoint", "storm", "--stop"], timeout=120)
            job.wait(60)
            here, there = there, here
            where = f"{here.name},{there.name}"
            job = start(made, here, "restart", "storm", "--store", store, "--wait", "60s", "--hosts", where)
            running(made, job, there, "storm")
        open(go, "w").close()
        assert job.wait(100) == 0, said(made) + text(outs[0]) + text(outs[1])
        until(outs[1], "OK", made)
        assert text(outs[0]).splitlines()[-1] == text(outs[1]).splitlines()[-1]
