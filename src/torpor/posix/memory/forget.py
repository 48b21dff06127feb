"""What is left out of an image by choice (`--forget`): values of environment variables, and memory that a program has
marked as not for core dumps.

The environment that a process was started with lies in its memory between two addresses (/proc/PID/stat, env_start and
env_end), as NAME=VALUE with a zero byte at the end; values are replaced by zero bytes, so that the variable is there
and empty. What a program has copied elsewhere is counted where it is met, not changed: nobody knows what else it is.

MADV_DONTDUMP (madvise(2), VmFlags `dd`) is how libraries mark keys. Private areas so marked come back as zeros, marked.
"""

from __future__ import annotations

import fnmatch
import threading
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

from torpor.linux import proc, uio
from torpor.named_tuple import NamedTuple
from torpor.posix.memory.area import FILE, KERNEL, AreaRecord
from torpor.posix.memory.pages import Window

DONTDUMP = "dontdump"
SHORTEST = 8
"""Bytes of the shortest value that is looked for elsewhere: shorter ones are everywhere."""


class Value(NamedTuple):
    """A value in the environment of a process: where it is."""

    name: str
    address: int
    data: bytes


def values(start: int, text: bytes, wanted: Sequence[str]) -> Iterator[Value]:
    """The values of those variables that are wanted (names, or patterns as in a shell). text: the environment, which
    begins at `start`. Pure."""
    at = 0
    for line in text.split(b"\0"):
        name, equals, value = line.partition(b"=")
        plain = name.decode(errors="surrogateescape")
        if equals and value and any(fnmatch.fnmatchcase(plain, one) for one in wanted):
            yield Value(plain, start + at + len(name) + 1, value)
        at += len(line) + 1


class Forget:
    """wanted: names and patterns of variables, and perhaps DONTDUMP."""

    def __init__(self, wanted: Sequence[str]) -> None:
        self._names = [word for word in wanted if word != DONTDUMP]
        self._dontdump = DONTDUMP in wanted
        self._values: dict[int, list[Value]] = {}
        self._left: Counter[int] = Counter()
        self._bytes: Counter[int] = Counter()
        self._copies: Counter[str] = Counter()
        self._lock = threading.Lock()

    def look(self, pid: int, tid: int) -> None:
        """Find the values of a stopped process (host number; and that of a thread of it that lives). Raises OSError."""
        if not self._names:
            return
        stat = proc.stat(pid, tid)
        size = stat.env_end - stat.env_start
        if size > 0:
            self._values[pid] = list(values(stat.env_start, uio.force_read(pid, stat.env_start, size), self._names))

    def kept(self, pid: int, record: AreaRecord) -> bool:
        """Is an area to be saved? If not, that is noted."""
        private = not record.shared and record.kind not in (FILE, KERNEL)
        if not (self._dontdump and private and "dd" in record.flags):
            return True
        self._left[pid] += 1
        self._bytes[pid] += record.size
        return False

    def blot(self, pid: int, window: Window, data: memoryview) -> None:
        """Take the values out of the pages of a window, in place. From any thread."""
        found = self._values.get(pid)
        if not found:
            return
        at = 0
        for address, size in window.ranges():
            for value in found:
                first, last = max(address, value.address), min(address + size, value.address + len(value.data))
                if first < last:
                    data[at + first - address : at + last - address] = bytes(last - first)
            at += size
        plain = bytes(data)
        counts = {value.name: plain.count(value.data) for value in found if len(value.data) >= SHORTEST}
        with self._lock:
            self._copies.update({name: count for name, count in counts.items() if count})

    def told(self, inner: Iterable[tuple[int, int]]) -> tuple[str, ...]:
        """What was left out, a line each. inner: numbers of processes, on the host and in the job."""
        lines = []
        for pid, vpid in inner:
            names = sorted({value.name for value in self._values.get(pid, ())})
            if names:
                lines.append(f"process {vpid}: the values of {' '.join(names)}")
            if self._left[pid]:
                lines.append(
                    f"process {vpid}: {self._left[pid]} areas that are not for core dumps, {self._bytes[pid]} bytes of "
                    "addresses"
                )
        return tuple(lines)

    def remarks(self) -> tuple[str, ...]:
        """What was not left out although it is the same, a line each."""
        return tuple(
            f"the value of {name} is still in the image {count} times or more: the program has copies in its memory"
            for name, count in sorted(self._copies.items())
        )
