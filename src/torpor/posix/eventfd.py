"""eventfd: a counter.

fdinfo shows the count (hexadecimal) and, from Linux 6.5, whether it is a semaphore. Older kernels show that nowhere:
there it is read from, which tells, and what was taken is put back, by a process that outlives us (apart.py). The job is
stopped meanwhile; edge-triggered watchers (epoll(7)) are told once more.
"""

from __future__ import annotations

import os

import msgspec

from torpor.linux import eventfd
from torpor.model.errors import CheckpointFailed
from torpor.posix.apart import apart
from torpor.posix.descriptors import fresh_info, info_value, set_status, status_flags
from torpor.posix.service import Descriptor, DescriptorBase, Job, Restart

PATIENCE = 10.0
"""Seconds that four system calls may take on a busy machine."""


class EventCounter(msgspec.Struct, frozen=True):
    """An eventfd: its count and kind."""

    flags: int
    count: int
    semaphore: bool = False


class EventService(DescriptorBase):
    name = "eventfd"
    record = EventCounter

    def claims(self, seen: Descriptor) -> bool:
        return seen.target == "anon_inode:[eventfd]"

    def capture(self, fd: int, seen: Descriptor, job: Job) -> EventCounter:
        record = parse(fresh_info(fd), status_flags(fd))
        if eventfd.tells():
            return record
        semaphore = apart(lambda: bytes([eventfd.is_semaphore(fd, record.count)]), PATIENCE)
        if semaphore is None:
            raise CheckpointFailed(f"descriptor {seen.number} of process {seen.pid}: the eventfd does not answer")
        return msgspec.structs.replace(record, semaphore=semaphore == b"\1")

    def create(self, record: EventCounter, restart: Restart) -> int:
        semaphore = os.EFD_SEMAPHORE if record.semaphore else 0
        fd = eventfd.create(record.count, os.EFD_CLOEXEC | os.EFD_NONBLOCK | semaphore)
        set_status(fd, record.flags)
        return fd


def parse(info: list[str], flags: int) -> EventCounter:
    """The record, from the lines of fdinfo."""
    count = int(info_value(info, "eventfd-count") or "0", 16)
    return EventCounter(flags, count, info_value(info, "eventfd-semaphore") == "1")


SERVICE = EventService()
