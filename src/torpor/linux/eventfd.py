"""eventfd(2): creating one with any count. Python's os.eventfd takes 32 bits at creation."""

from __future__ import annotations

import os

from torpor.linux.masks import REASON, masked

_LARGEST_START = (1 << 32) - 1
_tells: bool | None = None


def create(count: int, flags: int) -> int:
    """A new eventfd. count: 0 to 2**64 - 2. flags: os.EFD_SEMAPHORE, os.EFD_NONBLOCK, os.EFD_CLOEXEC."""
    fd = os.eventfd(min(count, _LARGEST_START), flags)
    if count > _LARGEST_START:
        os.eventfd_write(fd, count - _LARGEST_START)
    return fd


def is_semaphore(fd: int, count: int) -> bool:
    """Found out by reading: a semaphore gives 1 where a counter gives all it has (eventfd(2)). The count is `count`
    before and after; nobody else may use it in between. Never waits."""
    extra = max(0, 2 - count)
    if extra:
        os.eventfd_write(fd, extra)
    if os.eventfd_read(fd) != 1:
        if count:
            os.eventfd_write(fd, count)
        return False
    if extra == 0:
        os.eventfd_write(fd, 1)
    elif extra == 2:
        os.eventfd_read(fd)
    return True


def tells() -> bool:
    """Does fdinfo say whether an eventfd is a semaphore? Looked up once."""
    global _tells
    if _tells is None:
        _tells = probe()[0]
    return _tells


def probe() -> tuple[bool, str]:
    """Does fdinfo tell a semaphore (Linux 6.5)? Without it an eventfd is read from, to find out."""
    if masked("eventfd_semaphore"):
        return False, REASON
    fd = create(0, os.EFD_CLOEXEC)
    try:
        with open(f"/proc/self/fdinfo/{fd}") as info:
            if "eventfd-semaphore" in info.read():
                return True, ""
        return False, "needs Linux 6.5; eventfds are read from, to find out"
    finally:
        os.close(fd)
