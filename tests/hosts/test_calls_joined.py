"""Calls that wait for room at a listener on a host that has joined the job: they are made again at the restart."""

from __future__ import annotations

import os
import sys

import pytest
from bed import NEEDED, bed
from over import TORPOR, said, start, text, until

pytest.importorskip("nats")
pytestmark = [pytest.mark.exam, *NEEDED]
PROGRAM = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "programs", "far_calls.py")


def test_calls_that_wait_for_room() -> None:
    with bed(["h1", "h2"]) as made:
        h1, h2 = made.hosts.values()
        store, port, go, file = (f"{made.folder}/{name}" for name in ("store", "port", "go", "file.job"))
        outs = {name: f"{made.folder}/{name}.out" for name in ("server", "client")}

        def script(name: str) -> list[str]:
            words = f"exec {sys.executable} {PROGRAM} {name} {h2.address} {port} {go} > {outs[name]} 2>&1"
            return ["--", "sh", "-c", words]

        job = start(made, h1, "run", "--name", "far", "--store", store, "--job-file", file, *script("client"))
        joined = start(made, h2, "run", "--join", file, *script("server"))
        for output in outs.values():
            until(output, "READY", made)
        assert 0 < int(text(outs["client"]).split()[1]) < 6
        h1.run([TORPOR, "checkpoint", "far", "--stop"])
        assert job.wait(30) == joined.wait(30) == 75
        job = start(made, h1, "restart", "far", "--store", store, "--hosts", "h1,h2")
        open(go, "w").close()
        for output in outs.values():
            until(output, "\nOK", made)
        assert job.wait(60) == 0, said(made)
