"""Memory is filled, by way of a userfaultfd or without, to the last byte, and is ordinary memory afterwards."""

from __future__ import annotations

import ctypes
import mmap
import os
import random
import signal
from types import SimpleNamespace
from typing import Any

import pytest

from torpor.checkpoint import fill
from torpor.linux import pidfd, proc, uio, userfaultfd
from torpor.posix.memory.area import AreaRecord
from torpor.posix.memory.pages import PAGE, Window, pack, windows

SIZE = 3 * 64 * PAGE


class Chunks:
    """A source of what was put in."""

    def __init__(self) -> None:
        self.kept: list[bytes] = []

    def get(self, ref: int) -> bytes:
        return self.kept[ref]


def layout(folder: str) -> tuple[mmap.mmap, list[AreaRecord]]:
    """Memory of four areas side by side, none of them on the grid of windows: anonymous, of a file, anonymous, and
    anonymous for reading only."""
    path = f"{folder}/file"
    with open(path, "wb") as file:
        file.truncate(SIZE)
    room = mmap.mmap(-1, 5 * SIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    start = (uio.address_of(room) & -(64 * PAGE)) + 64 * PAGE + 5 * PAGE
    call = ctypes.CDLL(None, use_errno=True).mmap
    call.restype, call.argtypes = ctypes.c_void_p, [ctypes.c_void_p, *[ctypes.c_size_t] * 5]
    with open(path, "r+b") as file:
        assert call(start + SIZE, SIZE, 3, mmap.MAP_PRIVATE | 0x10, file.fileno(), 0) == start + SIZE
    last = start + 3 * SIZE
    assert call(last, SIZE, 1, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x10, -1 & 0xFFFFFFFFFFFFFFFF, 0) == last
    kinds = (("anonymous", 3), ("file", 3), ("anonymous", 3), ("anonymous", 1))
    areas = [
        AreaRecord(start + i * SIZE, start + (i + 1) * SIZE, kind, prot, False, ("ac",) if prot == 3 else ())
        for i, (kind, prot) in enumerate(kinds)
    ]
    return room, areas


@pytest.mark.parametrize("by_faults", (True, False))
def test_all_of_it_comes_and_nothing_else(by_faults: bool, tmp_path: Any) -> None:
    if by_faults and not userfaultfd.probe()[0]:
        pytest.skip(userfaultfd.probe()[1])
    room, areas = layout(str(tmp_path))
    ready, told = os.pipe()
    child = os.fork()
    if child == 0:
        ctypes.memset(areas[2].start + PAGE, 7, 1)  # a page that is there already
        os.write(told, userfaultfd.create().to_bytes(4, "little"))
        signal.pause()
        os._exit(1)
    try:
        number = int.from_bytes(os.read(ready, 4), "little")
        dice = random.Random(7)
        there = [page for page in range(4 * SIZE // PAGE) if dice.random() < 0.7] + [SIZE // PAGE, 2 * SIZE // PAGE + 1]
        runs = [(areas[0].start + page * PAGE, areas[0].start + (page + 1) * PAGE) for page in sorted(set(there))]
        source, found, wanted = Chunks(), [], bytearray(4 * SIZE)
        for window in windows(runs):
            source.kept.append(dice.randbytes(window.size))
            found.append((window, len(source.kept) - 1))
            put(window, source.kept[-1], wanted, areas[0].start)
        record: Any = SimpleNamespace(areas=tuple(areas), pages=pack(found))
        faults = {}
        if by_faults:
            process = os.pidfd_open(child)
            faults[child] = pidfd.copy(process, number)
            os.close(process)
        assert fill.fill([(record, child)], source, None, faults) == sum(map(len, source.kept))
        have = uio.force_read(child, areas[0].start, 4 * SIZE)
        different = [at // PAGE for at in range(0, 4 * SIZE, PAGE) if have[at : at + PAGE] != wanted[at : at + PAGE]]
        assert not different
        # The descriptor is still open, in both.
        marks = [fields["VmFlags"] for area, fields in proc.smaps(child) if area.start in {a.start for a in areas}]
        assert marks and not any("um" in mark.split() for mark in marks)
        for fd in faults.values():
            os.close(fd)
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(ready)
        os.close(told)
        room.close()


def put(window: Window, data: bytes, into: bytearray, base: int) -> None:
    at = 0
    for address, size in window.ranges():
        into[address - base : address - base + size] = data[at : at + size]
        at += size
