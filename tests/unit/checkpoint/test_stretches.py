"""Long stretches of memory that has not changed."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from torpor.checkpoint.stretches import LEAST, Range, Stretch, merged, minus, stretches
from torpor.posix.memory.pages import PAGE, WINDOW, Window, for_threads, pack, unpack

FULL = (1 << 64) - 1


@pytest.mark.parametrize(
    ("ranges", "out"),
    [
        ([], []),
        ([(5, 6), (1, 2)], [(1, 2), (5, 6)]),
        ([(1, 3), (3, 4)], [(1, 4)]),
        ([(1, 9), (2, 3), (8, 12)], [(1, 12)]),
    ],
)
def test_ranges_are_merged(ranges: list[tuple[int, int]], out: list[tuple[int, int]]) -> None:
    assert merged(ranges) == out


RANGES = st.lists(st.tuples(st.integers(0, 60), st.integers(1, 9)).map(lambda one: (one[0], sum(one)))).map(merged)


@given(RANGES, RANGES)
def test_what_is_left_of_ranges(ranges: list[Range], holes: list[Range]) -> None:
    def numbers(of: list[Range]) -> set[int]:
        return {number for start, end in of for number in range(start, end)}

    left = list(minus(ranges, holes))
    assert numbers(left) == numbers(ranges) - numbers(holes)
    assert left == sorted(left)
    assert all(start < end for start, end in left)
    assert sum(end - start for start, end in left) == len(numbers(left))


MANY = 4 * LEAST


def found(
    bitmaps: dict[int, int], pages: list[Range], changed: list[Range] = [], lacking: int = -1  # noqa: B006
) -> list[tuple[int, int]]:  # fmt: skip
    """First window and how many, of MANY windows from the tenth on, full but for `bitmaps`."""
    rows = [(Window(n * WINDOW, bitmaps.get(n, FULL)), 0) for n in range(10, 10 + MANY) if n != lacking]
    record = pack(rows)
    out = stretches(record, pages, changed)
    for one in out:
        assert [window.address for window, _ in rows[one.first : one.end]] == list(range(*one.range, WINDOW))
    return [(one.address // WINDOW, one.end - one.first) for one in out]


ALL = [(10 * WINDOW, (10 + MANY) * WINDOW)]


def test_all_of_it() -> None:
    assert found({}, ALL) == [(10, MANY)]
    around = found({}, [(0, 1000 * WINDOW)])
    assert sum(count for _, count in around) > MANY // 2
    assert all(first >= 10 and first + count <= 10 + MANY for first, count in around)
    assert Stretch(WINDOW, 3, 5).range == (WINDOW, 3 * WINDOW)


@pytest.mark.parametrize("changed", [(20 * WINDOW, 20 * WINDOW + PAGE), (20 * WINDOW - PAGE, 20 * WINDOW + PAGE)])
def test_not_what_has_changed(changed: Range) -> None:
    first = 20 - 10 - (changed[0] < 20 * WINDOW)
    rest = [(10, first)] if first >= LEAST else []
    assert found({}, ALL, [changed]) == [*rest, (21, MANY - 11)]


def test_only_whole_windows() -> None:
    assert found({}, [(ALL[0][0] + PAGE, ALL[0][1] - PAGE)]) == [(11, MANY - 2)]
    assert found({}, [(ALL[0][0], ALL[0][0] + (LEAST - 1) * WINDOW)]) == [], "too few to be worth it"


@pytest.mark.parametrize("other", [10, 10 + MANY // 2, 9 + MANY])
def test_not_where_other_pages_were_there(other: int) -> None:
    for case in (found({other: FULL ^ 1}, ALL), found({}, ALL, lacking=other)):
        assert case
        assert not any(first <= other < first + count for first, count in case)


def test_a_record_is_put_together_again() -> None:
    rows = [(Window(n * WINDOW, FULL), n) for n in range(10)]
    parts = [(2 * WINDOW, pack(rows[2:4])), (4 * WINDOW, pack(rows[4:5])), (9 * WINDOW, pack(rows[9:]))]
    assert unpack(pack([*rows[:2], *rows[5:9]], parts)) == rows
    assert pack([], [(0, pack(rows))]) == pack(rows)


def test_threads_are_for_much_work_in_large_pieces() -> None:
    assert for_threads(100, 100 * WINDOW)
    assert not for_threads(64, 64 * WINDOW)
    assert not for_threads(30_000, 30_000 * PAGE)
