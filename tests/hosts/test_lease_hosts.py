"""A saved job runs once, on whatever host."""

from __future__ import annotations

import subprocess

import pytest
from bed import NEEDED, Host, bed
from over import TORPOR, start

pytestmark = [*NEEDED, pytest.mark.exam]


def tried(host: Host, *words: str) -> str:
    """What a command that has to fail says."""
    done = subprocess.run(host.command([TORPOR, *words]), capture_output=True, text=True, timeout=60)
    assert done.returncode == 1, done
    return done.stderr


def test_it_is_refused_elsewhere_until_its_host_is_dead() -> None:
    with bed(["h1", "h2"]) as made:
        h1, h2 = made.hosts.values()
        store, other = f"{made.folder}/store", f"{made.folder}/other"
        h1.run([TORPOR, "run", "--detach", "--name", "train", "--store", store, "--", "sleep", "1000"])
        h1.run([TORPOR, "checkpoint", "train"])
        h1.run([TORPOR, "copy", "train", other, "--store", store])
        for place in (store, other):
            said = tried(h2, "restart", "train", "--store", place, "--detach", "--untrusted")
            assert "the job is running already: train on h1 (root), seen" in said, said
        h2.run([TORPOR, "restart", "train", "--store", store, "--detach", "--untrusted", "--clone", "--name", "copy"])
        h2.run([TORPOR, "stop", "copy"])
        h1.crash()
        h2.run([TORPOR, "restart", "train", "--store", store, "--detach", "--untrusted", "--wait", "60s"])
        said = tried(h2, "restart", "train", "--store", other, "--detach", "--untrusted")
        assert "still running here" in said, said
        h2.run([TORPOR, "checkpoint", "train", "--stop"])
        # Given back: nobody has to wait.
        h2.run([TORPOR, "restart", "train@1", "--store", other, "--detach", "--untrusted"])
        h2.run([TORPOR, "stop", "train"])


def test_unattended_it_waits_for_the_dead_host() -> None:
    with bed(["h1", "h2"]) as made:
        h1, h2 = made.hosts.values()
        store = f"{made.folder}/store"
        words = ["run", "--name", "train", "--store", store, "--resume-or-start", "--untrusted"]
        job = start(made, h1, *words, "--", "sleep", "1000")
        said = ""
        while not said.startswith("saved"):
            done = subprocess.run(h1.command([TORPOR, "checkpoint", "train"]), capture_output=True, text=True)
            said = done.stdout
        h1.crash()
        job.wait(30)
        h2.run([TORPOR, words[0], "--detach", *words[1:], "--", "false"])
        h2.run([TORPOR, "stop", "train"])
