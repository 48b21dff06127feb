"""What /proc says of a process, as values.

Everything here is read-only and may find that the process is gone: then ProcessLookupError or FileNotFoundError is
raised, as the kernel raised it. Source of every field: proc(5), Documentation/filesystems/proc.rst.
"""

from __future__ import annotations

import errno
import os
import re
import time
from collections.abc import Iterator, Mapping
from functools import lru_cache
from operator import itemgetter

from torpor.named_tuple import NamedTuple

_PART = 4096
"""So much at most comes out of most files of /proc at once (fs/seq_file.c); more room costs more."""
_HEAD = re.compile(r"^[0-9a-f]+-.*$", re.MULTILINE)
_FIELD = re.compile(r"^(\w+): *(.*)$", re.MULTILINE)
"""The lines of smaps: an area's own, and one of its fields (fs/proc/task_mmu.c: show_smap)."""


def read(path: str) -> bytes:
    """The whole of a /proc file, in as few reads as possible."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        parts = []
        while part := os.read(fd, _PART):
            parts.append(part)
        return b"".join(parts)
    finally:
        os.close(fd)


def text(path: str) -> str:
    """The same as text; names that are not UTF-8 survive as surrogates."""
    return os.fsdecode(read(path))


def shown(path: str) -> bytes:
    """The whole of a file that the kernel writes in one go (single_open in fs/seq_file.c, simple_read_from_buffer in
    fs/libfs.c): stat, status, comm, fdinfo, auxv and others that say one thing. A read of it that is not filled was the
    last; of a list (maps, children) it need not be."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return _shown(fd)
    finally:
        os.close(fd)


def _shown(fd: int) -> bytes:
    found = part = os.read(fd, _PART)
    while len(part) == _PART:
        part = os.read(fd, _PART)
        found += part
    return found


class Stat(NamedTuple):
    """Fields of /proc/PID/stat that torpor uses; pids as the reader's namespace sees them."""

    pid: int
    comm: str
    state: str
    ppid: int
    pgrp: int
    session: int
    tty_nr: int
    tpgid: int
    starttime: int
    start_code: int
    end_code: int
    start_stack: int
    exit_signal: int
    start_data: int
    end_data: int
    start_brk: int
    arg_start: int
    arg_end: int
    env_start: int
    env_end: int
    exit_code: int


_NUMBERS = itemgetter(*(n - 3 for n in (4, 5, 6, 7, 8, 22, 26, 27, 28, 38, *range(45, 53))))
"""The fields of Stat from ppid on, where the state, which is the third in the file, comes first."""


def stat(pid: int, tid: int | None = None) -> Stat:
    """/proc/PID/stat, or the one of a thread. Addresses read 0 without the right to trace the process."""
    where = f"/proc/{pid}/stat" if tid is None else f"/proc/{pid}/task/{tid}/stat"
    line = os.fsdecode(shown(where))
    head, _, tail = line.rpartition(")")
    number, _, comm = head.partition(" (")
    f = tail.split()
    return Stat(int(number), comm, f[0], *map(int, _NUMBERS(f)))


def state(pid: int, tid: int | None = None) -> str:
    """The letter of its state in /proc/PID/stat, or a thread's."""
    return name_and_state(pid, tid)[1]


def name_and_state(pid: int, tid: int | None = None) -> tuple[str, str]:
    """What comes first in /proc/PID/stat, or a thread's: the name, and the letter of the state."""
    where = f"/proc/{pid}/stat" if tid is None else f"/proc/{pid}/task/{tid}/stat"
    head, _, tail = os.fsdecode(shown(where)).rpartition(") ")
    return head.partition(" (")[2], tail[0]


def await_state(pid: int, state: str, timeout: float = 0.5) -> None:
    """Wait until a process shows the state (a letter of /proc/PID/stat), for a while at most."""
    deadline = time.monotonic() + timeout
    try:
        while name_and_state(pid)[1] != state and time.monotonic() < deadline:
            time.sleep(0.0002)
    except OSError:
        pass  # it has ended


def faults(pid: int) -> int:
    """How many page faults the threads of a process have had, those that ended included, without those that waited for
    a disk."""
    return int(shown(f"/proc/{pid}/stat").rpartition(b")")[2].split()[7])


def running() -> int:
    """How many tasks of the whole machine run or wait for a processor in this moment, the one that asks included."""
    return int(shown("/proc/loadavg").split()[3].partition(b"/")[0])


class Status(Mapping[str, str]):
    """The text of a status file: name of the field to its text; numbers may have spaces in front.

    There are sixty fields, of which a few are ever asked for: they are looked for then.
    """

    def __init__(self, raw: bytes) -> None:
        self._text = f"\n{os.fsdecode(raw)}"

    def __getitem__(self, name: str) -> str:
        head = f"\n{name}:\t"
        at = self._text.find(head)
        if at < 0:
            raise KeyError(name)
        # Names may have any byte in them that ends a line elsewhere, but for \n, which is shown as two.
        return self._text[at + len(head) : self._text.index("\n", at + 1)]

    def mentions(self, word: str) -> bool:
        """Does it stand anywhere?"""
        return word in self._text

    def __iter__(self) -> Iterator[str]:
        return (line.partition(":\t")[0] for line in self._text[1:-1].split("\n"))

    def __len__(self) -> int:
        return self._text.count("\n") - 1


def status(pid: int, tid: int | None = None) -> Status:
    """/proc/PID/status (or a thread's)."""
    where = f"/proc/{pid}/status" if tid is None else f"/proc/{pid}/task/{tid}/status"
    return Status(shown(where))


def open_status(pid: int, tid: int) -> int:
    """A descriptor of a thread's status. It is that thread's for ever: if its number is another's one day, a read fails
    (ESRCH)."""
    return os.open(f"/proc/{pid}/task/{tid}/status", os.O_RDONLY | os.O_CLOEXEC)


def open_memory(pid: int, name: str, flags: int = os.O_RDONLY) -> int:
    """A close-on-exec descriptor of /proc/PID/mem, pagemap or another file that shows the memory of a process.

    To an ordinary user these are forbidden once the process is ending: without memory it does not count as dumpable
    (kernel/ptrace.c, __ptrace_may_access). That is told as what it is. Raises OSError (ESRCH, ENOENT: it has ended).
    """
    try:
        return os.open(f"/proc/{pid}/{name}", flags | os.O_CLOEXEC)
    except PermissionError:
        if text(f"/proc/{pid}/statm").split()[0] != "0":
            raise
        raise ProcessLookupError(errno.ESRCH, os.strerror(errno.ESRCH)) from None


def inner_pid(fields: Mapping[str, str], key: str = "NSpid") -> int:
    """The pid (NSpid), group (NSpgid) or session (NSsid) as the process itself sees it: in its innermost namespace."""
    return int(fields[key].split()[-1])


def threads(pid: int) -> list[int]:
    """Thread ids, the leader first."""
    if os.stat(f"/proc/{pid}/task").st_nlink == 3:
        return [pid]  # two links and one for each thread (fs/proc/base.c, proc_task_getattr); the last is the leader
    tids = sorted(int(name) for name in os.listdir(f"/proc/{pid}/task"))
    if pid in tids:
        tids.remove(pid)
        tids.insert(0, pid)
    return tids


def threads_by_age(pid: int) -> list[int]:
    """Thread ids in the order in which they were made, the leader first: /proc/PID/task is the list to the end of which
    each new one is put (fs/proc/base.c, proc_task_readdir; kernel/fork.c, copy_process)."""
    return [int(name) for name in os.listdir(f"/proc/{pid}/task")]


def face(pid: int) -> int:
    """The number by which a process is to be looked at: its own; or, if its first thread has ended and others go on,
    that of one of those. Such a process shows as a zombie without memory and descriptors, but /proc/TID shows them."""
    try:
        if state(pid) not in "ZX":
            return pid
        return next((tid for tid in threads(pid) if state(pid, tid) not in "ZX"), pid)
    except OSError:
        return pid


def is_below(pid: int, ancestor: int) -> bool:
    """Is a process another one, or a descendant of it? Nobody is who is gone, and nothing counts as below PID 1."""
    try:
        while pid > 1 and pid != ancestor:
            pid = stat(pid).ppid
    except OSError:
        return False
    return pid > 1


def alive(pid: int) -> bool:
    """Does a process, or any thread of it, go on? One that has ended does not, even if nobody has waited for it yet."""
    try:
        return stat(face(pid)).state not in "ZX"
    except OSError:
        return False


def children(pid: int) -> list[int]:
    """Direct children of any of its threads (needs CONFIG_PROC_CHILDREN)."""
    return [child for tid in threads(pid) for child in children_of_thread(pid, tid)]


def children_of_thread(pid: int, tid: int) -> list[int]:
    """The processes that a thread has made and that are still its children."""
    try:
        return [int(word) for word in read(f"/proc/{pid}/task/{tid}/children").split()]
    except (FileNotFoundError, ProcessLookupError):
        return []


class Population(NamedTuple):
    """born: so many tasks were ever made on this machine, threads too and in whatever namespace (`processes` in
    /proc/stat).  alive: so many there are, those included that nobody has waited for yet (in /proc/loadavg).

    As long as both are what they were, nobody was born and nobody has gone, so that nobody has another parent either:
    the kernel counts in the same breath in which it changes the tree (total_forks and nr_threads in kernel/fork.c,
    copy_process, and kernel/exit.c, __unhash_process).
    """

    born: int
    alive: int


def namespace(pid: int, kind: str) -> str:
    """What the link of a process to one of its namespaces says; '' where it cannot be read or does not exist."""
    if not pid:
        return ""
    try:
        return os.readlink(f"/proc/{pid}/ns/{kind}")
    except OSError:
        return ""


def own_namespace(kind: str) -> str:
    """Our own, which we do not leave: what enters another one is forked for it."""
    return _own_namespace(os.getpid(), kind)


@lru_cache(32)
def _own_namespace(pid: int, kind: str) -> str:
    return namespace(pid, kind)


def population() -> Population | None:
    """None where the kernel does not tell: where something is mounted over these files, as in some containers (lxcfs).
    On a machine with many processors it takes a while to add up what else stands in /proc/stat."""
    try:
        device = os.stat("/proc").st_dev
        if any(os.stat(path).st_dev != device for path in ("/proc/stat", "/proc/loadavg")):
            return None
        born = shown("/proc/stat").partition(b"\nprocesses ")[2].split(None, 1)
        alive = shown("/proc/loadavg").split()[3].partition(b"/")[2]
        return Population(int(born[0]), int(alive))
    except (OSError, IndexError, ValueError):
        return None


def comm(pid: int) -> str:
    """The name of a process; '?' once it is gone."""
    try:
        return os.fsdecode(shown(f"/proc/{pid}/comm")).rstrip("\n")
    except OSError:
        return "?"


class Area(NamedTuple):
    """One line of /proc/PID/maps: a virtual memory area."""

    start: int
    end: int
    perms: str
    """'rwxp' or 'rw-s' and so on."""
    offset: int
    dev: int
    """As st_dev."""
    ino: int
    path: str
    """Path, with ' (deleted)' where it is gone, '[heap]', '[stack]', '[vdso]' or ''."""

    @property
    def size(self) -> int:
        return self.end - self.start


@lru_cache(1 << 17)
def parse_area(line: str) -> Area:
    """One line of maps (or the first line of an smaps entry). Processes that were forked from one have most of them in
    common. What is kept of them is for a while: see `forget_areas`."""
    f = line.split(None, 5)
    start, _, end = f[0].partition("-")
    major, _, minor = f[3].partition(":")
    path = f[5].rstrip("\n") if len(f) > 5 else ""
    if "\\" in path:
        path = path.replace("\\012", "\n")
    return Area(
        int(start, 16), int(end, 16), f[1], int(f[2], 16),
        os.makedev(int(major, 16), int(minor, 16)), int(f[4]), path,
    )  # fmt: skip


def forget_areas() -> None:
    """Nothing more is expected of the processes that were looked at for now. A few lines are kept: the same processes
    may be looked at again."""
    if parse_area.cache_info().currsize > 4096:
        parse_area.cache_clear()


def maps(pid: int, tid: int | None = None) -> list[Area]:
    """The memory areas of a process."""
    where = f"/proc/{pid}/maps" if tid is None else f"/proc/{pid}/task/{tid}/maps"
    return [parse_area(line) for line in text(where).splitlines()]


def smaps(pid: int, tid: int | None = None) -> Iterator[tuple[Area, dict[str, str]]]:
    """Areas with the fields of smaps ('VmFlags', 'KernelPageSize', ...). Walks page tables: dearer than `maps`."""
    where = f"/proc/{pid}/smaps" if tid is None else f"/proc/{pid}/task/{tid}/smaps"
    all_of_it = text(where)
    # Cut where an area begins, one at a time: as lines a large one takes several times its size in memory.
    heads = _HEAD.finditer(all_of_it)
    head = next(heads, None)
    while head is not None:
        following = next(heads, None)
        fields = _FIELD.findall(all_of_it, head.end(), following.start() if following else len(all_of_it))
        yield parse_area(head[0]), dict(fields)
        head = following


def rollup(pid: int) -> dict[str, int]:
    """The sums of all fields of smaps over a process, in bytes; its page tables are walked."""
    return {name: int(value.split()[0]) << 10 for name, value in _FIELD.findall(text(f"/proc/{pid}/smaps_rollup"))}


def descriptors(pid: int) -> list[int]:
    """Numbers of the open descriptors of a process, ascending."""
    return sorted(int(name) for name in os.listdir(f"/proc/{pid}/fd"))


def sysctl(name: str) -> str:
    """The value of /proc/sys/NAME, '' where there is none."""
    try:
        return text(f"/proc/sys/{name}").strip()
    except OSError:
        return ""


def boot_id() -> str:
    """The identity of this boot of the machine."""
    return text("/proc/sys/kernel/random/boot_id").strip()


def probe() -> tuple[bool, str]:
    """Does /proc list children and POSIX timers?"""
    me = os.getpid()
    lacking = [
        f"{path.format(me)} ({option})"
        for path, option in (
            ("/proc/{0}/task/{0}/children", "CONFIG_PROC_CHILDREN"),
            ("/proc/{0}/timers", "CONFIG_CHECKPOINT_RESTORE"),
            ("/proc/{0}/smaps", "CONFIG_PROC_PAGE_MONITOR"),
        )
        if not os.path.exists(path.format(me))
    ]
    if lacking:
        return False, f"no {', no '.join(lacking)}; use a kernel with it"
    return True, ""
