"""Pairs of pseudo-terminals whose master the job holds.

The kernel keeps for a pair: its number (the N of /dev/pts/N), settings, window size, what is in it in both directions
(posix/pty_queue.py), whose controlling terminal it is and which process group is in front, and of the master: packet
mode and the lock. A pair ends with its master, which has exactly one open file description; so its record is the
pair's. Slaves have records of their own (posix/pty_slave.py).

Numbers are all over the place (in variables, in names that programs have looked up), so they come back: in the host's
/dev/pts if all numbers of the job are free there, as they are after a crash of the job; else in a devpts of the job's
own, where they are free to choose. Terminals of the host are then not at their paths in the job's view (descriptors
of them work all the same). Where even that is not possible, a pair gets another number, and the user is told.

The session leader takes the terminal as its own when it makes its session (checkpoint/plant.py), so that children
inherit it; the group in front is set once all groups exist (checkpoint/takeover.py).

Not kept: input written to a slave that nobody has ever opened; a group in front that has no members any more.
"""

from __future__ import annotations

import fcntl
import os
import select
import stat

import msgspec

from torpor.linux import proc, pty
from torpor.model.data import CHUNK_SIZE
from torpor.model.errors import CheckpointFailed, Refusal, Refused, RestartFailed
from torpor.posix import pty_queue
from torpor.posix.descriptors import O_PATH, info_value, is_type, set_status, status_flags
from torpor.posix.pty_queue import Queues
from torpor.posix.service import Descriptor, DescriptorBase, Job, Restart

_PTS = "/dev/pts"


class PtyMaster(msgspec.Struct, frozen=True):
    """A pair, as its master shows it."""

    index: int
    family: tuple[int, ...]
    """The numbers of all pairs of the job."""
    flags: int
    termios: bytes
    """struct termios2."""
    window: bytes
    """struct winsize."""
    opened: bool
    """The slave has been opened at least once (if nobody has it open now, the master finds its other end closed)."""
    packet: bool = False
    locked: bool = False
    session: int = 0
    """The session leader (pid in the job) whose controlling terminal it is; 0: nobody's."""
    foreground: int = 0
    mode: int = 0
    """Access bits and owner of the slave; 0 if the slave was not open."""
    uid: int = 0
    gid: int = 0
    queues: Queues = Queues()
    """Without the output."""
    output: tuple[int, ...] = ()
    """Chunks."""
    output_size: int = 0


class PtyMasterService(DescriptorBase):
    name = "pty_master"
    record = PtyMaster

    def claims(self, seen: Descriptor) -> bool:
        return is_type(seen, stat.S_IFCHR) and seen.rdev == pty.PTMX

    def capture(self, fd: int, seen: Descriptor, job: Job) -> PtyMaster:
        index = pty.get(fd, pty.TIOCGPTN)
        slaves = slaves_of(seen, index, job)
        copies = tuple(job.hold(one.pid, one.number) for one in slaves if one.rdev != pty.TTY)
        opened = bool(copies) or bool(_events(fd) & select.POLLHUP) or _held_outside(index, devpts_of(seen))
        raw = pty_queue.Settings(pty_queue.settings(fd))
        if (raw.canonical or raw.echo) and copies and pty.unread(copies[0]) > pty_queue.ROOM - 300:
            raise Refused([typed_too_much(seen, index)])
        queues = pty_queue.look(fd, opened, copies)
        if queues is None:
            raise CheckpointFailed(f"what is in the pseudo-terminal {index} could not be looked at; try again")
        whole = memoryview(queues.output)
        inode = os.fstat(copies[0]) if copies else None
        return PtyMaster(
            index=index,
            family=tuple(sorted(index_of(one) for one in masters(job))),
            flags=status_flags(fd),
            termios=raw.raw,
            window=fcntl.ioctl(fd, pty.TIOCGWINSZ, bytes(8)),
            opened=opened,
            packet=bool(pty.get(fd, pty.TIOCGPKT)),
            locked=bool(pty.get(fd, pty.TIOCGPTLCK)),
            session=_session(fd, job),
            foreground=_foreground(fd, job),
            mode=stat.S_IMODE(inode.st_mode) if inode else 0,
            uid=inode.st_uid if inode else 0,
            gid=inode.st_gid if inode else 0,
            queues=msgspec.structs.replace(queues, output=b""),
            output=tuple(job.sink.put(whole[at : at + CHUNK_SIZE]) for at in range(0, len(whole), CHUNK_SIZE)),
            output_size=len(whole),
        )

    def create(self, record: PtyMaster, restart: Restart) -> int:
        ground: Ground = restart.shared(("pty", 0), lambda: Ground(record.family, restart), Ground.close)
        try:
            master = ground.open(record.index, restart)
            try:
                self._set_up(master, record, restart)
            except BaseException:
                os.close(master)
                raise
        except OSError as error:
            raise RestartFailed(f"the pseudo-terminal {record.index} cannot be made again: {error.strerror}") from None
        return master

    def _set_up(self, master: int, record: PtyMaster, restart: Restart) -> None:
        pty.put(master, pty.TIOCSPTLCK, 0)
        fcntl.ioctl(master, pty.TIOCSWINSZ, record.window)
        pty_queue.set_settings(master, record.termios)
        if record.packet:
            pty.put(master, pty.TIOCPKT, 1)
        if record.opened:
            slave = pty.peer(master, os.O_RDWR | os.O_NONBLOCK)
            try:
                if record.mode:
                    _give_back(slave, record)
                output = b"".join(bytes(restart.source.get(ref)) for ref in record.output)[: record.output_size]
                queues = msgspec.structs.replace(record.queues, output=output)
                if queues != Queues():
                    pty_queue.fill(master, slave, queues, record.termios)
            finally:
                os.close(slave)
        set_status(master, record.flags)

    def finish(self, record: PtyMaster, fd: int, restart: Restart) -> None:
        if record.locked:
            pty.put(fd, pty.TIOCSPTLCK, 1)


class Ground:
    """Where the job's pairs are made: the host's devpts, or one of the job's own if a number is taken there.

    All masters are opened at once, and kept until they are asked for: whether a number is free is known only then.
    """

    def __init__(self, family: tuple[int, ...], restart: Restart) -> None:
        self.instance = -1
        self._kept = self._reserve(family)
        taken = next((index for index in family if index not in self._kept), -1)
        if taken >= 0:
            try:
                instance = restart.devpts()
            except OSError:
                return  # other numbers, then
            self.close()
            self.instance = instance
            restart.say(f"{_PTS}/{taken} is taken on this host: the job has pseudo-terminals of its own in {_PTS}")

    def _reserve(self, family: tuple[int, ...]) -> dict[int, int]:
        """Masters of those numbers, by number, as far as they are free: a new pair has the lowest free one."""
        kept: dict[int, int] = {}
        others: list[int] = []
        got = -1
        try:
            while got < max(family, default=-1):
                master = self._new()
                got = pty.get(master, pty.TIOCGPTN)
                if got in family:
                    kept[got] = master
                else:
                    others.append(master)
        except OSError:
            pass  # no more are to be had
        finally:
            for fd in others:
                os.close(fd)
        return kept

    def open(self, wanted: int, restart: Restart) -> int:
        """A master of that number, if it is to be had. Raises OSError."""
        if wanted in self._kept:
            return self._kept.pop(wanted)
        low: list[int] = []
        got = -1
        try:
            while got < wanted:
                low.append(self._new())
                got = pty.get(low[-1], pty.TIOCGPTN)
            master = low.pop()
        except OSError:
            if not low:
                raise
            master = low.pop()  # no more are to be had
        finally:
            for fd in low:
                os.close(fd)
        got = pty.get(master, pty.TIOCGPTN)
        if got != wanted:
            restart.say(f"{_PTS}/{wanted} is {_PTS}/{got} now")
        return master

    def _new(self) -> int:
        flags = os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC
        return os.open("/dev/ptmx", flags) if self.instance < 0 else os.open("ptmx", flags, dir_fd=self.instance)

    def close(self) -> None:
        """Give up what was kept and not asked for. The instance is the restart's."""
        while self._kept:
            os.close(self._kept.popitem()[1])


def masters(job: Job) -> list[Descriptor]:
    """All descriptors of masters in the job."""
    return [
        one
        for one in job.descriptors
        if one.rdev == pty.PTMX and stat.S_ISCHR(one.mode) and not one.flags & O_PATH and index_of(one) >= 0
    ]


def index_of(master: Descriptor) -> int:
    """The number of a master's pair, from fdinfo; -1 if it is not told."""
    return int(info_value(master.info, "tty-index") or -1)


def devpts_of(master: Descriptor) -> int:
    """st_dev of the devpts instance that a master belongs to.

    /dev/ptmx belongs to what is mounted at the `pts` beside it (Documentation/filesystems/devpts.rst).
    """
    try:
        return os.stat(f"/proc/{master.pid}/root{os.path.dirname(master.target)}/pts").st_dev
    except OSError:
        return master.dev


def slaves_of(master: Descriptor, index: int, job: Job) -> list[Descriptor]:
    """Descriptors of the slave of a pair, as far as their names tell."""
    found = [one for one in job.descriptors if pty.is_slave(one.rdev) and os.minor(one.rdev) == index]
    found = [one for one in found if stat.S_ISCHR(one.mode) and not one.flags & O_PATH]
    if not found:
        return []
    instance = devpts_of(master)
    return [one for one in found if one.dev == instance and not one.target.endswith(" (deleted)")]


def typed_too_much(seen: Descriptor, index: int) -> Refusal:
    return seen.refuse(
        f"a pseudo-terminal ({_PTS}/{index}) with more typed into it than was read", "try again when it was read"
    )


def _events(fd: int) -> int:
    poll = select.poll()
    poll.register(fd, 0)
    return next((found for _, found in poll.poll(0)), 0)


def _held_outside(index: int, instance: int) -> bool:
    """Has anybody the slave open? Asked only where the job has not."""
    for pid in os.listdir("/proc"):
        if not pid.isdigit():
            continue
        try:
            for number in proc.descriptors(int(pid)):
                st = os.stat(f"/proc/{pid}/fd/{number}")
                if pty.is_slave(st.st_rdev) and os.minor(st.st_rdev) == index and st.st_dev == instance:
                    return True
        except OSError:
            continue  # gone, or not ours to look at
    return False


def _session(fd: int, job: Job) -> int:
    try:
        leader = pty.get(fd, pty.TIOCGSID)
    except OSError:
        return 0
    return job.vpid(leader) if leader > 0 else 0


def _foreground(fd: int, job: Job) -> int:
    """The group in front, as the job sees it."""
    try:
        group = pty.get(fd, pty.TIOCGPGRP)
    except OSError:
        return 0
    for pid in job.processes():
        if proc.stat(pid).pgrp == group:
            return proc.inner_pid(proc.status(pid), "NSpgid")
    return 0


def _give_back(slave: int, record: PtyMaster) -> None:
    """Owner and access bits of the slave, as far as we may."""
    st = os.fstat(slave)
    if (st.st_uid, st.st_gid) != (record.uid, record.gid):
        try:
            os.fchown(slave, record.uid, record.gid)
        except OSError:
            pass
    try:
        os.fchmod(slave, record.mode)
    except OSError:
        pass


SERVICE = PtyMasterService()
