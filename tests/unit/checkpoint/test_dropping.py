"""What copies give up, and when."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from torpor.checkpoint import dropping
from torpor.checkpoint.dropping import PORTION, Dropping, Work, code_apart, portion, spans
from torpor.linux.arch.x86_64_code import Split
from torpor.posix.memory.pages import PAGE, WINDOW, Window
from torpor.tracee.snapshot import Copy, Range, Snapshot

FULL = (1 << 64) - 1
MANY = 2 * PORTION // WINDOW


held = False


@contextlib.contextmanager
def guard() -> Iterator[None]:
    global held
    held = True
    yield
    held = False


class Told(Snapshot):
    """Writes down what is to be given up."""

    def __init__(self, *slots: int) -> None:
        super().__init__()
        self.copies[1] = Copy(11, (0, 0), slots, Split(b"", 0, 0, 0), 0)
        self.copies[2] = Copy(12, (0, 0), (), Split(b"", 0, 0, 0), 0)
        self.dropped: list[tuple[int, list[Range]]] = []

    def drop(self, pid: int, ranges: object) -> None:
        assert held
        self.dropped.append((pid, list(ranges)))  # type: ignore[call-overload]


def row(pid: int, first: int, count: int) -> list[Work]:
    return [Work(pid, 10 + pid, Window(n * WINDOW, FULL)) for n in range(first, first + count)]


def test_runs_are_joined_and_small_ones_left() -> None:
    least = dropping.LEAST // PAGE
    windows = [Window(0, 1), Window(2 * WINDOW, FULL), Window(3 * WINDOW, FULL), Window(5 * WINDOW, (1 << least) - 1)]
    assert spans(windows) == [(2 * WINDOW, 2 * WINDOW), (5 * WINDOW, dropping.LEAST)]
    assert spans([Window(0, (1 << least - 1) - 1)]) == []


def test_a_portion_is_whole_or_none() -> None:
    work = row(1, 0, MANY)
    assert portion(work, 0, 0) == portion(work, 0, MANY // 2 - 1) == 0
    assert portion(work, 0, MANY // 2) == portion(work, 0, MANY) == MANY // 2
    assert portion(work, MANY // 2, MANY) == MANY
    assert portion(work, MANY, MANY) == MANY


def test_windows_with_our_code_are_apart() -> None:
    copies = Told(7 * WINDOW + 8, 9 * WINDOW - 8).copies
    code, others = code_apart([*row(1, 0, 10), *row(2, 0, 10)], copies)
    assert code == row(1, 7, 3)
    assert others == [*row(1, 0, 7), *row(2, 0, 10)]


def test_less_than_a_portion_is_left_to_its_end() -> None:
    snapshot = Told()
    giving = Dropping(snapshot, row(1, 0, MANY), (), {}, guard)
    giving.saved(MANY // 2 - 1)
    assert snapshot.dropped == []
    giving.saved(MANY - 1)
    assert snapshot.dropped == [(1, [(0, PORTION)])]


def test_what_is_not_read_goes_with_the_first_portion() -> None:
    snapshot = Told(6 * WINDOW)
    giving = Dropping(snapshot, row(1, 10, MANY), [*row(1, 6, 1), *row(2, 5, 4)], {}, guard)
    giving.saved(MANY // 2)
    giving.saved(MANY)
    assert snapshot.dropped == [
        (2, [(5 * WINDOW, 4 * WINDOW)]), (1, [(10 * WINDOW, PORTION)]), (1, [(10 * WINDOW + PORTION, PORTION)]),
    ]  # fmt: skip


def test_stretches_go_at_once_but_for_our_code() -> None:
    snapshot = Told(7 * WINDOW + 8, 9 * WINDOW - 8)
    stretches = {1: [(0, 5 * WINDOW), (5 * WINDOW, 20 * WINDOW)], 2: [(7 * WINDOW, 9 * WINDOW)]}
    giving = Dropping(snapshot, [], (), stretches, guard)
    giving.saved(0)
    giving.saved(0)
    assert sorted(snapshot.dropped) == [
        (1, [(0, 7 * WINDOW), (10 * WINDOW, 10 * WINDOW)]), (2, [(7 * WINDOW, 2 * WINDOW)]),
    ]  # fmt: skip
