"""Which descriptors of a job are what it inherited from outside: its terminal, its standard streams.

Where we hold the stream ourselves (a job started by `run`) kcmp tells its descriptors, however often they
were duplicated and inherited. A stream that was *opened* once more (/dev/stdin, /dev/tty,
/proc/self/fd/1) is another open file description: then the same terminal or the same pipe tells. Where we
hold nothing (attached to by pid) whatever stands at 0, 1 and 2 is a stream if it is a terminal, a pipe or
a socket whose other end is not in the job.
"""

from __future__ import annotations

import os
import stat

from torpor.linux import kcmp, proc
from torpor.posix.descriptors import O_PATH, info_value, siblings
from torpor.posix.service import Descriptor, Job

TERMINAL = 1 << 16
"""The number of the stream that is the controlling terminal, inherited without a descriptor."""

_TTY = os.makedev(5, 0)
_PTMX = os.makedev(5, 2)

_tty_ranges: list[tuple[int, int, int]] = []


def is_terminal(mode: int, rdev: int) -> bool:
    """Is it a terminal, or /dev/tty? The master end of a pseudo-terminal is not.

    Source: /proc/tty/drivers.
    """
    if not stat.S_ISCHR(mode) or rdev == _PTMX:
        return False
    if not _tty_ranges:
        for line in proc.text("/proc/tty/drivers").splitlines():
            words = line.split()
            if len(words) == 5 and words[4] != "pty:master":
                first, _, last = words[3].partition("-")
                _tty_ranges.append((int(words[2]), int(first), int(last or first)))
    major, minor = os.major(rdev), os.minor(rdev)
    return any(major == m and first <= minor <= last for m, first, last in _tty_ranges)


def role(seen: Descriptor, job: Job) -> int:
    """The number of the stream that a descriptor is, -1 if it is none.

    Descriptors 0, 1 and 2 that share one open file description (a shell's terminal) are streams of their
    own each: at the restart they may be given different files. So objects are told apart by description
    *and* role.
    """
    if seen.flags & O_PATH:
        return -1
    terminal = is_terminal(seen.mode, seen.rdev)
    numbers = _held(seen, job, terminal) or _not_held(seen, job, terminal)
    if not numbers:
        return TERMINAL if terminal and _terminal_from_outside(seen, job) else -1
    if seen.number in numbers:
        return seen.number
    # A duplicate at another number: most often the output, put aside.
    wanted = (0, 1, 2) if seen.access == os.O_RDONLY else (1, 2, 0)
    return next((number for number in wanted if number in numbers), numbers[0])


def is_reopened(seen: Descriptor, job: Job) -> bool:
    """Is this stream an open file description that the job made by opening the stream once more?

    Only to be known where we hold the stream; otherwise /dev/tty is one, all else is taken for inherited.
    """
    held = [stream.fd for stream in job.streams if stream.fd >= 0]
    if held:
        return not any(kcmp.same_file(os.getpid(), fd, seen.pid, seen.number) for fd in held)
    return stat.S_ISCHR(seen.mode) and seen.rdev == _TTY


def _held(seen: Descriptor, job: Job, terminal: bool) -> list[int]:
    """Streams that we hold and that this descriptor is, or was opened from."""
    same, like = [], []
    for stream in job.streams:
        if stream.fd < 0:
            continue
        st = os.fstat(stream.fd)
        if (st.st_dev, st.st_ino) == (seen.dev, seen.ino):
            if kcmp.same_file(os.getpid(), stream.fd, seen.pid, seen.number):
                same.append(stream.number)
            elif terminal or stat.S_ISFIFO(seen.mode):
                like.append(stream.number)
        elif terminal and _TTY not in (seen.rdev, st.st_rdev):
            continue  # the same number in another devpts is another terminal
        elif terminal and is_terminal(st.st_mode, st.st_rdev) and _is_terminal_of(seen, st.st_rdev):
            like.append(stream.number)
    if same and stat.S_IFMT(seen.mode) in (stat.S_IFREG, stat.S_IFDIR) and min(same) > 2:
        return []  # found again by its path, which is better than what a stream of that number could be given
    if same and stat.S_ISCHR(seen.mode) and not terminal and min(same) > 2:
        return []
    return sorted(same or like)


def _not_held(seen: Descriptor, job: Job, terminal: bool) -> list[int]:
    """Streams of a job that was attached to by pid: only the numbers are known."""
    unknown = [stream.number for stream in job.streams if stream.fd < 0]
    if not unknown:
        return []
    if terminal:
        if _master_inside(_real_terminal(seen), job):
            return []
    elif stat.S_ISFIFO(seen.mode):
        if has_both_ends(seen, job):
            return []
    elif not stat.S_ISSOCK(seen.mode) and not stat.S_ISREG(seen.mode):
        return []  # devices are found again by their paths
    root = next(iter(job.processes()), 0)
    if terminal:
        rdev = _real_terminal(seen)
        near = [one for one in job.descriptors if _real_terminal(one) == rdev and rdev]
        found = [one.number for one in near if one.pid == root and one.number in unknown]
    else:
        near = siblings(seen, job)
        found = [one.number for one in near if one.pid == root and one.number in unknown]
        if not found and stat.S_ISFIFO(seen.mode):
            # Not of the first process, but where another one has its standard streams.
            found = [one.number for one in near if one.number in unknown]
    return sorted(set(found))


def has_both_ends(seen: Descriptor, job: Job) -> bool:
    """Are the reading and the writing end of this pipe both open in the job?"""
    access = {one.access for one in siblings(seen, job) if not one.flags & O_PATH}
    return os.O_RDWR in access or len(access) > 1


def _real_terminal(seen: Descriptor) -> int:
    """The device number of the terminal, also of one opened as /dev/tty; 0 if it is none."""
    if not is_terminal(seen.mode, seen.rdev):
        return 0
    return _controlling(seen.pid) if seen.rdev == _TTY else seen.rdev


def _is_terminal_of(seen: Descriptor, rdev: int) -> bool:
    """Is this descriptor open on the terminal `rdev`, under whatever name?"""
    real = _real_terminal(seen)
    if rdev == _TTY:  # our stream is /dev/tty: our own controlling terminal
        rdev = _controlling(os.getpid())
    return real == rdev and real != 0


def _terminal_from_outside(seen: Descriptor, job: Job) -> bool:
    """Is it the controlling terminal of its process, and is the other side of the terminal not in the job?"""
    rdev = _controlling(seen.pid)
    return rdev != 0 and seen.rdev in (_TTY, rdev) and not _master_inside(rdev, job)


def _master_inside(rdev: int, job: Job) -> bool:
    """Does the job itself hold the master end of this pseudo-terminal? Source.

    Drivers/tty/pty.c (tty-index).
    """
    index = str(os.minor(rdev))
    masters = (one for one in job.descriptors if one.rdev == _PTMX and stat.S_ISCHR(one.mode))
    return any(info_value(one.info, "tty-index") in (index, None) for one in masters)


def _controlling(pid: int) -> int:
    """Device number of the controlling terminal of a process, 0 if it has none."""
    try:
        return proc.stat(pid).tty_nr & 0xFFFFFFFF
    except OSError:
        return 0
