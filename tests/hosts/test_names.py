"""What a job over hosts believes of names, addresses and ports stays true when its hosts are others, or fewer."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest
from bed import NEEDED, Bed, Host, bed
from over import TORPOR, running, said, start, text, until

pytest.importorskip("nats")
pytestmark = NEEDED
NAMES = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "programs", "far_names.py")
WHO = {"h1": "10.77.0.1", "h2": "10.77.0.2"}


class Asked:
    """The two programs, and what they have said."""

    def __init__(self, made: Bed) -> None:
        self.made, self.number = made, 0
        self.outs = {name: f"{made.folder}/{name}.out" for name in WHO}

    def command(self, name: str) -> str:
        hosts = " ".join(f"{host}={address}" for host, address in WHO.items())
        return f"exec {sys.executable} {NAMES} {name} {self.made.folder}/go {self.outs[name]} 7077 {hosts}"

    def ask(self) -> None:
        """Twice; the second time the listeners are new ones. All is as if nobody had moved."""
        for _ in range(2):
            self.number += 1
            open(f"{self.made.folder}/go.{self.number}", "w").close()
            for name, out in self.outs.items():
                answers = " ".join(f"{host}={address} {' '.join([host] * 4)}" for host, address in WHO.items())
                wanted = f"{name} {answers} localhost {name} {name}"
                deadline = time.monotonic() + 60
                while len(lines := self._lines(out)) < self.number:
                    assert time.monotonic() < deadline, text(out) + said(self.made)
                    time.sleep(0.02)
                assert lines == [wanted] * self.number, text(out) + said(self.made)

    def _lines(self, out: str) -> list[str]:
        return [line for line in text(out).splitlines() if line not in ("READY", "AGAIN")]


def saved(host: Host, job: subprocess.Popen[bytes]) -> str:
    number = host.run([TORPOR, "checkpoint", "far", "--stop"], timeout=120).split("far@")[1].split(",")[0]
    job.wait(60)
    return f"far@{number}"


def test_on_one_host_and_on_two_others() -> None:
    with bed(["h1", "h2", "h3", "h4"]) as made:
        h1, h2, h3, h4 = made.hosts.values()
        for host in (h3, h4):  # which know of none but themselves
            host.run(["sh", "-c", f"echo '127.0.0.1 localhost\n{host.address} {host.name}' > /etc/hosts"])
        asked, store = Asked(made), f"{made.folder}/store"
        script = f"{TORPOR}-rsh h2 '{asked.command('h2')}' & {asked.command('h1')}"
        job = start(made, h1, "run", "--name", "far", "--store", store, "--hosts", "h1,h2", "--", "sh", "-c", script)
        for out in asked.outs.values():
            until(out, "READY", made)
        asked.ask()
        checkpoint = saved(h1, job)
        h1.crash()
        h2.crash()
        # Both listen on one port, and are on one host now.
        job = start(made, h3, "restart", checkpoint, "--store", store, "--hosts", h3.address)
        running(made, job, h3, "far.h2")
        asked.ask()
        assert h3.run(["hostname"]) == "h3\n" and "h1" not in h3.run(["cat", "/etc/hosts"])
        checkpoint = saved(h3, job)
        # On two again, the first part somewhere else.
        job = start(made, h4, "restart", checkpoint, "--store", store, "--hosts", f"{h4.address},{h3.address}")
        running(made, job, h3, "far")
        asked.ask()
        open(f"{made.folder}/go.end", "w").close()
        assert job.wait(60) == 0, said(made)


@pytest.mark.exam
def test_hosts_that_change_places() -> None:
    with bed(["h1", "h2"]) as made:
        h1, h2 = made.hosts.values()
        asked, store = Asked(made), f"{made.folder}/store"
        script = f"{TORPOR}-rsh h2 '{asked.command('h2')}' & {asked.command('h1')}"
        job = start(made, h1, "run", "--name", "far", "--store", store, "--hosts", "h1,h2", "--", "sh", "-c", script)
        for out in asked.outs.values():
            until(out, "READY", made)
        here, there = h1, h2
        for _ in range(3):
            checkpoint = saved(there, job)
            here, there = there, here
            job = start(made, here, "restart", checkpoint, "--store", store, "--hosts", f"{here.name},{there.name}")
            running(made, job, there, "far")
            asked.ask()
        open(f"{made.folder}/go.end", "w").close()
        assert job.wait(60) == 0, said(made)
