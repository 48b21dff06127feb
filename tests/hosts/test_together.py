"""A job over hosts is saved, killed and brought back, here all on one machine and without any privilege; the
conversation goes on in both generations."""

from __future__ import annotations

import json
import os
import signal
import sys
import tempfile
import time

import pytest
from apart import FIRST, Apart

TALK = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "programs", "far_talk.py")


def await_file(path: str, word: str) -> None:
    deadline = time.monotonic() + 60
    while not os.path.exists(path) or word not in open(path).read():
        assert time.monotonic() < deadline, path
        time.sleep(0.02)


def talkers(job: Apart) -> list[int]:
    """The processes that talk: not the shells that have their command line."""
    found = []
    for name in job.names:
        for pid in job.processes(name):
            with open(f"/proc/{pid}/cmdline", "rb") as file:
                words = file.read().split(b"\0")
            if len(words) > 2 and words[1] == TALK.encode():
                found.append(pid)
    return found


def test_saved_and_brought_back_elsewhere() -> None:
    with tempfile.TemporaryDirectory(prefix="torpor-together-", dir="/var/tmp") as folder:
        job = Apart(folder, ["h1", "h2"])
        talk = f"exec {sys.executable} {TALK}"
        there = f"{talk} client 127.0.0.2 {folder}/port > {folder}/client.out 2>&1"
        here = f"{talk} server 127.0.0.2 {folder}/port > {folder}/server.out 2>&1"
        outputs = [f"{folder}/server.out", f"{folder}/client.out"]
        try:
            first = job.begin(["sh", "-c", f"{sys.executable} -m torpor rsh h2 '{there}' & {here}"])
            for output in outputs:
                await_file(output, "READY")
            said = job.torpor(FIRST, "checkpoint")
            assert "far@1" in said and "2 hosts: h1, h2" in said, said
            assert "far@2" in job.torpor("h2", "checkpoint")
            job.kill()
            assert first.wait(20) == -signal.SIGKILL
            first = job.restart("far", at=2)
            assert len(talkers(job)) == 2
            number = job.torpor("h2", "checkpoint", "--stop").partition("far@")[2].split()[0].rstrip(",")
            first.wait(30)
            assert "no job" in job.torpor(FIRST, "jobs") + job.torpor("h2", "jobs")
            first = job.restart(f"far@{number}", at=12)
            whole = json.loads(job.torpor(FIRST, "inspect", f"far@{number}", "--json", "--store", job.store))
            assert [each["part"]["name"] for each in whole["parts"]] == ["h1", "h2"]
            job.torpor(FIRST, "checkpoint")
            for pid in talkers(job):
                os.kill(pid, signal.SIGUSR1)
            for output in outputs:
                await_file(output, "OK")
            assert first.wait(30) == 0
            assert open(outputs[0]).read() == open(outputs[1]).read()
            assert "no job" in job.torpor(FIRST, "jobs") + job.torpor("h2", "jobs")
        finally:
            job.close()


@pytest.mark.exam
def test_calls_that_wait_for_room_are_made_again() -> None:
    with tempfile.TemporaryDirectory(prefix="torpor-together-", dir="/var/tmp") as folder:
        job = Apart(folder, ["h1", "h2"])
        words = f"exec {sys.executable} {os.path.dirname(TALK)}/far_calls.py"
        there = f"{words} client 127.0.0.2 {folder}/port {folder}/go > {folder}/client.out 2>&1"
        here = f"{words} server 127.0.0.2 {folder}/port {folder}/go > {folder}/server.out 2>&1"
        try:
            first = job.begin(["sh", "-c", f"{sys.executable} -m torpor rsh h2 '{there}' & {here}; wait"])
            for name in ("server", "client"):
                await_file(f"{folder}/{name}.out", "READY")
            assert 0 < int(open(f"{folder}/client.out").read().split()[1]) < 6
            job.torpor("h2", "checkpoint", "--stop")
            first.wait(30)
            first = job.restart("far", at=12)
            open(f"{folder}/go", "w").close()
            for name in ("server", "client"):
                await_file(f"{folder}/{name}.out", "\nOK" if name == "client" else "OK")
            assert first.wait(60) == 0
        finally:
            job.close()
