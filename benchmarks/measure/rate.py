"""How fast a save is, beside what it consists of: reading memory of another process, hashing, writing to a disk.

Each stage is measured alone, in pieces of a chunk, with as many processors as the save has. What is saved is random,
and not compressed (`--compress none`), so that the bytes are those that `dd conv=fsync` writes. To a disk, and to
memory (tmpfs), where there is nothing to wait for and the processors are what limits.
"""

from __future__ import annotations

import contextlib
import mmap
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence

from blake3 import blake3

from measure import look, table
from measure.apart import Apart, Result
from measure.cases import Case, no_room
from measure.limits import Limits
from measure.ours import Figures, Torpor
from torpor.linux import proc
from torpor.model.data import CHUNK_SIZE

PACK = 32 << 20
MIB = 1024
"""That are saved."""
MEMORY = "/dev/shm"
STAGES = 1.25
"""Aim: the most that a save may take on one processor, to its stages one after the other."""
SPEED_UP = 1.7
"""Aim: how much faster it should be on two, at least."""
DD = 1 / 0.9
"""Aim: the most that it may take to a disk, to dd."""


def run(to: Apart) -> list[Result]:
    """To a disk and to memory, on one processor and on two."""
    found = _on_one_and_two(to, "disk", to.ours, to.limits)
    lacking = no_room(Case("", 2 * MIB), MEMORY) if os.path.isdir(MEMORY) else f"there is no {MEMORY}"
    if lacking:
        print(f"rate: not to memory, {lacking}", file=sys.stderr)
        return found
    folder = tempfile.mkdtemp(prefix="torpor-bench-", dir=MEMORY)
    try:
        memory = to._replace(ours=Torpor(folder))
        return found + _on_one_and_two(memory, "memory", memory.ours, Limits(folder))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _on_one_and_two(to: Apart, where: str, ours: Torpor, limits: Limits) -> list[Result]:
    return [to.repeat(f"{where}, {n} CPU", measure, ours, to.program, limits, n) for n in (1, 2)]


def measure(ours: Torpor, program: str, limits: Limits, processors: int) -> Figures:
    """One round: seconds of each stage, of the save, and of dd. program: programs/grow.c, compiled. Raises
    RuntimeError, TimeoutError."""
    with _job(ours, program) as pid, _on(processors):
        area = max(proc.maps(pid), key=lambda one: one.size)
        figures = {"read": _apart(_read, pid, area.start, ours.folder)}
        figures["dd"] = limits.dd(MIB << 20)
        began = _used()
        saved = ours("checkpoint", "--pid", str(pid), "--name", ours.name, "--compress", "none", "--json")
        figures["save"] = saved["seconds"]
        figures["save_cpu"] = _used() - began
        for name, stage in (("hash", _hash), ("write", _write)):
            figures[name] = _apart(stage, pid, area.start, ours.folder)
    return figures


def report(results: Sequence[Result]) -> str:
    """The table. The speed-up is that of a line on two processors over the line above it, on one."""
    rows = []
    alone: float | None = None
    for one in results:
        get = one["medians"].get
        where, _, processors = one["case"].partition(", ")
        single, disk = processors == "1 CPU", where == "disk"
        alone = get("save") if single else alone
        stages = table.quotient(get("save"), sum(get(name, 0.0) for name in ("read", "hash", "write")))
        faster = None if single else table.quotient(alone, get("save"))
        to_dd = table.quotient(get("save"), get("dd"))
        rows.append([
            one["case"], *(table.seconds(get(name)) for name in ("read", "hash", "write", "save", "save_cpu")),
            table.times(stages), table.aim(f"{STAGES}x", stages, STAGES) if single else "",
            table.times(faster), "" if single else table.aim(f"{SPEED_UP}x", faster, least=SPEED_UP),
            table.seconds(get("dd")), table.times(to_dd), table.aim(f"{DD:.2f}x", to_dd, DD) if disk else "",
        ])  # fmt: skip
    head = [f"saves {MIB} MiB", "read", "hash", "write", "save", "CPU", "/stages", "aim", "two/one", "aim", "dd", "/dd"]
    return table.columns([*head, "aim"], rows)


@contextlib.contextmanager
def _job(ours: Torpor, program: str) -> Iterator[int]:
    path = f"{ours.folder}/rate"
    out = look.empty_file(path)
    words = [program, str(MIB), "1", "1", "1"]
    job = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=out, start_new_session=True)
    os.close(out)
    try:
        look.ready(path)
        yield job.pid
    finally:
        job.send_signal(signal.SIGKILL)
        job.wait()


@contextlib.contextmanager
def _on(processors: int) -> Iterator[None]:
    """What is started meanwhile has so many processors."""
    all_of_them = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(all_of_them)[:processors])
    try:
        yield
    finally:
        os.sched_setaffinity(0, all_of_them)


def _used() -> float:
    """Processor time of children that have ended, seconds."""
    times = os.times()
    return times.children_user + times.children_system


def _apart(stage: Callable[[int, int, str], float], pid: int, start: int, folder: str) -> float:
    """Run a stage in a process of its own: seconds."""
    with multiprocessing.get_context("fork").Pool(1) as pool:
        return pool.apply(stage, (pid, start, folder))


def _read(pid: int, start: int, _: str) -> float:
    room = [mmap.mmap(-1, CHUNK_SIZE)]
    fd = os.open(f"/proc/{pid}/mem", os.O_RDONLY)
    began = time.perf_counter()
    for at in range(0, MIB << 20, CHUNK_SIZE):
        os.preadv(fd, room, start + at)
    return time.perf_counter() - began


def _hash(*_: object) -> float:
    data, key = os.urandom(CHUNK_SIZE), bytes(32)
    began = time.perf_counter()
    for _piece in range(0, MIB << 20, CHUNK_SIZE):
        blake3(data, key=key).digest()
    return time.perf_counter() - began


def _write(_: int, __: int, folder: str) -> float:
    """Files of the size of a pack, each made durable."""
    data = os.urandom(CHUNK_SIZE)
    began = time.perf_counter()
    for _file in range(0, MIB << 20, PACK):
        fd = os.open(folder, os.O_TMPFILE | os.O_WRONLY, 0o600)
        try:
            for at in range(0, PACK, CHUNK_SIZE):
                os.pwrite(fd, data, at)
            os.fdatasync(fd)
        finally:
            os.close(fd)
    return time.perf_counter() - began
