"""Slaves of pseudo-terminals, and /dev/tty, where they are not the terminal that the job has inherited.

What the kernel keeps for an open one is its flags, and whether the terminal is in exclusive use (TIOCEXCL, which is the
terminal's, but can only be asked of a slave). All else is the pair's (posix/pty_master.py).

If the master is not in the job, the pair ends with the old job: its slave comes back *hung up*, as it is for every
program whose terminal goes away; so does one that was hung up already.

/dev/tty is a name of the controlling terminal at the moment it is opened: it is opened again by a process that has the
terminal as its own for that long.
"""

from __future__ import annotations

import fcntl
import os
import stat

import msgspec

from torpor.linux import proc, pty
from torpor.model.errors import Refusal, Refused, RestartFailed
from torpor.posix import pty_master, terminal
from torpor.posix.descriptors import AT_OPEN, O_LARGEFILE, is_type, reopen, set_status, status_flags
from torpor.posix.service import Descriptor, DescriptorBase, Job, Restart

_WAY_OUT = "close it before the checkpoint"


class PtySlave(msgspec.Struct, frozen=True):
    """An open slave. master: the object that is its master, -1 if it comes back hung up. index: the N of /dev/pts/N.
    tty: it was opened as /dev/tty. outside: it was not hung up, but its master is not in the job."""

    index: int
    flags: int
    master: int = -1
    tty: bool = False
    exclusive: bool = False
    outside: bool = False


class PtySlaveService(DescriptorBase):
    name = "pty_slave"
    record = PtySlave

    def claims(self, seen: Descriptor) -> bool:
        return is_type(seen, stat.S_IFCHR) and (pty.is_slave(seen.rdev) or seen.rdev == pty.TTY)

    def survey(self, seen: Descriptor, job: Job) -> Refusal | None:
        if seen.rdev != pty.TTY:
            return None
        try:
            rdev = terminal.device_of(proc.stat(seen.pid).tty_nr & 0xFFFFFFFF)
        except OSError:
            return None
        return None if not rdev or pty.is_slave(rdev) else _other(seen)

    def capture(self, fd: int, seen: Descriptor, job: Job) -> PtySlave:
        tty = seen.rdev == pty.TTY
        record = PtySlave(0 if tty else os.minor(seen.rdev), status_flags(fd), tty=tty)
        if pty.hung_up(fd):
            return record
        rdev = pty.device(fd)
        if not pty.is_slave(rdev):
            raise Refused([_other(seen)])
        exclusive = bool(pty.get(fd, pty.TIOCGEXCL))
        record = msgspec.structs.replace(record, index=os.minor(rdev), exclusive=exclusive)
        for master in pty_master.masters(job):
            if pty_master.index_of(master) == record.index and (record.tty or pty_master.devpts_of(master) == seen.dev):
                number = job.object_of(master.pid, master.number)
                return msgspec.structs.replace(record, master=-1 if number is None else number)
        return msgspec.structs.replace(record, outside=True)

    def needs(self, record: PtySlave) -> tuple[int, ...]:
        return (record.master,) if record.master >= 0 else ()

    def create(self, record: PtySlave, restart: Restart) -> int:
        try:
            if record.master >= 0:
                return _open(restart.object(record.master), record)
            if record.outside:
                restart.say(f"/dev/pts/{record.index}, a terminal of another program, is hung up now")
            return _hung_up(record)
        except OSError as error:
            raise RestartFailed(f"/dev/pts/{record.index} cannot be opened again: {error.strerror}") from None

    def finish(self, record: PtySlave, fd: int, restart: Restart) -> None:
        if record.exclusive and record.master >= 0:
            fcntl.ioctl(fd, pty.TIOCEXCL)


def _open(master: int, record: PtySlave) -> int:
    """Open the slave in the way it was opened. Raises OSError."""
    if not record.tty and not record.flags & O_LARGEFILE:
        fd = pty.peer(master, record.flags & (AT_OPEN | os.O_CLOEXEC) | os.O_NONBLOCK)
        set_status(fd, record.flags)
        return fd
    slave = pty.peer(master, os.O_RDWR | os.O_NONBLOCK)
    try:
        if not record.tty:
            return reopen(slave, record.flags)
        fd = pty.open_as_tty(slave, record.flags & AT_OPEN)
    finally:
        os.close(slave)
    set_status(fd, record.flags)
    return fd


def _hung_up(record: PtySlave) -> int:
    """A slave whose master is closed; under the old number if that is the next one, anyway."""
    master = os.open("/dev/ptmx", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
    try:
        pty.put(master, pty.TIOCSPTLCK, 0)
        return _open(master, record)
    finally:
        os.close(master)


def _other(seen: Descriptor) -> Refusal:
    return seen.refuse(f"a terminal ({seen.target}) that is not the one the job inherited", _WAY_OUT)


SERVICE = PtySlaveService()
