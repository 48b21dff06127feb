"""`torpor run --hosts` over hosts that are apart, started by ssh."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time

import pytest
from bed import NEEDED, Host, bed
from over import keys

pytest.importorskip("nats")
pytestmark = NEEDED
TORPOR = os.path.join(os.path.dirname(sys.executable), "torpor")
SOURCE = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "programs", "mpi_sum.c")
COUNT = "n=0; while ! [ -e {go} ]; do n=$((n+1)); echo $n; sleep 0.02; done; hostname"


def torpor(host: Host, *words: str) -> str:
    return host.run([TORPOR, *words])


def test_saved_from_two_hosts_and_goes_on() -> None:
    with bed(["h1", "h2", "h3"]) as made:
        one, two, three = made.hosts.values()
        go, out, store = (f"{made.folder}/{name}" for name in ("go", "out", "store"))
        count = COUNT.format(go=go)
        script = "; ".join(f"{TORPOR}-rsh {host} '{count}' > {out}.{host} &" for host in ("h2", "h3")).replace(
            "&;", "&"
        )
        with open(f"{out}.err", "wb") as err:
            job = one.popen([TORPOR, "run", "--name", "far", "--store", store, "--hosts", "h1,h2,h3", "--",
                             "sh", "-c", f"{script} wait; exit 6"], stderr=err)  # fmt: skip
        for host in ("h2", "h3"):
            _until(lambda host=host: "5\n" in _text(f"{out}.{host}"), f"{out}.err")  # type: ignore[misc]
        assert torpor(one, "checkpoint", "far").startswith("saved far@1,")
        assert torpor(two, "checkpoint", "far").startswith("saved far@2,")
        assert "far" in torpor(three, "jobs")
        open(go, "w").close()
        assert job.wait(60) == 6, _text(f"{out}.err")
        for host in ("h2", "h3"):
            *numbers, name = _text(f"{out}.{host}").split()
            assert numbers == [str(n + 1) for n in range(len(numbers))] and name == host
        for each in made.hosts.values():
            assert torpor(each, "jobs") == "no job is running\n"


@pytest.mark.exam
def test_ranks_are_saved_in_the_middle_and_come_to_the_same_result() -> None:
    """Saved twice, then ended and brought back. The program checks every sum and every token itself."""
    if not shutil.which("mpicc.openmpi") or not shutil.which("mpirun.openmpi"):
        pytest.skip("needs openmpi")
    with bed(["h1", "h2", "h3"]) as made:
        one, two, _ = made.hosts.values()
        program, store, out = (f"{made.folder}/{name}" for name in ("mpi_sum", "store", "out"))
        subprocess.run(["mpicc.openmpi", "-O1", "-o", program, SOURCE], check=True)
        ranks = ["mpirun.openmpi", "--mca", "plm_rsh_agent", f"{TORPOR}-rsh", "--mca", "btl", "tcp,self", "--mca",
                 "mpi_yield_when_idle", "1", "--host", "h1,h2,h3", "-n", "3", program, "8000"]  # fmt: skip
        root = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
        with open(out, "wb") as file:
            words = [TORPOR, "run", "--name", "far", "--store", store, "--hosts", "h1,h2,h3", "--", *ranks]
            job = one.popen(words, root, stdout=file, stderr=file)
        _until(lambda: "READY" in _text(out), out)
        assert torpor(two, "checkpoint", "far").startswith("saved far@1,")
        assert torpor(one, "checkpoint", "far").startswith("saved far@2,")
        assert torpor(two, "checkpoint", "far", "--stop").startswith("saved far@3,")
        assert job.wait(60) == 75
        assert _text(out) == "READY\ntorpor: saved as far@3 and stopped (torpor restart far@3 --hosts ...)\n"
        out += ".again"
        with open(out, "wb") as file:
            again = [TORPOR, "restart", "far", "--store", store, "--wait", "60s", "--hosts", "h1,h2,h3"]
            job = one.popen(again, root, stdout=file, stderr=file)
        assert job.wait(300) == 0, _text(out)
        assert _text(out) == "3 ranks on 3 hosts\nOK\n"


def test_a_host_that_does_not_answer() -> None:
    with bed(["h1", "h2"]) as made:
        one = made.hosts["h1"]
        made.hosts["h2"].run(["sh", "-c", "mount --bind /dev/null /run/home/.ssh/authorized_keys"])
        done = subprocess.run(one.command([TORPOR, "run", "--hosts", "h1,h2", "--", "true"]), capture_output=True,
                              text=True, timeout=60)  # fmt: skip
        assert done.returncode == 1 and done.stderr.startswith("torpor: h2: ") and "denied" in done.stderr, done
        assert done.stderr.count("\n") == 1
        assert torpor(one, "jobs") == "no job is running\n"


@pytest.mark.exam
def test_the_first_host_is_another_one() -> None:
    """The program runs there; streams, status and signals are the command's."""
    with bed(["h1", "h2", "h3"]) as made:
        three, store = made.hosts["h3"], f"{made.folder}/store"
        words = [TORPOR, "run", "--name", "far", "--store", store, "--hosts", "h1,h2", "--", "sh", "-c"]

        def run(script: str, **more: object) -> subprocess.Popen[bytes]:
            pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
            return three.popen([*words, script], {"TOLD": "a word", **keys(made)}, **{**pipes, **more})

        job = run(f"cat; hostname; echo $TOLD; pwd; {TORPOR}-rsh h2 hostname; echo err >&2; exit 7")
        out, err = job.communicate(b"one\ntwo\n", timeout=60)
        assert (job.returncode, out, err) == (7, b"one\ntwo\nh1\na word\n/scratch\nh2\n", b"err\n")
        job = run("trap 'echo caught; exit 9' TERM; echo READY; while :; do sleep 0.05; done")
        assert job.stdout is not None and job.stdout.readline() == b"READY\n"
        assert torpor(made.hosts["h2"], "checkpoint", "far").startswith("saved far@1,")
        assert torpor(three, "jobs") == "no job is running\n"
        for pid in three.run(["pidof", "-x", "torpor"]).split():
            three.run(["kill", pid])
        assert job.communicate(timeout=60) == (b"caught\n", b"") and job.returncode == 9
        job = run("kill -KILL $$")  # the shell is the job's first process
        job.communicate(timeout=60)
        assert job.returncode == 128 + 9
        again = three.popen([TORPOR, "restart", "far", "--store", store, "--hosts", "h2,h1"], keys(made),
                            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE)  # fmt: skip
        end = time.monotonic() + 60
        while "running  " not in torpor(made.hosts["h2"], "jobs"):
            assert time.monotonic() < end and again.poll() is None, again.communicate()
            time.sleep(0.1)
        torpor(made.hosts["h2"], "stop", "far")
        assert again.wait(60) == 9, again.communicate()
        for host in ("h1", "h2"):
            assert torpor(made.hosts[host], "jobs") == "no job is running\n"


@pytest.mark.exam
def test_the_first_host_is_cut_off() -> None:
    """With it one of the three servers, and whoever coordinates. The others are not left hanging: each is told which
    host is missing. Once the cable is in again the job is saved as before."""
    with bed(["h1", "h2", "h3"]) as made:
        one, two, three = made.hosts.values()
        go, store = f"{made.folder}/go", f"{made.folder}/store"
        words = ["run", "--name", "far", "--store", store, "--hosts", "h1,h2,h3", "--"]
        with open(f"{made.folder}/err", "wb") as err:
            job = one.popen([TORPOR, *words, "sh", "-c", COUNT.format(go=go)], stdout=subprocess.DEVNULL, stderr=err)
        _until(lambda: "far" in two.run([TORPOR, "jobs"]), f"{made.folder}/err")
        _until(lambda: _asked(three)[0] == 0, f"{made.folder}/err")
        made.cut("h1")
        for host in (two, three):
            status, said = _asked(host)
            assert status == 1 and "not saved: " in said and "h1" in said and said.count("\n") == 1, said
        made.cut("h1", False)
        _until(lambda: _asked(two)[0] == 0, f"{made.folder}/err")
        open(go, "w").close()
        assert job.wait(60) == 0, _text(f"{made.folder}/err")
        for host in (one, two, three):
            assert torpor(host, "jobs") == "no job is running\n"


def _asked(host: Host) -> tuple[int, str]:
    """A checkpoint was asked for on that host: the exit status, and what was said."""
    done = subprocess.run(host.command([TORPOR, "checkpoint", "far"]), capture_output=True, text=True, timeout=100)
    return done.returncode, done.stderr


def _text(path: str) -> str:
    try:
        with open(path) as file:
            return file.read()
    except FileNotFoundError:
        return ""


def _until(condition: object, err: str) -> None:
    end = time.monotonic() + 60
    assert callable(condition)
    while not condition():
        assert time.monotonic() < end, _text(err)
        time.sleep(0.02)
