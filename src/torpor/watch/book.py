"""The ledger as the holder keeps it: a file in memory (watch/lines.py), and where each line of it stands.

The file outlives the holder in its supervisor's hands, and a new holder goes on with it.
"""

from __future__ import annotations

import mmap
import os
import struct
import time

from torpor.linux import proc
from torpor.named_tuple import NamedTuple
from torpor.watch import lines

_ABOUT = struct.Struct("<dQQ")
"""On the first page, behind the room for calls: since when; how (_SENDMSG, ...); calls without a line."""
_SENDMSG, _LATE, _ANSWERS = 1, 2, 4
"""sendmsg is wrapped too; the job had run before; answers of name servers are looked at."""
_ABOUT_AT = 2048
_HOSTS_MOST = 1 << 18
"""Bytes of a hosts file that are looked at."""
UNREAD = ("?", "", 0)
"""What stands for an address that could not be read."""


class About(NamedTuple):
    """Of all of it. since: seconds since the epoch.  with_sendmsg: that is wrapped.  dropped: calls that found no room.
    late: the job had run before.  with_answers: those of name servers are looked at."""

    since: float
    with_sendmsg: bool = False
    dropped: int = 0
    late: bool = False
    with_answers: bool = False


def create(about: About, text: bytes = b"") -> int:
    """A new file, with lines from before; its descriptor, close-on-exec."""
    fd = os.memfd_create("torpor-ledger", os.MFD_CLOEXEC)
    how = _SENDMSG * about.with_sendmsg | _LATE * about.late | _ANSWERS * about.with_answers
    os.pwrite(fd, _ABOUT.pack(about.since, how, about.dropped), _ABOUT_AT)
    os.ftruncate(fd, lines.START)
    os.pwrite(fd, text, lines.START)
    return fd


def about(fd: int) -> About:
    """Of a file."""
    since, how, dropped = _ABOUT.unpack(os.pread(fd, _ABOUT.size, _ABOUT_AT))
    return About(since, bool(how & _SENDMSG), dropped, bool(how & _LATE), bool(how & _ANSWERS))


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
        self._names: dict[str, set[str]] = {}
        self._names_left = lines.MOST_NAMES
        self._listeners: set[str] = set()
        self.moves = moves(text(fd))
        for each in text(fd).splitlines(keepends=True):
            ((_, calls, _, protocol, host, port, _, program, name),) = lines.parse(each)
            if protocol == lines.CALLED:
                self._know(host, name)
            elif protocol == lines.LISTENER:
                self._listeners.add(program)
            elif protocol != lines.MOVED:
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
            self._at[protocol, host, port, program] = [self._end, 1]
            self._append(line)
        else:
            since, how, dropped = _ABOUT.unpack_from(self._page, _ABOUT_AT)
            _ABOUT.pack_into(self._page, _ABOUT_AT, since, how, dropped + 1)

    def call(self, host: str, name: str) -> None:
        """A name was looked up, and has that address."""
        if self._know(host, name):
            self._append(lines.called(host, name))

    def listen(self, program: str) -> None:
        """A program wants to see system calls itself."""
        if program not in self._listeners and len(self._listeners) < lines.MOST_LISTENERS:
            self._listeners.add(program)
            self._append(lines.listener(program))

    def _know(self, host: str, name: str) -> bool:
        """Remember it; False if it is known, or there is no room."""
        names = self._names.setdefault(host, set())
        if name in names or not self._names_left or len(names) >= lines.MOST_NAMES_OF_ONE:
            return False
        names.add(name)
        self._names_left -= 1
        return True

    def _append(self, line: bytes) -> None:
        os.pwrite(self._fd, line, self._end)
        self._end += len(line)


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
