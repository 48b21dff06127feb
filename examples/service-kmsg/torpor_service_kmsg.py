"""An example of a service of one's own: descriptors of /dev/kmsg, the kernel's log, that are open for reading.

torpor itself refuses them: which record such a descriptor would read next is not shown by the kernel, and the log is
that of one boot. Whoever installs this says that a program may go on with what is logged after its restart, which is
right for one that follows the log. That is the kind of decision such a package is for.

Source: drivers/char/mem.c (the device's number), kernel/printk/printk.c (devkmsg_llseek: SEEK_END).
"""

from __future__ import annotations

import fcntl
import os
import stat

import msgspec

from torpor.model.errors import RestartFailed
from torpor.posix.service import Descriptor, DescriptorBase, Job, Restart

KMSG = os.makedev(1, 11)


class KernelLog(msgspec.Struct, frozen=True):
    """name: the path it was opened by. flags: its open flags."""

    name: bytes
    flags: int


class KernelLogService(DescriptorBase):
    name = "kmsg"
    record = KernelLog

    def claims(self, seen: Descriptor) -> bool:
        """Readers only: of a writer torpor goes on to say that it cannot be saved."""
        return stat.S_ISCHR(seen.mode) and seen.rdev == KMSG and seen.access == os.O_RDONLY

    def capture(self, fd: int, seen: Descriptor, job: Job) -> KernelLog:
        return KernelLog(os.fsencode(seen.target), fcntl.fcntl(fd, fcntl.F_GETFL))

    def create(self, record: KernelLog, restart: Restart) -> int:
        path = os.fsdecode(record.name)
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | record.flags & os.O_NONBLOCK)
            os.lseek(fd, 0, os.SEEK_END)
        except OSError as error:
            raise RestartFailed(f"the kernel's log ({path}): {error.strerror}") from None
        restart.say(f"{path} is read on from what is logged from now on")
        return fd


SERVICE = KernelLogService()
