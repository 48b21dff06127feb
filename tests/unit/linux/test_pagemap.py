"""Which pages of an area hold data of its own."""

from __future__ import annotations

import mmap
import os
from pathlib import Path

import pytest

from torpor.linux import uio
from torpor.linux.pagemap import PAGE, Pagemap

PAGES = 64


def _runs(room: mmap.mmap, file: bool) -> list[tuple[int, int]]:
    """By number of the page in `room`, (first, end)."""
    start = uio.address_of(room)
    pagemap = Pagemap(os.getpid())
    try:
        found = pagemap.private(start, start + PAGES * PAGE, file)
    finally:
        pagemap.close()
    return [((first - start) // PAGE, (end - start) // PAGE) for first, end in found]


@pytest.mark.parametrize("scan", [True, False])
def test_anonymous_memory_needs_no_look_at_its_pages(scan: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torpor.linux.pagemap.masked", lambda _: not scan)
    room = mmap.mmap(-1, PAGES * PAGE, flags=mmap.MAP_PRIVATE)
    room.madvise(mmap.MADV_NOHUGEPAGE)
    for page in (3, 4, 5, 9, 20):
        room[page * PAGE] = 1
    assert room[7 * PAGE] == 0  # the zero page
    room.madvise(mmap.MADV_DONTNEED, 20 * PAGE, PAGE)
    zero = [] if scan else [(7, 8)]  # /proc/PID/pagemap does not tell it from others
    assert _runs(room, False) == _runs(room, True) == [(3, 6), *zero, (9, 10)]


def test_pages_of_a_file_are_told_from_copies_of_them(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(os.urandom(PAGES * PAGE))
    with open(path, "r+b") as file:
        room = mmap.mmap(file.fileno(), PAGES * PAGE, flags=mmap.MAP_PRIVATE)
    room.madvise(mmap.MADV_RANDOM)
    for page in range(PAGES):
        room[page * PAGE]
    room[7 * PAGE] = room[7 * PAGE] ^ 1
    assert _runs(room, True) == [(7, 8)]
    assert _runs(room, False) == [(0, PAGES)]  # why it has to be said
