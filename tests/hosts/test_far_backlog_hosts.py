"""What waits between hosts to be accepted, through the commands a user gives."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest
from bed import NEEDED, Host, bed
from over import TORPOR, running, start, text, until

pytest.importorskip("nats")
pytestmark = [pytest.mark.exam, *NEEDED]
PROGRAM = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "programs", "far_backlog.py")


def checkpoint(host: Host) -> str:
    """Of a job that may just be coming back."""
    deadline = time.monotonic() + 30
    while True:
        done = subprocess.run(host.command([TORPOR, "checkpoint", "far"]), capture_output=True, text=True, timeout=60)
        if not done.returncode:
            return done.stdout
        assert "under way" in done.stderr and time.monotonic() < deadline, done
        time.sleep(0.2)


def test_it_comes_back_on_the_same_hosts_and_on_others() -> None:
    with bed(["h1", "h2", "h3", "h4"]) as made:
        h1, h2, h3, h4 = made.hosts.values()
        store, port, go = (f"{made.folder}/{name}" for name in ("store", "port", "go"))
        outs = {name: f"{made.folder}/{name}.out" for name in ("server", "client")}
        server, client = (
            f"exec {sys.executable} {PROGRAM} {name} {h1.address} {port} {go} > {out} 2>&1"
            for name, out in outs.items()
        )
        script = f"{TORPOR}-rsh h2 '{client}' & {server}"
        job = start(made, h1, "run", "--name", "far", "--store", store, "--hosts", "h1,h2", "--", "sh", "-c", script)
        for output in outs.values():
            until(output, "READY", made)
        assert h2.run([TORPOR, "checkpoint", "far"]).startswith("saved far@1,")
        h1.run([TORPOR, "checkpoint", "far", "--stop"])
        job.wait(30)
        job = start(made, h1, "restart", "far", "--store", store, "--hosts", "h1,h2", "--wait", "60s")
        running(made, job, h2, "far")
        saved = checkpoint(h1)
        h1.crash()
        h2.crash()
        job.wait(30)
        number = saved.split("far@")[1].split(",")[0]
        job = start(made, h4, "restart", f"far@{number}", "--store", store, "--hosts", "h4,h3", "--wait", "60s")
        running(made, job, h3, "far")
        open(go, "w").close()
        assert job.wait(60) == 0, [text(output) for output in outs.values()]
        for output in outs.values():
            until(output, "OK", made)
