"""Put the contents of memory back: chunks are fetched, verified and written into the stubs, by a few threads."""

from __future__ import annotations

from _thread import allocate_lock
from bisect import bisect_right
from collections.abc import Callable, Sequence

from torpor.image.manifest import ProcessRecord
from torpor.linux import uio
from torpor.model.data import Source
from torpor.model.errors import RestartFailed
from torpor.posix.memory.area import PROT_WRITE, AreaRecord, writable_first
from torpor.posix.memory.pages import WINDOW, Window, unpack

WORKERS = 2


def fill(
    processes: Sequence[tuple[ProcessRecord, int]], source: Source, progress: Callable[[int, int], None] | None = None
) -> int:
    """Fill the memory of all processes (record, host pid); the bytes written. Raises Damaged or RestartFailed."""
    work = []
    total = 0
    for record, pid in processes:
        plain = _Plain(record.areas)
        for window, ref in unpack(record.pages):
            work.append((pid, window, ref, plain))
            total += window.size
    # Neighbours in the store are read one after the other.
    lock = allocate_lock()
    queue = iter(work)
    failures: list[BaseException] = []
    done = 0

    def drain() -> None:
        nonlocal done
        try:
            while not failures:
                with lock:
                    batch = [item for item in (next(queue, None) for _ in range(16)) if item is not None]
                if not batch:
                    return
                for pid, window, ref, plain in batch:
                    _write(pid, window, memoryview(source.get(ref)), plain)
                if progress is not None:
                    with lock:
                        done += sum(window.size for _, window, _, _ in batch)
                        progress(done, total)
        except BaseException as error:
            failures.append(error)

    helpers = []
    if len(work) > 64:
        from threading import Thread  # a small job does not wait for it

        helpers = [Thread(target=drain) for _ in range(WORKERS - 1)]
        for helper in helpers:
            helper.start()
    drain()
    for helper in helpers:
        helper.join()
    if failures:
        if isinstance(failures[0], OSError):
            raise RestartFailed(f"memory could not be filled: {failures[0]}") from failures[0]
        raise failures[0]
    return total


class _Plain:
    """Tells whether a window can be written plainly: all of it writable while it is filled."""

    def __init__(self, areas: Sequence[AreaRecord]) -> None:
        self._starts = [area.start for area in areas]
        self._areas = areas

    def __call__(self, window: Window) -> bool:
        at = max(0, bisect_right(self._starts, window.address) - 1)
        while at < len(self._areas) and self._areas[at].start < window.address + WINDOW:
            area = self._areas[at]
            if area.end > window.address and not (area.prot & PROT_WRITE or writable_first(area)):
                return False
            at += 1
        return True


def _write(pid: int, window: Window, data: memoryview, plain: _Plain) -> None:
    if plain(window):
        uio.write_from(pid, window.ranges(), uio.address_of_readonly(data), len(data))
        return
    at = 0
    for address, size in window.ranges():
        uio.force_write(pid, address, data[at : at + size])
        at += size
