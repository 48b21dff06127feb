"""How fast a save is, beside what it consists of: reading memory of another process, hashing, writing to a disk.

Each stage is measured alone, in pieces of a chunk, with as many processors as the save has. What is saved is random,
and not compressed (`--compress none`), so that the bytes are those that `dd conv=fsync` writes.
"""

from __future__ import annotations

import contextlib
import mmap
import multiprocessing
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator

from blake3 import blake3

from measure import look
from measure.limits import Limits
from measure.ours import Figures, Torpor
from torpor.linux import proc
from torpor.model.data import CHUNK_SIZE

PACK = 32 << 20
RATE = 1024
"""MiB that are saved."""


def measure(ours: Torpor, program: str, limits: Limits, processors: int) -> Figures:
    """One round: seconds of each stage, of the save, and of dd. program: programs/grow.c, compiled. Raises
    RuntimeError, TimeoutError."""
    with _job(ours, program) as pid, _on(processors):
        area = max(proc.maps(pid), key=lambda one: one.size)
        figures = {"read": _apart(_read, pid, area.start, ours.folder)}
        figures["dd"] = limits.dd(RATE << 20)
        began = _used()
        saved = ours("checkpoint", "--pid", str(pid), "--name", ours.name, "--compress", "none", "--json")
        figures["save"] = saved["seconds"]
        figures["save_cpu"] = _used() - began
        for name, stage in (("hash", _hash), ("write", _write)):
            figures[name] = _apart(stage, pid, area.start, ours.folder)
    return figures


@contextlib.contextmanager
def _job(ours: Torpor, program: str) -> Iterator[int]:
    path = f"{ours.folder}/rate"
    out = look.empty_file(path)
    words = [program, str(RATE), "1", "1", "1"]
    job = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=out, start_new_session=True)
    os.close(out)
    try:
        deadline = time.monotonic() + look.PATIENCE
        while ["ready"] not in look.lines(path):
            if time.monotonic() > deadline:
                raise TimeoutError("the program did not become ready")
            time.sleep(0.02)
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
    for at in range(0, RATE << 20, CHUNK_SIZE):
        os.preadv(fd, room, start + at)
    return time.perf_counter() - began


def _hash(*_: object) -> float:
    data, key = os.urandom(CHUNK_SIZE), bytes(32)
    began = time.perf_counter()
    for _piece in range(0, RATE << 20, CHUNK_SIZE):
        blake3(data, key=key).digest()
    return time.perf_counter() - began


def _write(_: int, __: int, folder: str) -> float:
    """Files of the size of a pack, each made durable."""
    data = os.urandom(CHUNK_SIZE)
    began = time.perf_counter()
    for _file in range(0, RATE << 20, PACK):
        fd = os.open(folder, os.O_TMPFILE | os.O_WRONLY, 0o600)
        try:
            for at in range(0, PACK, CHUNK_SIZE):
                os.pwrite(fd, data, at)
            os.fdatasync(fd)
        finally:
            os.close(fd)
    return time.perf_counter() - began
