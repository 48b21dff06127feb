"""Which windows may come later."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from torpor.checkpoint.lazy import choose as choosing
from torpor.checkpoint.lazy.arrival import runs
from torpor.checkpoint.lazy.choose import choose
from torpor.image.manifest import ProcessRecord
from torpor.posix.memory.area import ANONYMOUS, FILE, AreaRecord
from torpor.posix.memory.pages import FULL, PAGE, WINDOW, Window, pack, unpack, windows


def area(first: int, end: int, kind: str = ANONYMOUS) -> AreaRecord:
    """From one page to another."""
    return AreaRecord(first * PAGE, end * PAGE, kind, 3, False, ())


def process(areas: list[AreaRecord], absent: set[int]) -> ProcessRecord:
    """All pages of its areas are there but some."""
    rows = []
    for one in areas:
        pages = [page for page in range(one.start // PAGE, one.end // PAGE) if page not in absent]
        rows += [(window, 0) for window in windows((page * PAGE, (page + 1) * PAGE) for page in pages)]
    rows = [(window, ref) for ref, (window, _) in enumerate(sorted(rows))]
    return ProcessRecord(
        pid=1, parent=0, outside=True, pgid=1, sid=1, comm="", state="running", areas=tuple(areas), pages=pack(rows)
    )


AREAS = st.lists(st.tuples(st.integers(0, 40), st.integers(1, 400), st.booleans()), min_size=1, max_size=4)


@given(AREAS, st.sets(st.integers(0, 1700), max_size=20), st.sets(st.integers(0, 26), max_size=4))
def test_windows_of_large_areas_without_warm_ones(
    shapes: list[tuple[int, int, bool]], absent: set[int], warm: set[int]
) -> None:
    areas, at = [], 0
    for gap, size, eligible in shapes:
        areas.append(area(at + gap, at + gap + size, ANONYMOUS if eligible else FILE))
        at += gap + size
    record = process(areas, absent)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(choosing, "LEAST", 1)
        patch.setattr(choosing, "hot", lambda _: {number * WINDOW + 8 for number in warm})
        chosen = choose(record)
    large = [one for one in areas if one.kind == ANONYMOUS and one.size >= choosing.SMALLEST]

    def late(window: Window) -> bool:
        ranges = window.ranges()
        return window.address // WINDOW not in warm and any(
            one.start <= ranges[0][0] and sum(ranges[-1]) <= one.end for one in large
        )

    rows = unpack(record.pages)
    wanted = [row for row in rows if late(row[0])]
    if not wanted:
        assert chosen is None
        return
    assert chosen is not None
    assert unpack(chosen.late) == wanted
    assert unpack(chosen.early) == [row for row in rows if row not in wanted]
    assert chosen.size == sum(window.size for window, _ in wanted)
    assert sum(run.end - run.start for run in runs(chosen.late)) == chosen.size


def test_where_in_its_chunk_a_page_is() -> None:
    found = runs(pack([(Window(0, FULL), 7), (Window(WINDOW, 0b1101), 8)]))
    assert found == [
        (0, WINDOW, 7, 0), (WINDOW, WINDOW + PAGE, 8, 0), (WINDOW + 2 * PAGE, WINDOW + 4 * PAGE, 8, PAGE),
    ]  # fmt: skip
