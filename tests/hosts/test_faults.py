"""A host is cut off, at rest and in the middle of a checkpoint, and dies, or its disk is full: the job runs on, whoever
asked is told which host it was, the next checkpoint is whole, and the last one comes back on hosts that are left."""

from __future__ import annotations

import json
import subprocess
import threading
import time

import pytest
from bed import NEEDED, Bed, Host, bed
from over import TORPOR, keys, said, start, text, until

pytest.importorskip("nats")
pytestmark = [pytest.mark.exam, *NEEDED]
COUNT = "n=0; while ! [ -e {go} ]; do n=$((n+1)); echo $n; sleep 0.02; done"


def checkpoint(made: Bed, host: Host, *more: str) -> subprocess.CompletedProcess[str]:
    words = host.command([TORPOR, "checkpoint", "far", *more], keys(made))
    return subprocess.run(words, capture_output=True, text=True, timeout=120)


def refused(made: Bed, host: Host) -> None:
    """The checkpoint does not come about because of h2, and one line says so."""
    done = checkpoint(made, host)
    assert done.returncode == 1 and "not saved: h2: it was lost" in done.stderr, done
    assert done.stderr.count("\n") == 1, done


def goes_on(path: str) -> None:
    before, deadline = len(text(path)), time.monotonic() + 60
    while len(text(path)) == before:
        assert time.monotonic() < deadline, path
        time.sleep(0.05)


def saved(made: Bed, host: Host) -> None:
    """Sooner or later, now that all hosts reach each other."""
    deadline = time.monotonic() + 60
    while (done := checkpoint(made, host)).returncode:
        assert time.monotonic() < deadline, done
        time.sleep(0.5)


@pytest.mark.parametrize("moment", [0.05, 0.1, 0.15, 0.2, 0.3])
def test_a_host_is_cut_off_and_dies(moment: float) -> None:
    with bed(["h1", "h2", "h3"]) as made:
        h1, h2, h3 = made.hosts.values()
        go, one, two, store = (f"{made.folder}/{name}" for name in ("go", "one", "two", "store"))
        count = COUNT.format(go=go)
        script = f"{TORPOR}-rsh h2 '{count}' > {two} & {count} > {one}; wait"
        words = ["run", "--name", "far", "--store", store, "--hosts", "h1,h2", "--", "sh", "-c", script]
        job = start(made, h1, *words)
        until(two, "5\n", made)
        saved(made, h1)
        made.cut("h2")
        refused(made, h1)
        goes_on(one)
        made.cut("h2", False)
        saved(made, h2)
        cut = threading.Timer(moment, lambda: made.cut("h2"))
        cut.start()
        checkpoint(made, h1)  # before, or not at all
        cut.join()
        goes_on(one)
        made.cut("h2", False)
        goes_on(two)  # let go by itself, at the latest
        saved(made, h1)
        h2.crash()
        refused(made, h1)
        goes_on(one)
        subprocess.run(h1.command([TORPOR, "stop", "far"]), capture_output=True, timeout=60, check=True)
        job.wait(60)
        job = start(made, h3, "restart", "far", "--store", store, "--wait", "60s", "--hosts", "h3")
        goes_on(two)
        open(go, "w").close()
        assert job.wait(60) == 0, said(made)
        for path in (one, two):
            numbers = text(path).split()
            assert numbers == [str(n + 1) for n in range(len(numbers))]
        assert h3.run([TORPOR, "jobs"]) == "no job is running\n"


def test_a_disk_is_full() -> None:
    """That of the store, as one host sees it, and that for scratch files of a host where a part comes back."""
    with bed(["h1", "h2", "h3", "h4"]) as made:
        h1, h2, h3, h4 = made.hosts.values()
        go, one, two, store = (f"{made.folder}/{name}" for name in ("go", "one", "two", "store"))
        for host in (h1, h2):
            host.run(["mkdir", "/scratch/work"])
        count = COUNT.format(go=go)
        fill = "head -c 4000000 /dev/urandom > /scratch/work/data; sum=$(sha256sum < /scratch/work/data)"
        check = 'test "$sum" = "$(sha256sum < /scratch/work/data)" && echo WHOLE'
        script = f"{TORPOR}-rsh h2 '{fill}; {{ {count}; {check}; }} > {two}' & {count} > {one}; wait"
        words = ["run", "--name", "far", "--store", store, "--hosts", "h1,h2", "--", "sh", "-c", script]
        job = start(made, h1, *words)
        until(two, "5\n", made)
        assert checkpoint(made, h1, "--files=save:/scratch/work").returncode == 0, said(made)
        h2.run(["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", store])
        for _ in range(2):
            done = checkpoint(made, h1, "--files=save:/scratch/work")
            assert done.returncode == 1 and "h2: " in done.stderr and "No space left" in done.stderr, done
            goes_on(one)
            goes_on(two)
        assert h2.run(["find", store, "-type", "f", "-size", "+400k"]) == "", "what did not fit is still there"
        h2.run(["umount", store])
        found = json.loads(h1.run([TORPOR, "list", "--store", store, "--json"]))
        assert [each["number"] for each in found] == [1]
        assert checkpoint(made, h2, "--files=save:/scratch/work", "--stop").returncode == 0
        job.wait(60)
        h4.run(["mount", "-o", "remount,size=1m", "/scratch"])
        words = ["restart", "far", "--store", store, "--hosts", "h3,h4"]
        failed = subprocess.run(h3.command([TORPOR, *words], keys(made)), capture_output=True, text=True, timeout=120)
        assert failed.returncode == 1 and "h2: /scratch/work/data " in failed.stderr, failed
        assert "No space left" in failed.stderr, failed
        for host in (h3, h4):
            assert host.run([TORPOR, "jobs"]) == "no job is running\n"
            assert host.run(["ls", "-A", "/scratch"]) == ""
        h4.run(["mount", "-o", "remount,size=100m", "/scratch"])
        job = start(made, h3, *words)
        goes_on(two)
        open(go, "w").close()
        assert job.wait(60) == 0, said(made)
        *numbers, word = text(two).split()
        assert numbers == [str(n + 1) for n in range(len(numbers))] and word == "WHOLE"
