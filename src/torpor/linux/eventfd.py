"""eventfd(2): creating one with any count. Python's os.eventfd takes 32 bits at creation."""

from __future__ import annotations

import os

from torpor.linux.masks import REASON, masked

_LARGEST_START = (1 << 32) - 1


def create(count: int, flags: int) -> int:
    """A new eventfd. count: 0 to 2**64 - 2. flags: os.EFD_SEMAPHORE, os.EFD_NONBLOCK, os.EFD_CLOEXEC."""
    fd = os.eventfd(min(count, _LARGEST_START), flags)
    if count > _LARGEST_START:
        os.eventfd_write(fd, count - _LARGEST_START)
    return fd


def tells() -> bool:
    """Is what fdinfo says of semaphores to be believed? Not where TORPOR_WITHOUT=eventfd_semaphore masks it."""
    return not masked("eventfd_semaphore")


def probe() -> tuple[bool, str]:
    """Does fdinfo tell a semaphore (Linux 6.5)? Without it every eventfd is taken for a plain counter."""
    if not tells():
        return False, REASON
    fd = create(0, os.EFD_CLOEXEC)
    try:
        with open(f"/proc/self/fdinfo/{fd}") as info:
            if "eventfd-semaphore" in info.read():
                return True, ""
        return False, "needs Linux 6.5; every eventfd is taken for a plain counter"
    finally:
        os.close(fd)
