"""Real servers with their clients in one job: nothing that was under way between them is lost, doubled or changed.

Each is saved in the middle of its work, killed, restarted, saved and killed again, and restarted; then it ends its
work, and the results tell.
"""

from __future__ import annotations

import glob
import os
import random
import time
from typing import NamedTuple

import harness
import pytest
import toolchain

PATIENCE = 120.0


class Server(NamedTuple):
    """A driver of tests/programs, and what it needs."""

    driver: str
    needs: tuple[str, ...] = ()
    more: tuple[str, ...] = ()
    """More words for the driver."""
    save: tuple[str, ...] = ()
    """Options of its checkpoints; {home} is the folder it works in."""
    root: bool = True
    """Does it run as root?"""

    def command(self, bench: harness.Bench) -> list[str]:
        if bench.account.label == "root" and not self.root:
            pytest.skip(f"{self.needs[0]} does not run as root")
        bench.env["PATH"] = os.pathsep.join([bench.env["PATH"], *sorted(glob.glob("/usr/lib/postgresql/*/bin"))[-1:]])
        toolchain.needs(*self.needs, path=bench.env["PATH"])
        words = [bench.go, bench.home, *self.more]
        if self.driver.endswith(".java"):
            return [*toolchain.java(self.driver), *words]
        if self.driver.endswith(".js"):
            return ["node", harness.script(self.driver), *words]
        harness.script("serving.py")
        return [bench.account.python, harness.script(self.driver), *words]


POSTGRES = ("postgres", "initdb", "pgbench", "psql", "pg_amcheck")
SERVERS = {
    # BGSAVE renames its file at its end: what the job does between the checkpoint and its death must not matter.
    "redis": Server("redis_pipeline.py", ("redis-server",), save=("--files=save",)),
    "nginx": Server("nginx_load.py", ("nginx", "wrk")),
    "nginx-close": Server("nginx_load.py", ("nginx", "wrk"), more=("close",)),
    "postgres": Server("pg_transactions.py", POSTGRES, save=("--files=save:{home}/data",), root=False),
    "multiprocessing": Server("pools.py", more=("multiprocessing",)),
    "processes": Server("pools.py", more=("processes",)),
    "threads": Server("pools.py", more=("threads",)),
    "asyncio": Server("pools.py", more=("asyncio",)),
    "java": Server("Threads.java", ("java",)),
    "node": Server("echo.js", ("node",)),
}
QUICK_BY_PID = ("redis", "multiprocessing")


@pytest.mark.parametrize("name", SERVERS)
def test_two_generations(name: str, bench: harness.Bench) -> None:
    moments(SERVERS[name], bench, "run", 1)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in QUICK_BY_PID else pytest.mark.exam) for name in SERVERS]
)
def test_taken_by_pid(name: str, bench: harness.Bench) -> None:
    moments(SERVERS[name], bench, "pid", 1)


@pytest.mark.exam
@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("name", SERVERS)
def test_at_random_moments(name: str, seed: int, bench: harness.Bench) -> None:
    moments(SERVERS[name], bench, "run", 1 + seed % 3, seed)


@pytest.mark.exam
@pytest.mark.parametrize("name", ["postgres", "redis"])
def test_back_after_its_end(name: str, bench: harness.Bench) -> None:
    """It goes on after the checkpoint, to its end; then the checkpoint is restarted, and its files are as they were."""
    server = SERVERS[name]
    save = [option.format(home=bench.home) for option in server.save]
    job = bench.run(server.command(bench))
    job.ready()
    saved = bench.checkpoint(job, *save)
    job.verified(PATIENCE)
    bench.untell()
    job = bench.restart(f"{job.name}@{saved['number']}", detach=True)
    saved = bench.checkpoint(job, *save)
    bench.kill()
    job = bench.restart(f"{job.name}@{saved['number']}")
    job.verified(PATIENCE)
    bench.gone("after the restarted job has ended")


def moments(server: Server, bench: harness.Bench, via: str, generations: int, seed: int = 0) -> None:
    """Saved and killed `generations` times and once more, at moments that the seed gives; then it verifies itself."""
    chance = random.Random(seed)
    save = [option.format(home=bench.home) for option in server.save]
    job = bench.run(server.command(bench), via)
    job.ready()
    for _ in range(generations):
        time.sleep(chance.random())  # the moment is the test's parameter, not a wait for anything
        saved = bench.checkpoint(job, *save)
        bench.kill()
        job = bench.restart(f"{job.name}@{saved['number']}", detach=True)
    saved = bench.checkpoint(job, *save)
    bench.kill()
    job = bench.restart(f"{job.name}@{saved['number']}")
    job.verified(PATIENCE)
    bench.gone("after the restarted job has ended")
