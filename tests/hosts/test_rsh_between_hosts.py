"""`torpor rsh` between hosts, and programs of other people that start theirs over ssh: they start them through it."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator

import pytest
from bed import NEEDED, Bed, Host, bed

from torpor.launch.travel import DOOR
from torpor.link import secret

pytestmark = NEEDED
HERE = os.path.dirname(os.path.abspath(__file__))
SOURCE = os.path.join(os.path.dirname(HERE), "programs", "mpi_sum.c")
RSH = os.path.join(os.path.dirname(sys.executable), "torpor-rsh")


class Doors:
    """A bed whose hosts have doors of one job, and nothing else of it."""

    def __init__(self, made: Bed) -> None:
        self.bed, self.env = made, dict[str, dict[str, str]]()
        key = secret.fresh()
        self._processes = []
        table = {}
        for host in made.hosts.values():
            door = host.popen([sys.executable, "-P", "-m", "torpor.launch.door"],
                              stdin=subprocess.PIPE, stdout=subprocess.PIPE)  # fmt: skip
            self._processes.append(door)
            door.stdin.write(key.line() + json.dumps({"host": host.name, "address": host.address}).encode() + b"\n")
            door.stdin.flush()
            said = json.loads(door.stdout.readline())
            table[host.name] = host.address, said["port"]
            self.env[host.name] = {DOOR: said["socket"], "OMPI_ALLOW_RUN_AS_ROOT": "1",
                                   "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}  # fmt: skip
        for door in self._processes:
            door.stdin.write(json.dumps(table).encode() + b"\n")
            door.stdin.close()
            door.stdout.close()

    def run(self, host: Host, *words: str, **env: str) -> str:
        return host.run(words, {**self.env[host.name], **env})

    def close(self) -> None:
        for door in self._processes:
            door.kill()
            door.wait()


@pytest.fixture(scope="module")
def doors() -> Iterator[Doors]:
    with bed(["h1", "h2", "h3"]) as made, contextlib.closing(Doors(made)) as opened:
        yield opened


def test_from_host_to_host(doors: Doors) -> None:
    one = doors.bed.hosts["h1"]
    assert doors.run(one, RSH, "h2", f"hostname; {RSH} h3 'hostname; exit 5'; echo $?") == "h2\nh3\n5\n"
    assert doors.run(one, "sh", "-c", f"{RSH} h4 true; echo $?") == "255\n"
    two = doors.bed.hosts["h2"]
    assert doors.run(one, RSH, two.address, "echo $HOSTNAME-$WORD-$OMPI_ALLOW_RUN_AS_ROOT; pwd", WORD="w",
                     HOSTNAME="h1") == "h2-w-1\n/scratch\n"  # fmt: skip


@pytest.mark.exam
@pytest.mark.parametrize("kind", ["openmpi", "mpich"])
def test_ranks_are_started_through_it(doors: Doors, kind: str) -> None:
    if not shutil.which(f"mpicc.{kind}") or not shutil.which(f"mpirun.{kind}"):
        pytest.skip(f"needs {kind}")
    program = f"{doors.bed.folder}/mpi_sum.{kind}"
    subprocess.run([f"mpicc.{kind}", "-O1", "-o", program, SOURCE], check=True)
    how = {
        "openmpi": ["--mca", "plm_rsh_agent", RSH, "--mca", "btl", "tcp,self", "--host", "h1:2,h2:2,h3:2"],
        "mpich": ["-launcher", "ssh", "-hosts", "h1,h2,h3"],
    }
    one = doors.bed.hosts["h1"]
    process = one.popen([f"mpirun.{kind}", *how[kind], "-n", "6", program, "200"],
                        {**doors.env["h1"], "HYDRA_LAUNCHER_EXEC": RSH}, stdout=subprocess.PIPE)  # fmt: skip
    assert [process.stdout.readline() for _ in range(3)] == [b"READY\n", b"6 ranks on 3 hosts\n", b"OK\n"]
    # Debian's MPICH (with UCX) often does not come out of MPI_Finalize on these hosts, over ssh neither.
    if kind != "mpich":
        assert process.wait(60) == 0
