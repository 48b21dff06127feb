"""signalfd: signals that are taken by reading.

The kernel keeps the set of signals (`sigmask` in fdinfo) and the flags. Signals that wait are pending in
the process, not here.
"""

from __future__ import annotations

import os

import msgspec

from torpor.linux import signalfd
from torpor.posix.descriptors import fresh_info, info_value, set_status, status_flags
from torpor.posix.service import Descriptor, DescriptorBase, Job, Restart


class SignalSet(msgspec.Struct, frozen=True):
    """A signalfd: bit n - 1 of `mask` is signal n."""

    flags: int
    mask: int


class SignalfdService(DescriptorBase):
    name = "signalfd"
    record = SignalSet

    def claims(self, seen: Descriptor) -> bool:
        return seen.target == "anon_inode:[signalfd]"

    def capture(self, fd: int, seen: Descriptor, job: Job) -> SignalSet:
        return SignalSet(status_flags(fd), int(info_value(fresh_info(fd), "sigmask") or "0", 16))

    def create(self, record: SignalSet, restart: Restart) -> int:
        fd = signalfd.create(record.mask, os.O_CLOEXEC | os.O_NONBLOCK)
        set_status(fd, record.flags)
        return fd


SERVICE = SignalfdService()
