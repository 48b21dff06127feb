"""inotify: watches on files and folders, and a queue of events.

The kernel keeps for an instance: its watches, each with a number that counts up, an inode and a mask (fdinfo shows
them all); and the events not yet read. It keeps no path. The path of an inode is looked for where a program most
likely has it from: files and folders that the job has open, maps or runs, working directories, words of its command
lines and environments, the folders above all these, and what is directly in them. With the right to open files by
handle (CAP_DAC_READ_SEARCH: root) the filesystem is asked. A watch whose path is not found is refused, by its inode.

Watches come back as the very last thing, under the numbers they had; numbers between are used up by watches that are
removed again.

Events that have not been read cannot be looked at without taking them, so they are left alone. Where there were any,
the restarted program finds one event IN_Q_OVERFLOW instead: events were lost, look for yourself, which every program
that uses inotify must expect (inotify(7)). It finds the same where a watched path leads to another inode now. What
happens to the files between checkpoint and restart is not told: nobody watched. A watch added after a restart with
such an event has a number higher by one than it would have.

How that event is made: a watch on a file of our own is fed until the queue is full and has overflowed, and all but the
last event are read.

Source: inotify(7), fs/notify/fdinfo.c, fs/notify/inotify/inotify_user.c.
"""

from __future__ import annotations

import fcntl
import os
import struct
import tempfile
from collections.abc import Iterable, Iterator

import msgspec

from torpor.linux import inotify, proc
from torpor.linux.inotify import Watch
from torpor.model.errors import Refusal, Refused, RestartFailed
from torpor.posix.descriptors import fresh_info, set_status, status_flags
from torpor.posix.directory import missing
from torpor.posix.service import Descriptor, DescriptorBase, Job, Restart

_FIONREAD = 0x541B
_EVENT = 16
_MOST_ENTRIES = 50_000


class Watched(msgspec.Struct, frozen=True, array_like=True):
    """One watch: its number, the path, the inode it had, the mask."""

    number: int
    name: bytes
    ino: int
    mask: int


class Instance(msgspec.Struct, frozen=True):
    """pending: events had not been read."""

    flags: int
    watches: tuple[Watched, ...]
    pending: bool


class InotifyService(DescriptorBase):
    name = "inotify"
    record = Instance

    def claims(self, seen: Descriptor) -> bool:
        return seen.target in ("anon_inode:inotify", "anon_inode:[inotify]")

    def survey(self, seen: Descriptor, job: Job) -> Refusal | None:
        _, lost = _find(inotify.watches(seen.info), seen.info, job)
        return _refusal(seen, lost[0]) if lost else None

    def capture(self, fd: int, seen: Descriptor, job: Job) -> Instance:
        info = fresh_info(fd)
        found, lost = _find(inotify.watches(info), info, job)
        if lost:
            raise Refused([_refusal(seen, lost[0])])
        waiting = struct.unpack("i", fcntl.ioctl(fd, _FIONREAD, bytes(4)))[0]
        watches = sorted((Watched(w.number, os.fsencode(path), w.ino, w.mask) for w, path in found), key=_number)
        return Instance(status_flags(fd), tuple(watches), waiting > 0)

    def create(self, record: Instance, restart: Restart) -> int:
        for watch in record.watches:
            if not os.path.lexists(watch.name):
                raise missing(os.fsdecode(watch.name), "was watched (inotify) and is gone")
        return inotify.create(os.O_CLOEXEC | os.O_NONBLOCK)

    def last(self, record: Instance, fd: int, restart: Restart) -> None:
        """Watch, once the restart itself has no file to touch any more: it is none of the job's news."""
        overflow = record.pending
        scratch, name = tempfile.mkstemp(prefix="torpor-")
        os.unlink(name)  # at once: its folder may be watched
        name = f"/proc/self/fd/{scratch}"
        try:
            last = 0
            for watch in record.watches:
                while last < watch.number - 1:
                    last = inotify.add(fd, os.fsencode(name), 2)
                    inotify.remove(fd, last)
                    overflow |= not _only_removals(fd)
                last = self._add(fd, watch)
                overflow |= _inode(watch.name) != watch.ino
            if overflow:
                _overflow(fd, name)
        except OSError as error:
            raise RestartFailed(
                f"cannot watch files again: {error.strerror} (see fs.inotify.max_user_watches)"
            ) from error
        finally:
            os.close(scratch)
        set_status(fd, record.flags)

    def _add(self, fd: int, watch: Watched) -> int:
        path = os.fsdecode(watch.name)
        try:
            number = inotify.add(fd, watch.name, watch.mask | inotify.DONT_FOLLOW)
        except FileNotFoundError:
            raise missing(path, "was watched (inotify) and is gone") from None
        if number != watch.number:
            raise RestartFailed(f"the watch on {path} has the number {number} and not {watch.number}")
        return number


def _number(watch: Watched) -> int:
    return watch.number


def _inode(name: bytes) -> int:
    try:
        return os.lstat(name).st_ino
    except OSError:
        return 0


def _refusal(seen: Descriptor, watch: Watch) -> Refusal:
    device = f"{os.major(watch.dev)}:{os.minor(watch.dev)}"
    return seen.refuse(
        f"an inotify instance that watches inode {watch.ino} (device {device}), whose path is not found",
        "remove that watch, run torpor as root, or let the job have the file or its folder open",
    )


def _only_removals(fd: int) -> bool:
    """Read what is in the queue; is it only the news that watches were removed?"""
    try:
        data = os.read(fd, 1 << 16)
    except BlockingIOError:
        return True
    at = 0
    while at < len(data):
        _, mask, _, length = struct.unpack_from("iIII", data, at)
        if not mask & inotify.IGNORED:
            return False
        at += _EVENT + length
    return True


def _overflow(fd: int, path: str) -> None:
    """Leave one event IN_Q_OVERFLOW in the queue, and nothing else."""
    watch = inotify.add(fd, os.fsencode(path), 0x38)  # IN_OPEN, IN_CLOSE: they differ, so they do not merge
    before = -1
    while before < (now := _waiting(fd)):
        before = now
        for _ in range(512):
            os.close(os.open(path, os.O_RDONLY | os.O_CLOEXEC))
    inotify.remove(fd, watch)
    left = _waiting(fd) - _EVENT
    while left > 0:
        left -= len(os.read(fd, min(left, 1 << 20)))


def _waiting(fd: int) -> int:
    count: int = struct.unpack("i", fcntl.ioctl(fd, _FIONREAD, bytes(4)))[0]
    return count


# Finding paths.


def _find(watches: Iterable[Watch], info: Iterable[str], job: Job) -> tuple[list[tuple[Watch, str]], list[Watch]]:
    """Watches with their paths, and those whose path is not found."""
    wanted = {(watch.dev, watch.ino): watch for watch in watches}
    found: list[tuple[Watch, str]] = []
    looked: set[str] = set()
    folders: list[str] = []

    def look(path: str) -> None:
        if path in looked:
            return
        looked.add(path)
        try:
            st = os.lstat(path)
        except (OSError, ValueError):
            return
        if st.st_mode & 0o170000 == 0o040000:
            folders.append(path)
        watch = wanted.pop((st.st_dev, st.st_ino), None)
        if watch is not None:
            found.append((watch, path))

    for path in _likely(job):
        if not wanted:
            return found, []
        at = os.path.normpath(path)
        while at not in looked:
            look(at)
            at = os.path.dirname(at)
    entries = 0
    for folder in folders[:]:
        if not wanted or entries > _MOST_ENTRIES:
            break
        try:
            with os.scandir(folder) as inside:
                for entry in inside:
                    entries += 1
                    if any(ino == entry.inode() for _, ino in wanted) or entry.is_dir(follow_symlinks=False):
                        look(entry.path)
        except OSError:
            continue
    for line in info:
        watch, path = _by_handle(line, wanted) if wanted else (None, "")
        if watch is not None:
            look(path)
    return found, list(wanted.values())


def _likely(job: Job) -> Iterator[str]:
    """Paths that the job has to do with."""
    for seen in job.descriptors:
        if seen.target.startswith("/"):
            yield seen.target
    for pid in job.processes():
        try:
            here = os.readlink(f"/proc/{pid}/cwd")
            yield here
            yield os.readlink(f"/proc/{pid}/exe")
            words = proc.read(f"/proc/{pid}/cmdline") + proc.read(f"/proc/{pid}/environ")
            areas = proc.maps(pid)
        except OSError:
            continue
        for word in os.fsdecode(words).split("\0"):
            word = word.partition("=")[2] if "=" in word else word
            for part in word.split(":"):
                if part and len(part) < 4096 and "\n" not in part:
                    yield os.path.join(here, part)
        yield from {area.path for area in areas if area.path.startswith("/")}


def _by_handle(line: str, wanted: dict[tuple[int, int], Watch]) -> tuple[Watch | None, str]:
    """The path of a watch by its file handle, asked of the filesystem. Needs CAP_DAC_READ_SEARCH."""
    for watch in inotify.watches([line]):
        if (watch.dev, watch.ino) in wanted:
            fields = dict(word.split(":", 1) for word in line.split()[1:] if ":" in word)
            try:
                handle = bytes.fromhex(fields["f_handle"])
                return watch, inotify.path_of_handle(int(fields["fhandle-type"], 16), handle, watch.dev)
            except (OSError, KeyError, ValueError):
                continue
    return None, ""


SERVICE = InotifyService()
