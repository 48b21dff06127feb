"""Codes of others over several hosts, as Debian has them: saved in the middle, killed on every host, and brought back
on others, with the result of an undisturbed run."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Sequence

import pytest
from bed import NEEDED, Bed, bed
from over import TORPOR, said, start, text, until

pytest.importorskip("nats")
pytestmark = [pytest.mark.exam, *NEEDED]
PROGRAMS = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "programs")
STAGE = os.environ.get("TORPOR_TEST_STAGE", f"/var/tmp/torpor-tests-{os.getuid()}")
MELT = """
units lj
atom_style atomic
lattice fcc 0.8442
region box block 0 8 0 8 0 8
create_box 1 box
create_atoms 1 box
mass 1 1.0
velocity all create 1.44 87287 loop geom
pair_style lj/cut 2.5
pair_coeff 1 1 1.0 1.0 2.5
neighbor 0.3 bin
neigh_modify delay 0 every 20 check no
fix 1 all nve
thermo 100
thermo_modify flush yes
run 2000
"""


def packages(name: str, *wanted: str) -> str:
    """The folder into which packages of Debian are unpacked, once; the system is left as it is."""
    target = f"{STAGE}/{name}"
    if not os.path.exists(f"{target}/made"):
        shutil.rmtree(target, ignore_errors=True)
        os.makedirs(f"{target}/root")
        done = subprocess.run(["apt-get", "download", *wanted], cwd=target, capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"{' '.join(wanted)} cannot be had: {done.stderr.strip()[-200:]}")
        for each in os.listdir(target):
            if each.endswith(".deb"):
                subprocess.run(["dpkg", "-x", f"{target}/{each}", f"{target}/root"], check=True)
        open(f"{target}/made", "w").close()
    return f"{target}/root/usr"


class Ranks:
    """Eight ranks on the first four of eight hosts."""

    def __init__(self, made: Bed, words: Sequence[str], env: str) -> None:
        self.made, self.hosts = made, list(made.hosts.values())
        self.store, self.words, self.env = f"{made.folder}/store", words, env
        for host in self.hosts:
            host.run(["mkdir", "/tmp/work"])

    def run(self, out: str) -> subprocess.Popen[bytes]:
        how = (
            f"mpirun.openmpi --mca plm_rsh_agent {TORPOR}-rsh --mca btl tcp,self --mca mpi_yield_when_idle 1 "
            "--mca orte_tmpdir_base /tmp/work --allow-run-as-root --host h1:2,h2:2,h3:2,h4:2 -n 8"
        )
        script = f"export TMPDIR=/tmp/work {self.env}; exec {how} {' '.join(self.words)} > {out} 2>> {out}.err"
        words = ["run", "--name", "ranks", "--store", self.store, "--hosts", "h1,h2,h3,h4", "--", "sh", "-c", script]
        return start(self.made, self.hosts[0], *words)

    def save(self, *more: str) -> None:
        self.hosts[2].run([TORPOR, "checkpoint", "ranks", "--files=save:/tmp/work", *more], timeout=200)

    def crash(self, job: subprocess.Popen[bytes]) -> None:
        for host in self.hosts[:4]:
            host.crash()
        job.wait(30)

    def restart(self) -> subprocess.Popen[bytes]:
        return start(
            self.made,
            self.hosts[4],
            "restart",
            "ranks",
            "--store",
            self.store,
            "--wait",
            "60s",
            "--hosts",
            "h5,h6,h7,h8",
        )


EIGHT = [f"h{n}" for n in range(1, 9)]


@pytest.mark.skipif(not shutil.which("mpirun.openmpi"), reason="needs openmpi")
def test_molecules() -> None:
    usr = packages("lammps", "lammps", "liblammps0", "libfftw3-double3", "libkim-api2", "libvoro++1")
    with bed(EIGHT, shared=[STAGE]) as made:
        script = f"{made.folder}/melt"
        with open(script, "w") as file:
            file.write(MELT)
        libraries = f"{usr}/lib/x86_64-linux-gnu"
        ranks = Ranks(made, [f"-x LD_LIBRARY_PATH {usr}/bin/lmp -in {script} -log none"],
                      f"LD_LIBRARY_PATH={libraries} OMP_NUM_THREADS=1")  # fmt: skip
        undisturbed, out = f"{made.folder}/undisturbed", f"{made.folder}/out"
        assert ranks.run(undisturbed).wait(400) == 0, said(made) + text(f"{undisturbed}.err")
        job = ranks.run(out)
        until(out, "\n     500 ", made, 200)
        ranks.save()
        until(out, "\n     900 ", made, 200)
        ranks.save()
        ranks.crash(job)
        job = ranks.restart()
        assert job.wait(400) == 0, said(made) + text(f"{out}.err")
        assert len(energies(out)) == 21 and energies(out) == energies(undisturbed)


def energies(path: str) -> list[str]:
    """The lines of numbers that it has computed; how long it took is not among them."""
    lines = text(path).splitlines()
    first = next(n for n, line in enumerate(lines) if line.split()[:2] == ["Step", "Temp"])
    return [line for line in lines[first + 1 :] if line.strip()[:1].isdigit() and len(line.split()) == 6]


@pytest.mark.skipif(not shutil.which("mpirun.openmpi"), reason="needs openmpi")
def test_python_inside_of_a_collective() -> None:
    """Seven ranks are in it, the eighth is not yet."""
    usr = packages("mpi4py", "python3-mpi4py")
    with bed(EIGHT, shared=[STAGE]) as made:
        go = f"{made.folder}/go"
        words = ["-x PYTHONPATH", f"/usr/bin/python3 {PROGRAMS}/mpi4py_work.py 600 {go}"]
        ranks = Ranks(made, words, f"PYTHONPATH={usr}/lib/python3/dist-packages")
        undisturbed, out = f"{made.folder}/undisturbed", f"{made.folder}/out"
        open(go, "w").close()
        assert ranks.run(undisturbed).wait(200) == 0, said(made) + text(f"{undisturbed}.err")
        os.unlink(go)
        os.unlink(f"{go}.there")
        job = ranks.run(out)
        until(out, "step 200 ", made, 120)
        deadline = time.monotonic() + 60
        while not os.path.exists(f"{go}.there"):
            assert time.monotonic() < deadline, said(made)
            time.sleep(0.02)
        ranks.save()
        ranks.crash(job)
        job = ranks.restart()
        open(go, "w").close()
        assert job.wait(200) == 0, said(made) + text(f"{out}.err")
        assert text(out) == text(undisturbed)
