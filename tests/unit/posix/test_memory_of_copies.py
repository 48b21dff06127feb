"""What the areas of a copy tell of the process it is a copy of."""

from __future__ import annotations

from torpor.linux.proc import Area
from torpor.posix.memory.area import ANONYMOUS, DROPPABLE, FILE, OBJECT, AreaRecord
from torpor.posix.memory.capture import Seen, confirm, dropped, without

LIB = Area(0x1000, 0x5000, "r-xp", 0x2000, 8, 77, "/lib/x.so")
HEAP = Area(0x10000, 0x40000, "rw-p", 0, 0, 0, "")


def seen(area: Area, kind: str = ANONYMOUS, flags: tuple[str, ...] = (), page: int = 4096, prot: int = 3) -> Seen:
    record = AreaRecord(area.start, area.end, kind, prot, area.perms[3] == "s", flags, area.offset, page=page)
    return Seen.of(area, record, True)


def test_what_was_not_there_is_taken_out() -> None:
    assert without(HEAP, (0x40000, 0x1000)) == [HEAP]
    assert without(HEAP, (0x1000, 0xF000)) == [HEAP]
    assert without(HEAP, (0x10000, 0x30000)) == []
    assert without(HEAP, (0x30000, 0x10000)) == [HEAP._replace(end=0x30000)]
    assert without(HEAP, (0x10000, 0x1000)) == [HEAP._replace(start=0x11000)]
    assert without(HEAP, (0x20000, 0x1000)) == [HEAP._replace(end=0x20000), HEAP._replace(start=0x21000)]


def test_the_rest_of_a_mapped_file_begins_further_on_in_it() -> None:
    assert without(LIB, (0x1000, 0x1000)) == [LIB._replace(start=0x2000, offset=0x3000)]


def test_memory_that_a_copy_has_not() -> None:
    shared = HEAP._replace(perms="rw-s")
    assert not seen(HEAP).apart
    assert not seen(LIB, FILE).apart
    assert seen(HEAP, flags=("ac", "dc")).apart
    assert seen(HEAP, flags=("wf",)).apart
    assert seen(HEAP, flags=("ht",), page=2 << 20).apart
    assert seen(HEAP, OBJECT).apart
    assert not seen(shared, OBJECT).apart, "it is saved once, for all who share it"
    assert not seen(HEAP, DROPPABLE, flags=("wf",)).apart


def test_memory_by_which_a_copy_would_be_noticed() -> None:
    shared, read_only = HEAP._replace(perms="rw-s"), HEAP._replace(perms="r--s")
    assert dropped([seen(HEAP), seen(shared, OBJECT), seen(LIB, FILE)]) == [(0x10000, 0x30000)]
    assert dropped([seen(read_only, FILE, prot=1)]) == []
    assert dropped([seen(read_only, FILE, flags=("mw",), prot=1)]) == [(0x10000, 0x30000)]


def test_a_copy_bears_out_what_was_thought() -> None:
    assert confirm([seen(HEAP), seen(LIB, FILE)], [seen(HEAP), seen(LIB, FILE)])
    assert confirm([seen(HEAP)], [seen(HEAP, flags=("hg",))]), "advice may have changed: it is the copy's that is kept"


def test_a_copy_shows_what_was_not_thought_of() -> None:
    assert not confirm([seen(HEAP), seen(LIB, FILE)], [seen(LIB, FILE)]), "not for forks, since a moment ago"
    assert not confirm([seen(HEAP)], [seen(HEAP, flags=("wf",))])
    assert not confirm([seen(HEAP)], [seen(HEAP, DROPPABLE)])
    assert not confirm([seen(HEAP)], [seen(HEAP._replace(end=0x50000))])
    shared = HEAP._replace(perms="r--s")
    assert not confirm([seen(shared, FILE)], [seen(shared, FILE, flags=("mw",))])
