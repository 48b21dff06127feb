"""Files that belong to a job although it does not have them open: whole folders, and names beside a saved file.

The kernel keeps open files only. A program's state is often in more than that: a database in a folder opens a file when
it needs it, and a journal that comes into being after the checkpoint would be taken for one of a crash by the program
that is restarted from before. So, where the policy `files` asks for contents to be saved:

    save:FOLDER   everything below is saved, open or not, and is at the restart as it was: what has changed or gone
                  since is made again, what has come since is moved to FOLDER.after-CHECKPOINT
    save          contents of open files are saved by `regular`; here only the names beside them that begin with theirs
                  (NAME-journal, NAME.lock) are put down: such a file that has come since is set aside at the restart

Nothing of this touches a file in place: what is not as it was is renamed, so that a restart that fails renames it back.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterable, Iterator

import msgspec

from torpor.model.data import Sink, Source
from torpor.model.errors import Refusal, RestartFailed
from torpor.posix.contents import Contents, chunks, load_file, read_at, reflink, store_file
from torpor.posix.service import Job, Restart

SEPARATORS = "-.~_"
"""What follows a file's name in the name of one that belongs to it."""
ASIDE = ".after-"


class Entry(msgspec.Struct, frozen=True):
    """Something below a saved folder. name: its path from there, '' for the folder itself."""

    name: bytes
    mode: int
    uid: int
    gid: int
    mtime_ns: int
    contents: Contents | None = None
    """Of a regular file."""
    target: bytes = b""
    """Of a symbolic link."""


class Folder(msgspec.Struct, frozen=True):
    """A folder that is saved with everything below, parents before what is in them. Sockets, FIFOs and devices are put
    down so that they are not taken for new, and left as they are."""

    path: bytes
    entries: tuple[Entry, ...]


class Beside(msgspec.Struct, frozen=True):
    """The names beside a file that begin with its own, when the job was stopped."""

    path: bytes
    names: tuple[bytes, ...]


class Scratch(msgspec.Struct, frozen=True):
    folders: tuple[Folder, ...] = ()
    beside: tuple[Beside, ...] = ()

    def covers(self, path: str) -> bool:
        """Is the file `path` in one of the folders?"""
        name = os.fsencode(path)
        return any(name.startswith(folder.path + b"/") for folder in self.folders)


# -- capture ----------------------------------------------------------------------------------------------------------


def survey(folders: Iterable[str]) -> list[Refusal]:
    """Folders that cannot be saved whole: at a restart another one is put in their place (`restore`)."""
    return [
        Refusal(0, "", f"the folder {path} is a mount point, which cannot be exchanged as a whole", "name one in it")
        for path in folders
        if os.path.ismount(path)
    ]


def capture(folders: Iterable[str], saved: Iterable[bytes], job: Job) -> Callable[[], Scratch]:
    """Put down what is there now, while the job is stopped; what is returned completes it, later.

    folders: paths of those to save whole. saved: paths of the files whose contents are saved elsewhere. Where the
    filesystem can clone files they are read later; else now, which is said. Raises OSError (what cannot be read).
    """
    paths = sorted(set(folders))
    trees = [_Tree(path, job.sink) for path in paths]
    for tree in trees:
        if tree.read:
            job.say(f"{tree.path}: {tree.read} bytes were read while the job was stopped")
    within = [os.fsencode(path) + b"/" for path in paths]
    beside = [
        Beside(name, tuple(_relatives(name))) for name in sorted(set(saved)) if not name.startswith(tuple(within))
    ]
    return lambda: Scratch(tuple(tree.complete() for tree in trees), tuple(beside))


class _Tree:
    """A folder while it is saved."""

    def __init__(self, path: str, sink: Sink) -> None:
        self.path, self._sink = path, sink
        self.read = 0
        """Bytes read while the job is stopped."""
        self._clones: dict[int, int] = {}
        self._entries: list[Entry] = []
        for name, st in _walk(os.fsencode(path)):
            self._add(name, st)

    def _add(self, name: bytes, st: os.stat_result) -> None:
        full = os.path.join(os.fsencode(self.path), name) if name else os.fsencode(self.path)
        contents, target = None, b""
        if stat.S_ISLNK(st.st_mode):
            target = os.readlink(full)
        elif stat.S_ISREG(st.st_mode):
            fd = os.open(full, os.O_RDONLY | os.O_CLOEXEC | os.O_NOCTTY | os.O_NOFOLLOW)
            try:
                clone = reflink(fd, os.fsdecode(full))
                if clone >= 0:
                    self._clones[len(self._entries)] = clone
                else:
                    contents = store_file(fd, self._sink)
                    self.read += contents.size
            finally:
                os.close(fd)
        self._entries.append(Entry(name, st.st_mode, st.st_uid, st.st_gid, st.st_mtime_ns, contents, target))

    def complete(self) -> Folder:
        """The record; clones are read and given up."""
        while self._clones:
            number, clone = self._clones.popitem()
            try:
                contents = store_file(clone, self._sink)
            finally:
                os.close(clone)
            self._entries[number] = msgspec.structs.replace(self._entries[number], contents=contents)
        return Folder(os.fsencode(self.path), tuple(self._entries))

    def __del__(self) -> None:
        for clone in self._clones.values():
            os.close(clone)


def _walk(top: bytes) -> Iterator[tuple[bytes, os.stat_result]]:
    """Everything below `top`, itself first, as (path from there, lstat), parents first. Raises OSError."""
    waiting = [b""]
    while waiting:
        name = waiting.pop()
        full = os.path.join(top, name) if name else top
        st = os.lstat(full)
        yield name, st
        if stat.S_ISDIR(st.st_mode):
            waiting += sorted((os.path.join(name, one) for one in os.listdir(full)), reverse=True)


def _relatives(path: bytes) -> list[bytes]:
    """The names in the folder of `path` that are its own with something behind."""
    folder, base = os.path.split(path)
    try:
        return sorted(name for name in os.listdir(folder) if related(base, name))
    except OSError:
        return []


def related(base: bytes, name: bytes) -> bool:
    """Does `name` say that the file belongs to the one called `base`? Pure."""
    after = os.fsencode(ASIDE)
    return name.startswith(base) and name[len(base) : len(base) + 1].decode("latin-1") in tuple(SEPARATORS) and (
        after not in name[len(base) :]
    )  # fmt: skip


# -- restart ----------------------------------------------------------------------------------------------------------


def restore(scratch: Scratch, restart: Restart) -> None:
    """Bring folders back to what they were, before anything in them is opened. Raises RestartFailed, Damaged; what was
    changed is then undone by `restart.on_failure`."""
    try:
        for folder in scratch.folders:
            _restore_folder(folder, restart)
        for beside in scratch.beside:
            _set_newcomers_aside(beside, restart)
    except OSError as error:
        raise RestartFailed(f"{error.filename} cannot be put back: {error.strerror}") from error


def _restore_folder(folder: Folder, restart: Restart) -> None:
    top = os.fsdecode(folder.path)
    aside = _Aside(top, restart)
    known = {entry.name: entry for entry in folder.entries}
    if os.path.lexists(top):
        for name, _ in list(_walk(folder.path)):
            parent = os.path.dirname(name)
            if name not in known and (parent in known or not parent) and os.path.lexists(_at(top, name)):
                aside.move(name)
    changed = [entry for entry in folder.entries if _restore_entry(_at(top, entry.name), entry, aside, restart)]
    for entry in reversed(folder.entries):
        # Times of folders last of all: making what is in them changes them.
        if stat.S_ISDIR(entry.mode):
            os.utime(_at(top, entry.name), ns=(entry.mtime_ns, entry.mtime_ns))
    if changed or aside.moved:
        restart.say(f"{top}: {len(changed)} files are as they were again" + aside.told())


def _restore_entry(path: str, entry: Entry, aside: _Aside, restart: Restart) -> bool:
    """Make one entry what it was; False if it is so already."""
    try:
        st = os.lstat(path)
    except FileNotFoundError:
        st = None
    kind = stat.S_IFMT(entry.mode)
    if st is not None and (
        stat.S_IFMT(st.st_mode) != kind
        or (kind == stat.S_IFLNK and os.readlink(os.fsencode(path)) != entry.target)
        or (entry.contents is not None and not _same(path, entry.contents, restart.source))
    ):
        aside.move(entry.name)
        st = None
    if st is not None:
        return False
    if kind == stat.S_IFDIR:
        os.mkdir(path, 0o700)
        restart.on_failure(lambda: os.rmdir(path))
    elif kind == stat.S_IFLNK:
        os.symlink(entry.target, os.fsencode(path))
        restart.on_failure(lambda: os.unlink(path))
    elif entry.contents is not None:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        restart.on_failure(lambda: os.unlink(path))
        try:
            load_file(entry.contents, restart.source, fd)
        except OSError as error:
            raise OSError(error.errno, error.strerror, path) from None  # a full disk, which has no name
        finally:
            os.close(fd)
    else:
        return False  # a socket, FIFO or device: whoever needs it makes it
    if os.geteuid() == 0:
        os.lchown(path, entry.uid, entry.gid)
    if kind != stat.S_IFLNK:
        os.chmod(path, stat.S_IMODE(entry.mode))
    os.utime(path, ns=(entry.mtime_ns, entry.mtime_ns), follow_symlinks=False)
    return True


def _same(path: str, contents: Contents, source: Source) -> bool:
    """Does the file hold what was saved? Its times prove nothing (a mapping may have written to it)."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOCTTY)
    try:
        if os.fstat(fd).st_size != contents.size:
            return False
        room = memoryview(bytearray(1 << 18))
        end = 0
        for offset, data in chunks(contents, source):
            if not _zeros(fd, end, offset, room):
                return False
            end = offset + len(data)
            if read_at(fd, offset, room[: len(data)]) != len(data) or room[: len(data)] != memoryview(data):
                return False
        return _zeros(fd, end, contents.size, room)
    finally:
        os.close(fd)


def _zeros(fd: int, start: int, end: int, room: memoryview) -> bool:
    """Does [start, end) of a file read as zeros?"""
    while start < end:
        got = read_at(fd, start, room[: min(len(room), end - start)])
        if not got or any(room[:got]):
            return False
        start += got
    return True


class _Aside:
    """Where what is not as it was is moved: FOLDER.after-CHECKPOINT, made when it is needed."""

    def __init__(self, top: str, restart: Restart) -> None:
        self.top, self._restart = top, restart
        self.place = ""
        self.moved = 0

    def move(self, name: bytes) -> None:
        """Move the entry `name` there, with everything below it. Raises OSError."""
        if not self.place:
            self.place = _unused(f"{self.top}{ASIDE}{self._restart.checkpoint.replace('/', '_')}")
            self._folder(self.place)
        target = self.place
        *parents, last = os.fsdecode(name).split("/")
        for part in parents:
            target = os.path.join(target, part)
            if not os.path.isdir(target):
                self._folder(target)
        _rename(_at(self.top, name), _unused(os.path.join(target, last)), self._restart)
        self.moved += 1

    def _folder(self, path: str) -> None:
        os.mkdir(path, 0o700)
        self._restart.on_failure(lambda: os.rmdir(path))

    def told(self) -> str:
        return f"; {self.moved} changed or new ones are in {self.place}" if self.moved else ""


def _set_newcomers_aside(beside: Beside, restart: Restart) -> None:
    """Rename files that have come beside a saved one and go by its name."""
    folder = os.path.dirname(beside.path)
    for name in _relatives(beside.path):
        path = os.fsdecode(os.path.join(folder, name))
        if name in beside.names or not stat.S_ISREG(os.lstat(path).st_mode):
            continue
        aside = _unused(f"{path}{ASIDE}{restart.checkpoint.replace('/', '_')}")
        _rename(path, aside, restart)
        restart.say(f"{path}, which was not there at the checkpoint, is now {aside}")


def _rename(path: str, aside: str, restart: Restart) -> None:
    os.rename(path, aside)
    restart.on_failure(lambda: os.rename(aside, path))


def _unused(path: str) -> str:
    name, count = path, 1
    while os.path.lexists(name):
        count += 1
        name = f"{path}.{count}"
    return name


def _at(top: str, name: bytes) -> str:
    return os.path.join(top, os.fsdecode(name)) if name else top
