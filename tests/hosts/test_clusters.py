"""Real programs over several hosts: saved in the middle, killed on every host, and brought back on other hosts with
other addresses, with the result of an undisturbed run."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time

import pytest
from bed import NEEDED, bed
from over import TORPOR, running, said, start, text, until

pytest.importorskip("nats")
pytestmark = [pytest.mark.exam, *NEEDED]
PROGRAMS = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "programs")
STAGE = os.environ.get("TORPOR_TEST_STAGE", f"/var/tmp/torpor-tests-{os.getuid()}")


def environment(name: str, *packages: str) -> str:
    """The folder with the programs of a virtual environment that is made once."""
    target = f"{STAGE}/venv-{name}"
    if not os.path.exists(f"{target}/made"):
        os.makedirs(STAGE, exist_ok=True)
        shutil.rmtree(target, ignore_errors=True)
        subprocess.run([sys.executable, "-m", "venv", target], check=True)
        done = subprocess.run([f"{target}/bin/pip", "install", "-q", *packages], capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"{' '.join(packages)} cannot be installed: {done.stderr.strip()[-200:]}")
        open(f"{target}/made", "w").close()
    return f"{target}/bin"


def test_dask_in_the_middle_of_a_computation() -> None:
    programs = environment("dask", "dask", "distributed")
    with bed(["h1", "h2", "h3", "h4", "h5", "h6"]) as made:
        hosts, folder = made.hosts, made.folder
        store, out, ran = (f"{folder}/{name}" for name in ("store", "out", "ran"))
        for host in hosts.values():
            host.run(["mkdir", "/tmp/work", "/scratch/work"])
        quiet = "--no-dashboard"
        worker = f"{programs}/dask worker tcp://h1:8786 --no-nanny --nthreads 1 {quiet} --local-directory /scratch/work"
        script = (
            "export TMPDIR=/tmp/work; "
            f"{programs}/dask scheduler --host h1 --port 8786 {quiet} > {folder}/scheduler.out 2>&1 & "
            + "".join(f"{TORPOR}-rsh {name} '{worker} > {folder}/{name}.out 2>&1' & " for name in ("h2", "h3"))
            + f"exec {programs}/python {PROGRAMS}/dask_work.py tcp://h1:8786 {folder} > {out} 2>&1"
        )
        job = start(made, hosts["h1"], "run", "--name", "dask", "--store", store, "--hosts", "h1,h2,h3", "--",
                    "sh", "-c", script)  # fmt: skip
        until(out, "SUBMITTED", made)
        deadline = time.monotonic() + 60
        while len(text(ran).splitlines()) < 20:
            assert time.monotonic() < deadline, said(made)
            time.sleep(0.05)
        before = set(text(ran).splitlines())  # these have finished before it is saved
        hosts["h2"].run([TORPOR, "checkpoint", "dask", "--files=save:/tmp/work,/scratch/work"])
        for name in ("h1", "h2", "h3"):
            hosts[name].crash()
        job.wait(30)
        at_crash = set(text(ran).splitlines())
        job = start(made, hosts["h4"], "restart", "dask", "--store", store, "--wait", "60s", "--hosts", "h4,h5,h6")
        assert job.wait(180) == 0, said(made) + text(out)
        squares = sum(number * number for number in range(120))
        assert text(out).splitlines() == ["SUBMITTED", f"TOTAL {squares}", "NEW 1275", "DONE"]
        after = set(text(ran).splitlines()) - at_crash
        numbers = [line.split()[0] for line in after]
        finished = {line.split()[0] for line in before}
        assert len(numbers) == len(set(numbers)) and not finished & set(numbers), "a task has run twice"
        assert {line.split()[1] for line in after} == {"h2", "h3"}, "the job knows its hosts as it did"


def test_spark_in_the_middle_of_a_shuffle() -> None:
    if not shutil.which("java"):
        pytest.skip("needs java")
    programs = environment("spark", "pyspark")
    home = f"{os.path.dirname(programs)}/lib/python3.{sys.version_info.minor}/site-packages/pyspark"
    with bed(["h1", "h2", "h3", "h4", "h5", "h6"]) as made:
        hosts, folder = made.hosts, made.folder
        store, out, ran = (f"{folder}/{name}" for name in ("store", "out", "ran"))
        for host in hosts.values():
            host.run(["mkdir", "/tmp/work", "/scratch/work", "/tmp/hsperfdata_root"])
        own = (
            f"export SPARK_HOME={home} PYSPARK_PYTHON={programs}/python TMPDIR=/tmp/work SPARK_DAEMON_MEMORY=256m "
            "SPARK_LOCAL_DIRS=/scratch/work SPARK_WORKER_DIR=/scratch/work "
            "SPARK_DAEMON_JAVA_OPTS=-Djava.io.tmpdir=/tmp/work; cd /scratch/work; "
        )
        run = f"{home}/bin/spark-class org.apache.spark.deploy"
        workers = "".join(
            f"{TORPOR}-rsh {name} '{own} exec {run}.worker.Worker --host {name} --cores 1 --memory 1g spark://h1:7077 "
            f"> {folder}/{name}.out 2>&1' & "
            for name in ("h2", "h3")
        )
        script = (
            f"{own} {run}.master.Master --host h1 --port 7077 > {folder}/master.out 2>&1 & {workers}"
            f"until grep -c 'Registering worker' {folder}/master.out | grep -q 2; do sleep 0.1; done; "
            f"exec {programs}/python {PROGRAMS}/spark_shuffle.py spark://h1:7077 {folder} "
            f"> {out} 2> {folder}/driver.out"
        )
        job = start(made, hosts["h1"], "run", "--name", "spark", "--store", store, "--hosts", "h1,h2,h3", "--",
                    "sh", "-c", script)  # fmt: skip
        until(out, "SUBMITTED", made, 120)
        deadline = time.monotonic() + 120
        while len(text(ran).splitlines()) < 12:
            assert time.monotonic() < deadline, said(made)
            time.sleep(0.05)
        before = {line.split()[0] for line in text(ran).splitlines()}
        saved = "/tmp/work,/scratch/work,/tmp/hsperfdata_root"
        hosts["h2"].run([TORPOR, "checkpoint", "spark", "--with-files", f"--files=save:{saved}"], timeout=120)
        for name in ("h1", "h2", "h3"):
            hosts[name].crash()
        job.wait(30)
        at_crash = set(text(ran).splitlines())
        job = start(made, hosts["h4"], "restart", "spark", "--store", store, "--wait", "60s", "--hosts", "h4,h5,h6")
        assert job.wait(200) == 0, said(made) + text(f"{folder}/driver.out")
        sums = [(digit, sum(n * n for n in range(240) if n % 10 == digit)) for digit in range(10)]
        assert text(out).splitlines() == ["SUBMITTED", f"SUMS {sums}", "NEW 500500", "DONE"]
        after = [line.split() for line in set(text(ran).splitlines()) - at_crash]
        numbers = [words[0] for words in after]
        assert len(numbers) == len(set(numbers)) and not before & set(numbers), "a task has run twice"
        assert {words[1] for words in after} == {"h2", "h3"}, "the job knows its hosts as it did"


def test_redis_and_its_clients() -> None:
    if not shutil.which("redis-server") or not shutil.which("redis-cli"):
        pytest.skip("needs redis")
    with bed(["h1", "h2", "h3", "h4", "h5", "h6"]) as made:
        hosts, folder = made.hosts, made.folder
        store, go = f"{folder}/store", f"{folder}/go"
        for host in hosts.values():
            host.run(["mkdir", "/scratch/work"])
        clients = "".join(
            f"{TORPOR}-rsh {name} 'exec {sys.executable} {PROGRAMS}/redis_far.py h1 {name} {go} > {folder}/{name}.out "
            f'2>&1\' & pids="$pids $!"; '
            for name in ("h2", "h3")
        )
        server = "redis-server --bind 0.0.0.0 --protected-mode no --appendonly yes --dir /scratch/work"
        script = (
            f"{server} > {folder}/server.out 2>&1 & {clients} wait $pids; "
            "redis-cli GET h2; redis-cli GET h3; redis-cli SHUTDOWN NOSAVE; wait"
        )
        words = ["run", "--name", "redis", "--store", store, "--hosts", "h1,h2,h3", "--", "sh", "-c"]
        job = start(made, hosts["h1"], *words, f"exec > {folder}/out; {script}")
        for name in ("h2", "h3"):
            until(f"{folder}/{name}.out", "READY", made)
        hosts["h3"].run([TORPOR, "checkpoint", "redis", "--files=save:/scratch/work"])
        hosts["h2"].run([TORPOR, "checkpoint", "redis", "--files=save:/scratch/work"])
        for name in ("h1", "h2", "h3"):
            hosts[name].crash()
        job.wait(30)
        job = start(made, hosts["h4"], "restart", "redis", "--store", store, "--wait", "60s", "--hosts", "h4,h5,h6")
        running(made, job, hosts["h6"], "redis")
        hosts["h5"].run([TORPOR, "checkpoint", "redis", "--files=save:/scratch/work"])
        open(go, "w").close()
        assert job.wait(60) == 0, said(made)
        answered = [text(f"{folder}/{name}.out").split()[-1] for name in ("h2", "h3")]
        assert text(f"{folder}/out").split() == answered and min(map(int, answered)) > 0


@pytest.mark.parametrize("kind", ["openmpi", "mpich"])
def test_mpi_inside_of_collectives(kind: str) -> None:
    if not shutil.which(f"mpicc.{kind}") or not shutil.which(f"mpirun.{kind}"):
        pytest.skip(f"needs {kind}")
    with bed(["h1", "h2", "h3", "h4", "h5", "h6", "h7", "h8"]) as made:
        hosts, folder = made.hosts, made.folder
        program, store = f"{folder}/heat", f"{folder}/store"
        subprocess.run([f"mpicc.{kind}", "-O1", "-o", program, f"{PROGRAMS}/mpi_heat.c", "-lm"], check=True)
        how = {
            "openmpi": f"--mca plm_rsh_agent {TORPOR}-rsh --mca btl tcp,self --mca mpi_yield_when_idle 1 "
                       "--mca orte_tmpdir_base /tmp/work --allow-run-as-root --host h1:2,h2:2,h3:2,h4:2",
            "mpich": "-hosts h1,h2,h3,h4",
        }[kind]  # fmt: skip
        end = {"openmpi": "3000", "mpich": "3000 leave"}[kind]  # MPICH hangs in MPI_Finalize, see the program
        for host in hosts.values():
            host.run(["mkdir", "/tmp/work"])
        own = f"export TMPDIR=/tmp/work HYDRA_LAUNCHER=ssh HYDRA_LAUNCHER_EXEC={TORPOR}-rsh; "

        def run(out: str) -> subprocess.Popen[bytes]:
            script = f"{own}exec mpirun.{kind} {how} -n 8 {program} {end} > {out} 2>> {folder}/mpirun.err"
            return start(made, hosts["h1"], "run", "--name", "heat", "--store", store, "--hosts", "h1,h2,h3,h4", "--",
                         "sh", "-c", script)  # fmt: skip

        undisturbed, out = f"{folder}/undisturbed", f"{folder}/out"
        assert run(undisturbed).wait(200) == 0, said(made) + text(undisturbed)
        job = run(out)
        until(out, "step 500", made, 120)
        hosts["h3"].run([TORPOR, "checkpoint", "heat", "--files=save:/tmp/work"])
        until(out, "step 1000", made, 120)
        hosts["h1"].run([TORPOR, "checkpoint", "heat", "--stop", "--files=save:/tmp/work"])
        job.wait(30)
        job = start(made, hosts["h5"], "restart", "heat", "--store", store, "--wait", "60s", "--hosts", "h5,h6,h7,h8")
        assert job.wait(200) == 0, said(made) + text(out)
        assert text(out) == text(undisturbed)
