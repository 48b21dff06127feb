"""Seats of jobs over hosts that are apart: a host that dies gives its job's seat back, and whoever waits goes on."""

from __future__ import annotations

import pytest
from bed import NEEDED, bed
from over import TORPOR, running, said, start, text, until

pytest.importorskip("nats")
pytestmark = [*NEEDED, pytest.mark.exam]
POLICY = """[[service]]
program = "*"
action = "seat"
seat = "sim"
[seats.sim]
provider = "pool"
pool = "sims"
store = "{}"
"""


def test_the_seat_of_a_host_that_died() -> None:
    """One seat, two saved jobs: the second is told who has it, and waits; nothing of it is on any host meanwhile. Once
    the first one's host has died the seat comes free by itself."""
    with bed(["h1", "h2", "h3"]) as made:
        h1, h2, h3 = made.hosts.values()
        store, policy = f"{made.folder}/store", f"{made.folder}/policy.toml"
        with open(policy, "w") as file:
            file.write(POLICY.format(store))
        h1.run([TORPOR, "seats", "create", "sims", "--count", "1", "--ttl", "3s", "--store", store])
        for name in ("one", "two"):
            out = f"{made.folder}/{name}.out"
            there = f"{TORPOR}-rsh h2 'echo READY > {out}; exec sleep 1000'"
            words = ["run", "--name", name, "--store", store, "--hosts", "h1,h2", "--policy", policy, "--"]
            job = start(made, h1, *words, "sh", "-c", there)
            until(out, "READY", made)
            h2.run([TORPOR, "checkpoint", name, "--stop"])
            assert job.wait(60) == 75, said(made)
        first = start(made, h1, "restart", "one", "--store", store, "--hosts", "h1,h2")
        running(made, first, h2, "one")
        second = start(made, h3, "restart", "two", "--store", store, "--hosts", "h3,h2", "--wait", "120s")
        until(f"{made.folder}/err", "waiting for a seat sim", made)
        assert "all 1 seats of sims are taken: one on h1" in text(f"{made.folder}/err"), said(made)
        assert h3.run([TORPOR, "jobs"]) == "no job is running\n" and "two" not in h2.run([TORPOR, "jobs"])
        h1.crash()
        first.wait(30)
        running(made, second, h2, "two")
        h3.run([TORPOR, "stop", "two"])
        second.wait(60)
