"""The jobs that are measured, what is aimed at, and the program that plays them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from typing import NamedTuple

PROGRAMS = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "programs")


class Case(NamedTuple):
    """A job: so many processes in all, with `mib` of random memory each (in huge pages, or not), and so many threads in
    the first of them. Aims, each 0.0 for none: pause and restart, seconds; fork, the pause to bare forks of all
    processes."""

    name: str
    mib: int
    threads: int = 1
    processes: int = 1
    huge: bool = False
    pause: float = 0.0
    fork: float = 0.0
    restart: float = 0.0

    @property
    def bytes(self) -> int:
        return (self.mib << 20) * self.processes

    def words(self) -> list[str]:
        return [str(self.mib), str(self.threads), str(self.processes), *(["huge"] if self.huge else [])]


CASES = (
    Case("small", 0, pause=0.003, restart=0.080),
    Case("64MiB", 64),
    Case("1GiB", 1024, fork=1.3),
    Case("4GiB", 4096, fork=1.3),
    Case("4GiB-huge", 4096, huge=True, pause=0.015),
    Case("100threads", 0, threads=100, pause=0.015, restart=0.120),
    Case("50small", 0, processes=50, restart=0.300),
    Case("50processes", 20, processes=50, fork=1.5),
)
QUICK = ("small", "64MiB", "1GiB", "100threads", "50small", "50processes")


def program(folder: str) -> list[str]:
    """The command that runs a case: hold.c if there is a compiler, else hold.py."""
    built = compiled("hold", folder)
    return [built] if built else [sys.executable, f"{PROGRAMS}/hold.py"]


def compiled(name: str, folder: str) -> str:
    """The path of a program that was compiled for this, '' without a compiler."""
    compiler = next((path for path in map(shutil.which, ("cc", "gcc", "clang")) if path), None)
    out = f"{folder}/{name}"
    if compiler is None:
        return ""
    built = subprocess.run([compiler, "-O2", "-pthread", "-o", out, f"{PROGRAMS}/{name}.c"], check=False)
    return "" if built.returncode else out


def no_room(case: Case, folder: str, memory: float = 2.5) -> str:
    """Why this machine cannot run a case; '' if it can. memory: how many times over a job's has to be free."""
    with open("/proc/meminfo", encoding="ascii") as file:
        available = next(int(line.split()[1]) for line in file if line.startswith("MemAvailable:")) << 10
    if available < memory * case.bytes:
        return f"{available >> 20} MiB of memory are free"
    disk = shutil.disk_usage(folder).free
    if disk < 2.5 * case.bytes + (1 << 30):
        return f"{disk >> 20} MiB are free in {folder}"
    return ""
