"""What is believed of memory, decided without a kernel; and what the kernel says of this process' own."""

from __future__ import annotations

import ctypes
import mmap
import os
from types import SimpleNamespace

import pytest

from torpor.checkpoint import tracking
from torpor.checkpoint.tracking import SMALLEST, Unchanged, rows
from torpor.linux import pagemap, proc, uio, userfaultfd
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


def test_what_lies_side_by_side_is_noted_together() -> None:
    def area(start: int, end: int, perms: str = "rw-p", ino: int = 0, path: str = "") -> proc.Area:
        return proc.Area(start, end, perms, 0, 0, ino, path)

    found = [
        area(0, 2), area(2, 3, "r--p"), area(3, 5), area(6, 7), area(7, 8, "rw-s", 5), area(8, 9, "---p"),
        area(9, 10, "r-xp", 0, "[vdso]"), area(10, 11),
    ]  # fmt: skip
    assert [[one.start for one in row] for row in rows(found)] == [[0, 2, 3], [6], [8], [10]]


def test_an_area_that_was_split_for_a_moment_can_be_moved_whole() -> None:
    """A page is protected when writes come to be noted, and not any more afterwards."""
    able, why = userfaultfd.probe_wp()
    if not able:
        pytest.skip(why)
    libc = uio.libc
    size = 2 * SMALLEST + PAGE
    room = mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    other = mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    room[:] = b"x" * size
    start, page = uio.address_of(room), uio.address_of(room) + SMALLEST
    protect, remap = libc.mprotect, libc.mremap
    protect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    remap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t, ctypes.c_int, ctypes.c_void_p]
    remap.restype = ctypes.c_void_p
    fd = userfaultfd.create()
    try:
        userfaultfd.note_writes(fd)
        assert protect(page, PAGE, 1) == 0
        noted = SimpleNamespace(fd=fd, fresh=[])
        tracking._note(os.getpid(), noted)  # type: ignore[arg-type]
        assert protect(page, PAGE, 3) == 0
        away = uio.address_of(other)
        assert remap(start, size, size, 3, away) == away, os.strerror(ctypes.get_errno())
        assert remap(away, size, size, 3, start) == start, os.strerror(ctypes.get_errno())
        assert room[:] == b"x" * size
        assert any(low <= start and start + size <= high for low, high in tracking.merged(noted.fresh))
    finally:
        os.close(fd)
