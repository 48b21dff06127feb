"""What is believed of memory, decided without a kernel; and what the kernel says of this process' own."""

from __future__ import annotations

import mmap
import os

import pytest

from torpor.checkpoint.tracking import Unchanged
from torpor.linux import pagemap, uio, userfaultfd
from torpor.posix.memory.pages import WINDOW, Window, pack
from torpor.store.save import Kept

PAGE = 4096


@pytest.mark.parametrize(
    ("changed", "same"),
    [
        ([], True),
        ([(0, WINDOW)], True),
        ([(0, WINDOW + 1)], False),
        ([(2 * WINDOW - PAGE, 2 * WINDOW)], False),
        ([(2 * WINDOW, 9 * WINDOW)], True),
        ([(0, 9 * WINDOW)], False),
        ([(0, PAGE), (WINDOW + PAGE, WINDOW + 2 * PAGE), (8 * WINDOW, 9 * WINDOW)], False),
    ],
)
def test_a_window_is_what_it_was_if_nothing_in_it_has_changed(changed: list[tuple[int, int]], same: bool) -> None:
    record = pack([(Window(0, 5), 0), (Window(WINDOW, 5), 1), (Window(9 * WINDOW, 5), 0)])
    unchanged = Unchanged({7: (record, changed)}, Kept([b"other", b"name"]), None)
    assert unchanged.name(7, Window(WINDOW, 5)) == (b"name" if same else None)
    assert unchanged.name(7, Window(WINDOW, 4)) is None, "other pages are there now"
    assert unchanged.name(7, Window(3 * WINDOW, 5)) is None, "nothing was known of it"
    assert unchanged.name(8, Window(WINDOW, 5)) is None, "another process"


def test_the_kernel_notes_writes() -> None:
    able, why = userfaultfd.probe_wp()
    if not able:
        pytest.skip(why)
    with mmap.mmap(-1, 8 * PAGE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as room:
        start = uio.address_of(room)
        room[:] = b"x" * len(room)
        fd = userfaultfd.create()
        pages = pagemap.Pagemap(os.getpid())
        try:
            assert not pages.noted(start)
            assert pages.written(start, start + 8 * PAGE) is None
            userfaultfd.note_writes(fd)
            userfaultfd.register(fd, start, 8 * PAGE)
            assert pages.noted(start)
            assert pages.written(start, start + 8 * PAGE) == [(start, start + 8 * PAGE)]
            assert pages.written(start, start + 8 * PAGE) == []
            room[PAGE] = 1
            room[7 * PAGE] = 1
            assert pages.written(start, start + 8 * PAGE) == [
                (start + PAGE, start + 2 * PAGE), (start + 7 * PAGE, start + 8 * PAGE)
            ]  # fmt: skip
        finally:
            pages.close()
            os.close(fd)
        pages = pagemap.Pagemap(os.getpid())
        assert not pages.noted(start), "it ends with its descriptor"
        pages.close()
