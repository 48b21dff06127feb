"""Which areas copies of a job share, and that huge pages under them are seen by nobody."""

from __future__ import annotations

import mmap
import os

import msgspec
import pytest

from torpor.checkpoint import molds
from torpor.checkpoint.huge_pages import HUGE
from torpor.checkpoint.molds import LEAST, break_up, cut, eligible, full
from torpor.linux import proc, uio
from torpor.linux.pagemap import PAGE, Pagemap
from torpor.posix.memory.area import ANONYMOUS, FILE, AreaRecord
from torpor.posix.memory.pages import FULL, WINDOW, Window, pack, rows_within, split, unpack

PLAIN = AreaRecord(LEAST, 2 * LEAST, ANONYMOUS, 3, False, ("ac",))


@pytest.mark.parametrize(
    ("change", "shared"),
    [
        ({}, True),
        ({"flags": ("ac", "nh")}, True),
        ({"kind": FILE}, False),
        ({"shared": True}, False),
        ({"prot": 1}, False),
        ({"flags": ()}, False),
        ({"flags": ("ac", "dc")}, False),
        ({"flags": ("ac", "wf")}, False),
        ({"flags": ("ac", "lo")}, False),
        ({"huge": True}, False),
        ({"end": 2 * LEAST - 4096}, False),
    ],
)
def test_only_ordinary_memory(change: dict[str, object], shared: bool) -> None:
    assert eligible(msgspec.structs.replace(PLAIN, **change)) == shared


def test_windows_across_a_border_are_nobodys() -> None:
    """Those that are only partly within a range are among the rest."""
    found = [(Window(number * WINDOW, FULL), number) for number in range(8)]
    record = pack(found)
    inside, rest = split(record, [rows_within(record, WINDOW + 4096, 4 * WINDOW + 4096)])
    assert unpack(inside) == found[2:4]
    assert unpack(rest) == [*found[:2], *found[4:]]


def test_huge_pages_where_all_small_ones_have_contents() -> None:
    found = [(Window(number * WINDOW, FULL), number) for number in range(5 * HUGE // WINDOW)]
    found[2 * HUGE // WINDOW] = Window(2 * HUGE, FULL - 1), 7
    area = msgspec.structs.replace(PLAIN, start=PAGE, end=5 * HUGE)
    assert full(pack(found), [area]) == [(HUGE, 2 * HUGE), (3 * HUGE, 5 * HUGE)]
    pieces = cut([area], [(HUGE, 2 * HUGE), (3 * HUGE, 4 * HUGE)])
    assert [(piece.start, piece.end, piece.huge) for piece in pieces] == [
        (PAGE, HUGE, False), (HUGE, 2 * HUGE, True), (2 * HUGE, 3 * HUGE, False), (3 * HUGE, 4 * HUGE, True),
        (4 * HUGE, 5 * HUGE, False),
    ]  # fmt: skip
    assert list(cut([area], [])) == [area]


def test_broken_up_they_are_small_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every byte is what it was, and the area is one."""
    monkeypatch.setattr(molds, "_SLOW", 10.0)
    room = mmap.mmap(-1, 5 * HUGE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    start = -(-uio.address_of(room) // HUGE) * HUGE
    end = start + 4 * HUGE
    skip = start - uio.address_of(room)
    pages = Pagemap(os.getpid())
    try:
        assert molds._enlarge([(start, end)]) == [(start, end)]
        if pages.huge(start, end) != [(start, end)]:
            pytest.skip("no huge pages are to be had")
        data = os.urandom(4 * HUGE)
        room[skip : skip + 4 * HUGE] = data
        break_up(start + HUGE, end)
        assert pages.huge(start, end) == [(start, start + HUGE)]
        break_up(start, end)
        assert pages.huge(start, end) == []
        assert pages.present(start, end) == [(start, end)]
        assert room[skip : skip + 4 * HUGE] == data
        assert any(area.start <= start and end <= area.end for area in proc.maps(os.getpid()))
    finally:
        pages.close()


def test_no_more_than_are_to_be_had_in_good_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(molds, "_SLOW", 0.0)
    room = mmap.mmap(-1, 6 * HUGE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    start = -(-uio.address_of(room) // HUGE) * HUGE
    tried = [(start, start + 2 * HUGE), (start + 3 * HUGE, start + 5 * HUGE)]
    assert molds._enlarge(tried) == [tried[0], (start + 3 * HUGE, start + 4 * HUGE)]
