"""Is there room for a restart: on the filesystems it writes to, and in memory?"""

from __future__ import annotations

import os
import stat
from typing import Any

import msgspec

from torpor.checkpoint import copies
from torpor.image.manifest import Manifest
from torpor.linux import proc
from torpor.named_tuple import NamedTuple
from torpor.posix.contents import Contents
from torpor.posix.descriptors import O_ACCMODE
from torpor.posix.memory.pages import unpack
from torpor.posix.sysv_shm import SharedSegments


class Place(NamedTuple):
    """A filesystem: a path on it, the bytes that a restart would need there, and those that are free."""

    path: str
    needed: int
    free: int


def disk(manifest: Manifest, records: list[tuple[str, Any]], private: str) -> list[Place]:
    """What a restart would write, by filesystem; an upper bound. private: where missing files are made.

    What a file has beyond its saved length is copied beside it, contents that come back need room where there is none
    yet, and whatever is not as it was in a saved folder is made anew.
    """
    needs: dict[str, int] = {}
    for service, state in records:
        if service != "file" or state.made_up or state.keep or state.in_folder:
            continue
        path = state.file.path
        if state.contents is not None:
            needs[path] = _put_back(path, state.contents) if not state.deleted else _data(state.contents)
        elif state.written and state.holder < 0 and state.flags & O_ACCMODE != os.O_RDONLY:
            needs[path] = _beyond(path, state.file.size)
    for file in manifest.files:
        if file.contents is not None:
            needs[file.identity.path] = _put_back(file.identity.path, file.contents)
        if file.copy is not None and copies.needed(file):
            needs[f"{private}/{file.identity.path}"] = _data(file.copy)
    for folder in manifest.scratch.folders:
        for entry in folder.entries:
            path = os.path.join(folder.path, entry.name) if entry.name else folder.path
            if entry.contents is not None and _differs(path, entry.contents.size, entry.mtime_ns):
                needs[os.fsdecode(path)] = _data(entry.contents)
    places: dict[int, Place] = {}
    for path, needed in needs.items():
        here = _existing(path)
        dev = os.stat(here).st_dev
        before = places.get(dev)
        if before is None:
            system = os.statvfs(here)
            free = system.f_bfree if os.geteuid() == 0 else system.f_bavail
            before = Place(here, 0, free * system.f_frsize)
        places[dev] = before._replace(needed=before.needed + needed)
    return [place for place in places.values() if place.needed]


def _data(contents: Contents) -> int:
    return sum(extent.length for extent in contents.extents)


def _beyond(path: str, size: int) -> int:
    """What a file has beyond a length, at most."""
    try:
        st = os.stat(path)
    except OSError:
        return 0
    return min(max(0, st.st_size - size), st.st_blocks * 512)


def _put_back(path: str, contents: Contents) -> int:
    try:
        there = os.stat(path).st_blocks * 512
    except OSError:
        there = 0
    return max(0, _data(contents) - there) + _beyond(path, contents.size)


def _differs(path: bytes, size: int, mtime_ns: int) -> bool:
    try:
        st = os.lstat(path)
    except OSError:
        return True
    return not stat.S_ISREG(st.st_mode) or (st.st_size, st.st_mtime_ns) != (size, mtime_ns)


def _existing(path: str) -> str:
    """The nearest folder above that is there."""
    while not os.path.isdir(path):
        path = os.path.dirname(path) or "/"
    return path


def memory_needed(manifest: Manifest, records: list[tuple[str, Any]]) -> int:
    """Bytes of memory that a restart fills before the job runs."""
    total = sum(window.size for process in manifest.processes for window, _ in unpack(process.pages))
    total += sum(length for kept in manifest.memory for _, length, _ in kept.chunks)
    for service, state in records:
        if service == "memfd" and getattr(state, "contents", None) is not None:
            total += _data(state.contents)
    segments = manifest.services.get("sysv_shm")
    if segments is not None:
        found = msgspec.msgpack.decode(segments, type=SharedSegments)
        total += sum(length for segment in found.segments for _, length, _ in segment.chunks)
    return total


def memory_free() -> int:
    """Bytes of memory that we could use without anybody being killed: of the machine, and of our control groups.

    Source: MemAvailable (proc_meminfo(5)), memory.max (Documentation/admin-guide/cgroup-v2.rst).
    """
    fields = dict(line.split(":", 1) for line in proc.text("/proc/meminfo").splitlines())
    free = int(fields["MemAvailable"].split()[0]) * 1024
    group = next((line[3:] for line in proc.text("/proc/self/cgroup").splitlines() if line.startswith("0::")), "")
    while group and group != "/":
        try:
            limit = proc.text(f"/sys/fs/cgroup{group}/memory.max").strip()
            if limit != "max":
                free = min(free, int(limit) - int(proc.text(f"/sys/fs/cgroup{group}/memory.current")))
        except OSError:
            pass  # the root, or no such controller
        group = os.path.dirname(group)
    return max(0, free)


def swap_free() -> int:
    """Bytes of swap that are free."""
    fields = dict(line.split(":", 1) for line in proc.text("/proc/meminfo").splitlines())
    return int(fields["SwapFree"].split()[0]) * 1024
