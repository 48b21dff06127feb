"""`torpor restart --hosts`: a conversation between two hosts is brought back on others, and twice over."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys

import pytest
from bed import NEEDED, Bed, Host, bed
from over import TORPOR, keys, running, start, until

pytest.importorskip("nats")
pytestmark = NEEDED
TALK = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "programs", "far_talk.py")


def talkers(host: Host) -> list[int]:
    """Host pids, as that host counts, of the processes that talk."""
    found = []
    for job in json.loads(host.run([TORPOR, "jobs", "--json"])):
        for process in job["processes"]:
            words = host.run(["cat", f"/proc/{process['pid']}/cmdline"]).split("\0")
            if len(words) > 2 and words[1] == TALK:
                found.append(process["pid"])
    return found


def test_on_other_hosts_and_on_one() -> None:
    with bed(["h1", "h2", "h3", "h4"]) as made:
        h1, h2, h3, h4 = made.hosts.values()
        store, port = f"{made.folder}/store", f"{made.folder}/port"
        outputs = [f"{made.folder}/{name}.out" for name in ("server", "client")]
        server = f"exec {sys.executable} {TALK} server 0.0.0.0 {port} > {outputs[0]} 2>&1"
        client = f"exec {sys.executable} {TALK} client h1 {port} > {outputs[1]} 2>&1"
        script = f"{TORPOR}-rsh h2 '{client}' & {server}"
        job = start(made, h1, "run", "--name", "far", "--store", store, "--hosts", "h1,h2", "--", "sh", "-c", script)
        for output in outputs:
            until(output, "READY", made)
        assert h2.run([TORPOR, "checkpoint", "far"]).startswith("saved far@1,")
        h1.crash()
        h2.crash()
        job.wait(30)
        # Other hosts, other addresses.
        # The dead host's lease has to end first.
        job = start(made, h3, "restart", "far", "--store", store, "--hosts", "h3,h4", "--wait", "60s")
        running(made, job, h4, "far")
        saved = h4.run([TORPOR, "checkpoint", "far", "--stop"])
        job.wait(30)
        number = saved.split("far@")[1].split(",")[0]
        # Both on one host.
        job = start(made, h4, "restart", f"far@{number}", "--store", store, "--hosts", "h4")
        running(made, job, h4, "far.h2")
        # The other part goes on by itself, and so has a log, of its own name.
        h4.run([TORPOR, "logs", "far.h2"])
        h4.run([TORPOR, "checkpoint", "far"])
        pids = talkers(h4)
        assert len(pids) == 2
        for pid in pids:
            h4.run(["kill", f"-{signal.SIGUSR1.value}", str(pid)])
        for output in outputs:
            until(output, "OK", made)
        assert job.wait(30) == 0
        assert open(outputs[0]).read() == open(outputs[1]).read()
        assert h4.run([TORPOR, "jobs"]) == "no job is running\n"


def refused(made: Bed, hosts: str, store: str) -> subprocess.CompletedProcess[str]:
    words = [TORPOR, "restart", "far", "--store", store, "--hosts", hosts]
    return subprocess.run(made.hosts["h1"].command(words, keys(made)), capture_output=True, text=True, timeout=60)


def test_what_cannot_be_is_said() -> None:
    with bed(["h1", "h2"]) as made:
        h1 = made.hosts["h1"]
        store = f"{made.folder}/store"
        job = start(made, h1, "run", "--name", "far", "--store", store, "--hosts", "h1,h2", "--", "sleep", "1000")
        running(made, job, h1, "far")
        h1.run([TORPOR, "checkpoint", "far", "--stop"])
        job.wait(30)
        wrong = {"h1,nowhere": "nowhere", "h1,h2,h2x": "3 hosts", "h9=h1": "h9"}
        for hosts, word in wrong.items():
            done = refused(made, hosts, store)
            assert done.returncode == 2 and word in done.stderr and done.stderr.count("\n") == 1, done
        made.hosts["h2"].run(["sh", "-c", "mount --bind /dev/null /run/home/.ssh/authorized_keys"])
        done = refused(made, "h1,h2", store)
        assert done.returncode == 1 and done.stderr.startswith("torpor: h2: ") and done.stderr.count("\n") == 1, done
        assert h1.run([TORPOR, "jobs"]) == "no job is running\n"
