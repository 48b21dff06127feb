"""What waits between hosts to be accepted, through the commands a user gives."""

from __future__ import annotations

import contextlib
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence

import pytest
from bed import NEEDED, Bed, Host, bed
from over import TORPOR, running, said, start, text, until

pytest.importorskip("nats")
pytestmark = [pytest.mark.exam, *NEEDED]
PROGRAM = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "programs", "far_backlog.py")


def checkpoint(host: Host, passing: Sequence[str] = ("under way",)) -> str:
    """Sooner or later. passing: what may be in the way."""
    deadline = time.monotonic() + 30
    while True:
        done = subprocess.run(host.command([TORPOR, "checkpoint", "far"]), capture_output=True, text=True, timeout=60)
        if not done.returncode:
            return done.stdout
        assert any(word in done.stderr for word in passing) and time.monotonic() < deadline, done
        time.sleep(0.2)


@contextlib.contextmanager
def waiting(made: Bed) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """A job on h1 and h2 in which all waits: its command, and the file that lets it go on."""
    port, go = (f"{made.folder}/{name}" for name in ("port", "go"))
    outs = [f"{made.folder}/{name}.out" for name in ("server", "client")]
    server, client = (
        f"exec {sys.executable} {PROGRAM} {name} {made.hosts['h1'].address} {port} {go} > {out} 2>&1"
        for name, out in zip(("server", "client"), outs)
    )
    script = f"{TORPOR}-rsh h2 '{client}' & {server}"
    words = ["run", "--name", "far", "--store", f"{made.folder}/store", "--hosts", "h1,h2", "--", "sh", "-c", script]
    job = start(made, made.hosts["h1"], *words)
    for output in outs:
        until(output, "READY", made)
    yield job, go
    for output in outs:
        until(output, "OK", made)


def test_it_comes_back_on_the_same_hosts_and_on_others() -> None:
    with bed(["h1", "h2", "h3", "h4"]) as made, waiting(made) as (job, go):
        h1, h2, h3, h4 = made.hosts.values()
        assert h2.run([TORPOR, "checkpoint", "far"]).startswith("saved far@1,")
        h1.run([TORPOR, "checkpoint", "far", "--stop"])
        job.wait(30)
        back = ["restart", "--store", f"{made.folder}/store", "--wait", "60s"]
        job = start(made, h1, *back, "far", "--hosts", "h1,h2")
        running(made, job, h2, "far")
        saved = checkpoint(h1)
        h1.crash()
        h2.crash()
        job.wait(30)
        job = start(made, h4, *back, f"far@{saved.split('far@')[1].split(',')[0]}", "--hosts", "h4,h3")
        running(made, job, h3, "far")
        open(go, "w").close()
        assert job.wait(60) == 0, said(made)


def test_the_network_breaks_for_a_moment_while_they_look() -> None:
    """For less than the time after which a connection is given up: nothing is lost."""
    chance = random.Random(os.environ.get("TORPOR_TEST_SEED", "1"))
    with bed(["h1", "h2"]) as made, waiting(made) as (job, go):
        h1 = made.hosts["h1"]
        for _ in range(6):
            asker = h1.popen([TORPOR, "checkpoint", "far"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            while asker.poll() is None and "torpor-turnover-" not in text(f"/proc/{h1.pid}/net/unix"):
                pass
            time.sleep(chance.uniform(0, 0.1))  # a moment of it: the subject of this test
            made.cut("h2")
            time.sleep(2)
            made.cut("h2", False)
            asker.wait(120)
        checkpoint(h1, ("under way", "lost", "not a word"))
        open(go, "w").close()
        assert job.wait(60) == 0, said(made)
