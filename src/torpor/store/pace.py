"""How chunks are compressed where nobody has said: so that a save is over soonest, by what is measured meanwhile.

A save is a pipeline of two stages. Threads read, hash, compress and hand over (`Seen.base`, `Kind.cost`,
`Seen.write`); the store takes what they hand over (`Seen.store`). The slower one counts: compression takes time in the
first to save some in both. So a store that is faster than the compressor gets its chunks as they are, and a slow one
gets them as small as the first stage can make them in the meantime.

Pure but for what is told to it: who measures passes the times in. Nothing is kept from one save to the next. All
speeds are in seconds per byte, so that they can be added.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Mapping

from torpor.named_tuple import NamedTuple

SAME = 1.04
"""Kinds that need so much more time than the quickest count as being as quick: the smallest result wins."""
STAY = 1.08
"""The kind in use stays as long as it needs no more than so much of the quickest one's time."""
HALF = 8 << 20
"""Bytes after which what was measured counts half as much."""
OUTLIER = 3.0
"""A measurement counts at most so many times the mean: a thread that had to wait for a processor says nothing."""
RECENT = 8
"""Packs by which the store's speed is told."""
REMOTE = 1 / 100e6
"""What is supposed of an object store until its first pack was put: 100 MB/s."""


class Kind(NamedTuple):
    """What a kind of compression was seen to do. cost: seconds of a thread per byte put.  ratio: bytes stored per byte
    put; chunks that are left as they are count in both."""

    cost: float
    ratio: float


class Seen(NamedTuple):
    """What was measured lately. threads: that put chunks.  base: seconds of a thread per byte put, for all but
    compressing and writing.  write: seconds of a thread per byte stored, to hand it over.  store: seconds per byte
    stored until the store has it, over all its lanes; 0: not known, or at once.  kinds: by name."""

    threads: int
    base: float
    write: float
    store: float
    kinds: Mapping[str, Kind]


def seconds(seen: Seen, kind: str) -> float:
    """How long a byte that is put takes in the slower of the two stages."""
    cost, ratio = seen.kinds[kind]
    return max((seen.base + cost + ratio * seen.write) / seen.threads, ratio * seen.store)


def choose(seen: Seen, now: str) -> str:
    """The kind for the next chunks. now: the one in use."""
    times = {kind: seconds(seen, kind) for kind in seen.kinds}
    least = min(times.values())
    if times[now] <= least * STAY:
        return now
    return min((kind for kind in times if times[kind] <= least * SAME), key=lambda kind: seen.kinds[kind].ratio)


class Mean:
    """A mean per byte in which the latest counts most."""

    __slots__ = ("_amount", "_size")

    def __init__(self, supposed: float) -> None:
        """supposed: what it is before anything was measured; soon forgotten."""
        self._size = float(HALF >> 6)
        self._amount = supposed * self._size

    def add(self, amount: float, size: int) -> None:
        """`amount` for so many bytes."""
        keep = 0.5 ** (size / HALF)
        self._amount = self._amount * keep + amount
        self._size = self._size * keep + size

    def add_seconds(self, amount: float, size: int) -> None:
        """The same for what may be an outlier."""
        self.add(min(amount, OUTLIER * self.value * size), size)

    @property
    def value(self) -> float:
        return self._amount / self._size


class Speed:
    """How fast the store takes packs: seconds per byte, by the time in which it had anything to do.

    Where several lanes are not all in use, nobody can tell whether they would be slower if they were: they share a
    connection, or are disks of their own. Until threads had to wait for it the store is taken to be as fast as it could
    be; then it is as fast as it was, until it is seen to be faster.
    """

    def __init__(self, lanes: int, supposed: float) -> None:
        self.value = supposed
        self._lanes = lanes
        self._supposed = supposed
        self._working = 0
        self._since = self._busy = self._lane = 0.0
        self._written = 0
        self._packs: deque[tuple[float, int]] = deque([(0.0, 0)], RECENT + 1)
        self._known = False

    def begin(self, now: float) -> None:
        """A lane has something to do."""
        if not self._working:
            self._since = now
        self._working += 1

    def end(self, now: float, written: int) -> None:
        """A lane has done it: it was so many bytes."""
        self._working -= 1
        if not self._working:
            self._busy += now - self._since
        if len(self._packs) == 1:
            self._written += written
            if self._written >= 1 << 20:
                self.value = max(self._supposed, self._clock(now) / self._written)

    def pack(self, now: float, size: int, lane: float, waited: bool) -> None:
        """A pack is there. lane: seconds that its lane worked on it.  waited: did a thread have to wait for the store
        since the last one?"""
        self._packs.append((self._clock(now), size))
        (begin, _), *packs = self._packs
        together = (packs[-1][0] - begin) / sum(size for _, size in packs)
        if waited:
            self._known = True
            self.value = together
        elif self._known:
            self.value = min(self.value, together)
        else:
            self.value = min(together, lane / size / self._lanes)

    def _clock(self, now: float) -> float:
        """Seconds in which at least one lane had something to do."""
        return self._busy + (now - self._since if self._working else 0.0)


class Gauge:
    """What packs tell of their writing (lanes.py). Safe to use from several threads."""

    def __init__(self, lanes: int, remote: bool) -> None:
        self.lock = threading.Lock()
        self.left: dict[int, float] = {}
        """By thread: when it last came back from handing over a chunk."""
        self.write = Mean(0.3e-9)
        self.speed = Speed(lanes, REMOTE if remote else 0.0)
        self._waited = False

    def begin(self, now: float) -> None:
        """See Speed."""
        with self.lock:
            self.speed.begin(now)

    def end(self, now: float, written: int) -> None:
        """See Speed."""
        with self.lock:
            self.speed.end(now, written)

    def pack(self, now: float, size: int, lane: float) -> None:
        """See Speed. Called between `begin` and `end`."""
        with self.lock:
            self.speed.pack(now, size, lane, self._waited)
            self._waited = False

    def added(self, began: float, now: float, waited: float, size: int) -> None:
        """This thread has handed over a chunk, and had to wait for so many seconds of that time."""
        with self.lock:
            self.write.add_seconds(now - began - waited, size)
            self._waited = self._waited or waited > 0
            self.left[threading.get_ident()] = now


class Pace:
    """Gathers what is measured, and says which kind is in use."""

    EVERY = 2 << 20
    """Bytes after which it is thought over; at first more often."""
    LONGEST = 0.02
    """Seconds: whoever does not put for longer was not busy with it."""

    def __init__(self, gauge: Gauge) -> None:
        self.kind = "none"
        self._gauge = gauge
        self._base = Mean(1e-9)
        self._cost = {kind: Mean(supposed) for kind, supposed in (("fast", 1.2e-9), ("zstd", 4e-9))}
        self._ratio = {kind: Mean(1.0) for kind in self._cost}
        self._due = self._put = 0
        self._thought = 0.0

    def note(self, kind: str, seconds: float, size: int, stored: float) -> None:
        """Compression of that kind took so long, and leaves `stored` of `size` bytes."""
        with self._gauge.lock:
            self._cost[kind].add_seconds(seconds, size)
            self._ratio[kind].add(stored, size)

    def next(self, now: float, size: int) -> str:
        """A thread has a chunk to be stored, of so many bytes: how it is to be compressed."""
        gauge = self._gauge
        with gauge.lock:
            left = gauge.left.get(threading.get_ident())
            if left is not None:
                self._base.add(min(now - left, self.LONGEST), size)
            self._put += size
            self._due -= size
            if self._due < 0:
                self._due = min(self.EVERY, self._put)
                self.kind = choose(self.seen(), self.kind)
                self._thought = now
            return self.kind

    def seen(self) -> Seen:
        """What is known now."""
        threads = sum(left >= self._thought for left in self._gauge.left.values())
        kinds = {kind: Kind(self._cost[kind].value, self._ratio[kind].value) for kind in self._cost}
        return Seen(
            max(1, threads), self._base.value, self._gauge.write.value, self._gauge.speed.value,
            {"none": Kind(0.0, 1.0), **kinds},
        )  # fmt: skip
