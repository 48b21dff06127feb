"""How fast a restart fills memory: what it takes longer than the restart of the same program with none, beside a plain
fill, two threads that read the same packs into fresh anonymous memory. And `--lazy`: the first instruction, and when
all memory is there, in small pages (docs/lazy.md)."""

from __future__ import annotations

import mmap
import os
import threading
import time
from collections.abc import Iterator, Sequence

from measure import look, table
from measure.apart import Apart, Result
from measure.cases import Case, no_room
from measure.ours import Figures, Torpor

MIB = 4096
SHARE = 0.8
"""Aim: the least that a plain fill may take, to what ours takes."""
FIRST = 0.120
"""Aim: seconds to the first instruction with --lazy."""
PIECE = 1 << 20
THREADS = 2


def run(to: Apart) -> list[Result]:
    """With small pages and with huge ones: one checkpoint each, restarted in every round. In each round the restart of
    a small one as well."""
    lacking = no_room(Case("", MIB), to.folder)
    if lacking:
        raise RuntimeError(lacking)
    found = []
    for name, huge in (("4K pages", False), ("huge pages", True)):
        try:
            small, large = f"{to.ours.name}-small", f"{to.ours.name}-large"
            _save(to.ours, small, [to.program, *Case("", 0).words()])
            _save(to.ours, large, [to.program, *Case("", MIB, huge=huge).words()])
            found.append(to.repeat(name, measure, to.ours, small, large, huge, keep=True))
        finally:
            to.ours.kill()
            to.ours.forget()
    return found


def measure(ours: Torpor, small: str, large: str, huge: bool) -> Figures:
    """One round, seconds; `first` and `all`, of --lazy, for small pages, and where it is allowed. Raises RuntimeError,
    TimeoutError.

    A virtual machine may give free memory back to its host within seconds (page reporting), and has to wait for it when
    it takes it again: 2 GiB in huge pages were filled in 0.23 s, and in 2.2 s after five seconds of rest. So a plain
    fill comes before each of the two as well.
    """
    figures: Figures = {}
    packs = f"{ours.folder}/store/packs"
    with ours.restarted(small) as figures["small"]:
        pass
    plain(packs, huge)
    with ours.restarted(large) as figures["restart"]:
        pass
    figures["fill"] = figures["restart"] - figures["small"]
    plain(packs, huge)
    figures["plain"] = plain(packs, huge)
    if not huge and os.geteuid() == 0:
        others = _bringing()
        began = time.perf_counter()
        with ours.restarted(large, "--lazy") as figures["first"]:
            _arrived(others)
            figures["all"] = time.perf_counter() - began
    return figures


def plain(folder: str, huge: bool) -> float:
    """Seconds in which two threads read all files of a folder into fresh memory."""
    packs = [os.path.join(at, name) for at, _, names in os.walk(folder) for name in names]
    sizes = [os.stat(path).st_size for path in packs]
    with mmap.mmap(-1, sum(sizes), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory, memoryview(memory) as room:
        memory.madvise(mmap.MADV_HUGEPAGE if huge else mmap.MADV_NOHUGEPAGE)
        work = iter([(path, sum(sizes[:at]), sizes[at]) for at, path in enumerate(packs)])
        turn = threading.Lock()
        threads = [threading.Thread(target=_read, args=(work, turn, room)) for _ in range(THREADS)]
        began = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return time.perf_counter() - began


def report(results: Sequence[Result]) -> str:
    """The tables. The first result is that of small pages."""
    fills = []
    for one in results:
        get = one["medians"].get
        share = table.quotient(get("plain"), get("fill"))
        fills.append([
            one["case"], *(table.seconds(get(name)) for name in ("restart", "small", "fill", "plain")),
            table.times(share), table.aim(f"{SHARE}x", share, least=SHARE),
        ])  # fmt: skip
    head = [f"restart of {MIB} MiB", "in all", "of a small one", "filling", "plain fill", "plain/ours", "aim"]
    get = results[0]["medians"].get
    goal = table.aim(f"{FIRST * 1e3:.0f} ms", get("first"), FIRST)
    lazy = ["--lazy", table.seconds(get("first")), goal, table.seconds(get("all"))]
    late = table.columns([f"restart of {MIB} MiB", "first instruction", "aim", "all there"], [lazy])
    return "\n\n".join([table.columns(head, fills), late])


def _save(ours: Torpor, name: str, words: list[str]) -> None:
    ours.start(name, words)
    ours("checkpoint", name, "--compress", "none", "--json")
    ours.kill()


def _read(work: Iterator[tuple[str, int, int]], turn: threading.Lock, room: memoryview) -> None:
    while True:
        with turn:
            path, start, size = next(work, ("", 0, 0))
        if not path:
            return
        fd = os.open(path, os.O_RDONLY)
        try:
            for at in range(0, size, PIECE):
                os.preadv(fd, [room[start + at : start + min(at + PIECE, size)]], at)
        finally:
            os.close(fd)


def _arrived(others: set[str]) -> None:
    """Wait until nothing but `others` brings memory any more. Raises TimeoutError."""
    deadline = time.monotonic() + look.PATIENCE
    while _bringing() - others:
        if time.monotonic() > deadline:
            raise TimeoutError("memory does not arrive")
        time.sleep(0.02)


def _bringing() -> set[str]:
    """Processes that bring memory to a job, any job of this host."""
    return {pid for pid in os.listdir("/proc") if pid.isdecimal() and _brings(pid)}


def _brings(pid: str) -> bool:
    try:
        with open(f"/proc/{pid}/comm", encoding="utf-8", errors="replace") as file:
            return file.read().strip() == "torpor-arrival"  # docs/lazy.md
    except OSError:
        return False
