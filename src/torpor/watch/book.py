"""The ledger as the holder keeps it: a file in memory (watch/lines.py), and where each line of it stands.

The file outlives the holder in its supervisor's hands, and a new holder goes on with it.
"""

from __future__ import annotations

import mmap
import os
import struct
import time

from torpor.linux import proc
from torpor.watch import lines

_ABOUT = struct.Struct("<dQQ")
"""On the first page, behind the room for calls: since when; how (_SENDMSG, _LATE); calls without a line."""
_SENDMSG, _LATE = 1, 2
"""sendmsg is wrapped too; the job had run before."""
_ABOUT_AT = 2048
_HOSTS_MOST = 1 << 18
"""Bytes of a hosts file that are looked at."""
UNREAD = ("?", "", 0)
"""What stands for an address that could not be read."""


def create(since: float, with_sendmsg: bool, dropped: int = 0, text: bytes = b"", late: bool = False) -> int:
    """A new file, with lines from before; its descriptor, close-on-exec."""
    fd = os.memfd_create("torpor-ledger", os.MFD_CLOEXEC)
    os.pwrite(fd, _ABOUT.pack(since, _SENDMSG * with_sendmsg | _LATE * late, dropped), _ABOUT_AT)
    os.ftruncate(fd, lines.START)
    os.pwrite(fd, text, lines.START)
    return fd


def about(fd: int) -> tuple[float, bool, int, bool]:
    """Since when (seconds since the epoch); whether sendmsg is wrapped; how many calls found no room; whether the job
    had run before."""
    since, how, dropped = _ABOUT.unpack(os.pread(fd, _ABOUT.size, _ABOUT_AT))
    return since, bool(how & _SENDMSG), dropped, bool(how & _LATE)


def text(fd: int) -> bytes:
    """The lines."""
    return os.pread(fd, os.fstat(fd).st_size - lines.START, lines.START)


def moves(written: bytes) -> tuple[str, ...]:
    """Where addresses are now, `OLD=NEW` each, from the lines."""
    return tuple(host for _, _, _, protocol, host, *_ in lines.parse(written) if protocol == lines.MOVED)


class Book:
    """The ledger that is being written."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._page = mmap.mmap(fd, lines.START)
        self.room = memoryview(self._page)
        """Where calls are received: whoever comes after us finds there which one we owed an answer."""
        self._at: dict[tuple[str, str, int, str], list[int]] = {}
        self._end = lines.START
        self.moves = moves(text(fd))
        for each in text(fd).splitlines(keepends=True):
            ((_, calls, _, protocol, host, port, _, program, _),) = lines.parse(each)
            self._at[protocol, host, port, program] = [self._end, calls]
            self._end += len(each)

    def note(self, protocol: str, host: str, port: int, program: str, task: int) -> None:
        """A task has asked for an address."""
        now = time.time()
        known = self._at.get((protocol, host, port, program))
        if known is not None:
            known[1] += 1
            os.pwrite(self._fd, lines.head(now, known[1]), known[0])
        elif len(self._at) < lines.MOST_LINES:
            pid, name = _process(task), _name(task, host)
            line = lines.line(now, 1, now, protocol, host, port, pid, program, name)
            os.pwrite(self._fd, line, self._end)
            self._at[protocol, host, port, program] = [self._end, 1]
            self._end += len(line)
        else:
            since, how, dropped = _ABOUT.unpack_from(self._page, _ABOUT_AT)
            _ABOUT.pack_into(self._page, _ABOUT_AT, since, how, dropped + 1)


def _process(task: int) -> int:
    """The number of a thread's process, as the process itself sees it; 0 if it is gone."""
    try:
        fields = proc.status(task)
        return proc.inner_pid(proc.status(int(fields["Tgid"])))
    except (OSError, ValueError, KeyError):
        return 0


def _name(task: int, host: str) -> str:
    """What the hosts file that the task sees calls an address."""
    if not host:
        return ""
    try:
        with open(f"/proc/{task}/root/etc/hosts", encoding="utf-8", errors="replace") as file:
            return lines.names(file.read(_HOSTS_MOST)).get(host, "")
    except OSError:
        return ""
