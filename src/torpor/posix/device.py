"""Character devices that keep no state for who has them open: /dev/null and its like.

They are known by their device number, which is fixed (Documentation/admin-guide/devices.txt). All that an
open one has is its flags. Its position means nothing and is not even asked for: lseek on /dev/null sets
it to 0.
"""

from __future__ import annotations

import os
import stat

import msgspec

from torpor.model.errors import RestartFailed
from torpor.posix.descriptors import is_type, set_status, status_flags
from torpor.posix.directory import open_again
from torpor.posix.service import Descriptor, DescriptorBase, Job, Restart

STATELESS = {
    os.makedev(1, 3): "/dev/null",
    os.makedev(1, 5): "/dev/zero",
    os.makedev(1, 7): "/dev/full",
    os.makedev(1, 8): "/dev/random",
    os.makedev(1, 9): "/dev/urandom",
}


class Device(msgspec.Struct, frozen=True):
    """An open device without state: the path it was opened by, its number and open flags."""

    name: bytes
    rdev: int
    flags: int


class DeviceService(DescriptorBase):
    name = "device"
    record = Device

    def claims(self, seen: Descriptor) -> bool:
        return is_type(seen, stat.S_IFCHR) and seen.rdev in STATELESS

    def capture(self, fd: int, seen: Descriptor, job: Job) -> Device:
        return Device(os.fsencode(seen.target), seen.rdev, status_flags(fd))

    def create(self, record: Device, restart: Restart) -> int:
        # The path may be another one here (a private /dev of the job, gone now): the number is what counts.
        for path in (os.fsdecode(record.name), STATELESS.get(record.rdev, "")):
            try:
                if os.stat(path).st_rdev == record.rdev:
                    break
            except OSError:
                continue
        else:
            raise RestartFailed(f"there is no {STATELESS.get(record.rdev, os.fsdecode(record.name))} here")
        fd = open_again(path, record.flags, stat.S_IFCHR)
        set_status(fd, record.flags)
        return fd


SERVICE = DeviceService()
