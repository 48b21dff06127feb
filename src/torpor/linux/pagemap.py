"""Which pages of a process hold data of its own, and which were written to: the PAGEMAP_SCAN ioctl (Linux 6.7), or
/proc/PID/pagemap.

Source: Documentation/admin-guide/mm/pagemap.rst.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import struct
from array import array

from torpor.linux import proc
from torpor.linux.masks import REASON, masked

PAGE = 4096

_PAGEMAP_SCAN = 0xC0606610
_IS_FILE, _IS_PRESENT, _IS_SWAPPED, _IS_PFNZERO, _IS_GUARD = 1 << 2, 1 << 3, 1 << 4, 1 << 5, 1 << 8
_IS_WRITTEN, _IS_HUGE = 1 << 1, 1 << 6
_WP_MATCHING, _CHECK_WPASYNC = 1, 2
_REGIONS = 4096

# Bits of a pagemap entry.
_PRESENT, _SWAPPED, _FILE, _GUARD = 1 << 63, 1 << 62, 1 << 61, 1 << 58


class Pagemap:
    """/proc/PID/pagemap of one process, opened once."""

    def __init__(self, pid: int) -> None:
        self._fd = proc.open_memory(pid, "pagemap")
        self._scan = not masked("pagemap_scan")
        self._guards = True
        """Does the kernel tell guard pages (MADV_GUARD_INSTALL) from others? Since 6.15."""
        self._room = (ctypes.c_uint64 * (3 * _REGIONS))()

    def close(self) -> None:
        os.close(self._fd)

    def private(self, start: int, end: int, file: bool = True) -> list[tuple[int, int]]:
        """Runs (start, end) of pages that are neither absent, nor the zero page, nor a page of the mapped file. file:
        can there be such? To tell, the kernel looks at each page: it takes seven times as long (20 ms and not 3 for
        each GiB of 4K pages; fs/proc/task_mmu.c, pagemap_page_category)."""
        if self._scan:
            while True:
                unwanted = _IS_PFNZERO | (_IS_FILE if file else 0) | (_IS_GUARD if self._guards else 0)
                try:
                    return self._by_scan(start, end, unwanted, unwanted, _IS_PRESENT | _IS_SWAPPED)
                except OSError as error:
                    if error.errno not in (22, 25):  # EINVAL, ENOTTY: an older kernel
                        raise
                    if not self._guards:
                        self._scan = False
                        break
                    self._guards = False
        return self._by_entries(start, end, _FILE | _GUARD)

    def anonymous(self, start: int, end: int) -> list[tuple[int, int]]:
        """Runs of pages that are in memory, anonymous, and not the zero page; none where the kernel has no
        PAGEMAP_SCAN."""
        return self._if_told(start, end, _IS_PFNZERO | _IS_FILE | _IS_PRESENT, _IS_PFNZERO | _IS_FILE)

    def huge(self, start: int, end: int) -> list[tuple[int, int]]:
        """Runs of pages that are parts of huge ones, mapped as such; none where the kernel has no PAGEMAP_SCAN."""
        return self._if_told(start, end, _IS_HUGE, 0)

    def _if_told(self, start: int, end: int, all_of: int, inverted: int) -> list[tuple[int, int]]:
        if not self._scan:
            return []
        try:
            return self._by_scan(start, end, all_of, inverted, 0)
        except OSError as error:
            if error.errno not in (22, 25):
                raise
            return []

    def guards(self, start: int, end: int) -> list[tuple[int, int]]:
        """Runs of guard pages."""
        if self._scan and self._guards:
            try:
                return self._by_scan(start, end, _IS_GUARD, 0, 0)
            except OSError as error:
                if error.errno not in (22, 25):
                    raise
        return []

    def present(self, start: int, end: int) -> list[tuple[int, int]]:
        """Runs of pages that this process has mapped or swapped, of whatever kind."""
        return self._by_entries(start, end, 0)

    def written(self, start: int, end: int) -> list[tuple[int, int]] | None:
        """Runs of pages that were written to since the last call (or `userfaultfd.register`), in a range within one
        area; from now on they count as not written. Pages that are not there are left out. None if writes are not noted
        there, or not for all of it. Raises OSError."""
        try:
            return self._by_scan(
                start, end, _IS_WRITTEN, 0, _IS_PRESENT | _IS_SWAPPED, _WP_MATCHING | _CHECK_WPASYNC
            )  # fmt: skip
        except PermissionError:
            return None

    def noted(self, start: int) -> bool:
        """Are writes noted in the area at `start`? Raises OSError."""
        try:
            self._by_scan(start, start + PAGE, _IS_WRITTEN, 0, _IS_PRESENT, _CHECK_WPASYNC)
        except PermissionError:
            return False
        return True

    def _by_scan(
        self, start: int, end: int, all_of: int, inverted: int, any_of: int, flags: int = 0
    ) -> list[tuple[int, int]]:
        runs: list[tuple[int, int]] = []
        room = self._room
        while start < end:
            arg = bytearray(
                struct.pack(
                    "<12Q", 96, flags, start, end, 0, ctypes.addressof(room), _REGIONS, 0,
                    inverted, all_of, any_of, any_of or all_of,
                )
            )  # fmt: skip
            count = fcntl.ioctl(self._fd, _PAGEMAP_SCAN, arg)
            (walked,) = struct.unpack_from("<Q", arg, 32)
            for i in range(0, 3 * count, 3):
                if runs and runs[-1][1] == room[i]:
                    runs[-1] = (runs[-1][0], room[i + 1])
                else:
                    runs.append((room[i], room[i + 1]))
            if walked <= start:
                break
            start = walked
        return runs

    def _by_entries(self, start: int, end: int, unwanted: int) -> list[tuple[int, int]]:
        runs: list[tuple[int, int]] = []
        at = start
        while at < end:
            raw = os.pread(self._fd, min((end - at) // PAGE, 1 << 17) * 8, at // PAGE * 8)
            if not raw:
                break
            entries = array("Q", raw)
            if any(entries):
                for i, entry in enumerate(entries):
                    if entry & (_PRESENT | _SWAPPED) and not entry & unwanted:
                        page = at + i * PAGE
                        if runs and runs[-1][1] == page:
                            runs[-1] = (runs[-1][0], page + PAGE)
                        else:
                            runs.append((page, page + PAGE))
            at += len(entries) * PAGE
        return runs


def probe() -> tuple[bool, str]:
    """Does the kernel have PAGEMAP_SCAN?"""
    if masked("pagemap_scan"):
        return False, REASON
    arg = bytearray(struct.pack("<12Q", 96, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0))
    fd = os.open("/proc/self/pagemap", os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.ioctl(fd, _PAGEMAP_SCAN, arg)
    except OSError as error:
        if error.errno == 25:
            return False, "needs Linux 6.7; /proc/PID/pagemap is read instead"
    finally:
        os.close(fd)
    return True, ""
