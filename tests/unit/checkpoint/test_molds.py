"""Which areas copies of a job share."""

from __future__ import annotations

import msgspec
import pytest

from torpor.checkpoint.molds import LEAST, eligible
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
