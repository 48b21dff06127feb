"""Files that a checkpoint carries for machines that lack them: how they are read, and how they are provided there.

A program, its libraries and what else it has mapped or open without writing to it are only read, so that they need not
be read while the job is stopped: they are opened then, and read once it goes on. A file that was written to in between
is noticed.

At a restart, what is missing at its path is made in a folder of the job's own, below torpor's state folder, and the
manifest's paths are changed to that: `provided/DIGEST/NAME`. That folder goes when the job ends; a file
in it is therefore saved with every later checkpoint of the job, asked for or not, and is provided anew at every later
restart.
"""

from __future__ import annotations

import os
import re
import stat

import msgspec

from torpor.checkpoint.relocate import relocate
from torpor.image.manifest import FileRecord, Manifest
from torpor.model.data import Sink, Source
from torpor.model.errors import CheckpointFailed, Refusal, Refused, RestartFailed
from torpor.model.path_map import PathMap
from torpor.posix import paths
from torpor.posix.contents import Contents, chunks, store_file, write_at
from torpor.posix.memory.area import FILE
from torpor.posix.paths import FileIdentity
from torpor.posix.service import Restart

PROT_EXEC = 4
_PROVIDED = re.compile(rb"/torpor/jobs/[^/]+/provided/[0-9a-f]{32}/[^/]+\Z")


def provided(file: FileIdentity) -> bool:
    """Was this file made by a restart, for one job and for as long as it runs?"""
    return _PROVIDED.search(file.name) is not None


def needed(record: FileRecord) -> bool:
    """Is the copy in the checkpoint to be used here? A file that is there and another is nobody's copy."""
    return record.copy is not None and (provided(record.identity) or paths.changed(record.identity) == paths.GONE)


class Copies:
    """The files that go into one checkpoint. asked: all that are only read, not just those that were provided."""

    def __init__(self, asked: bool) -> None:
        self._asked = asked
        self._open: dict[int, tuple[int, FileIdentity]] = {}

    def wanted(self, file: FileIdentity) -> bool:
        """Is there to be a copy of this file, if the job does not write to it?"""
        return self._asked or provided(file)

    def add(self, number: int, file: FileIdentity) -> None:
        """While the job is stopped: the file at this place of Manifest.files is not written by the job. Raises
        Refused."""
        if not self.wanted(file):
            return
        try:
            fd = os.open(file.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK)
        except OSError as error:
            thing = f"the file {file.path}, which the job reads or runs, cannot be read ({error.strerror})"
            raise Refused([Refusal(0, "", thing, "run torpor as its owner or as root, or save without it")]) from error
        self._open[number] = fd, file
        _check_same(fd, file)

    def read(self, files: tuple[FileRecord, ...], sink: Sink) -> tuple[FileRecord, ...]:
        """The records with the copies. Raises CheckpointFailed, OSError."""
        out = list(files)
        for number, (fd, file) in self._open.items():
            out[number] = msgspec.structs.replace(out[number], copy=_read(fd, file, sink))
        self.close()
        return tuple(out)

    def close(self) -> None:
        while self._open:
            os.close(self._open.popitem()[1][0])


def _read(fd: int, file: FileIdentity, sink: Sink) -> Contents:
    try:
        contents = store_file(fd, sink)
    except OSError as error:
        raise CheckpointFailed(f"{file.path} cannot be read: {error.strerror}") from error
    _check_same(fd, file)
    return contents


def _check_same(fd: int, file: FileIdentity) -> None:
    st = os.fstat(fd)
    if (st.st_dev, st.st_ino, st.st_size, st.st_mtime_ns) != (file.dev, file.ino, file.size, file.mtime_ns):
        raise CheckpointFailed(f"{file.path} was written to or replaced while it was being saved; the job runs on")


def provide(record: FileRecord, source: Source, folder: str, restart: Restart) -> str:
    """Make a file from its copy in `folder`, as it was: mode (but for setuid and the like) and modification time.
    Returns its path. Raises RestartFailed, Damaged; what was made then goes with `restart.on_failure`."""
    from filecmp import cmp
    from hashlib import blake2b

    file, contents = record.identity, record.copy
    assert contents is not None
    if not folder:
        raise RestartFailed(f"{file.path} is gone, and there is no folder to make it in")
    name = os.path.basename(file.path)
    try:
        _make_folder(folder, restart)
        temporary = f"{folder}/new.{os.getpid()}"
        fd = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            restart.on_failure(lambda: os.unlink(temporary))
            digest = blake2b(b"%d %d %o " % (contents.size, file.mtime_ns, file.mode), digest_size=16)
            os.ftruncate(fd, contents.size)
            for offset, data in chunks(contents, source):
                digest.update(offset.to_bytes(8, "little"))
                digest.update(data)
                write_at(fd, offset, data)
            os.fchmod(fd, stat.S_IMODE(file.mode) & 0o777)
            os.utime(fd, ns=(file.mtime_ns, file.mtime_ns))
        finally:
            os.close(fd)
        place = f"{folder}/{digest.hexdigest()}"
        path = f"{place}/{name}"
        _make_folder(place, restart)
        if os.path.lexists(path) and cmp(temporary, path, shallow=False):
            os.unlink(temporary)  # left behind by a job that was killed, or in use by one that nobody knows of here
        else:
            os.rename(temporary, path)
            restart.on_failure(lambda: os.unlink(path))
    except OSError as error:
        raise RestartFailed(f"{file.path} is gone and cannot be made in {folder}: {error.strerror}") from error
    return path


def provide_missing(manifest: Manifest, source: Source, folder: str, restart: Restart) -> Manifest:
    """Make all files that are needed here; the manifest with the paths that they have now. Raises as `provide`."""
    run = {process.exe for process in manifest.processes}
    run |= {a.what for process in manifest.processes for a in process.areas if a.kind == FILE and a.prot & PROT_EXEC}
    made = []
    for number, record in enumerate(manifest.files):
        if needed(record):
            path = provide(record, source, folder, restart)
            if number in run and os.statvfs(path).f_flag & os.ST_NOEXEC:
                raise RestartFailed(
                    f"{record.identity.path} is gone, and {folder}, where it would be made, is on a filesystem that "
                    "is mounted noexec; set XDG_STATE_HOME to another folder"
                )
            made.append((record.identity.name, os.fsencode(path)))
    return relocate(manifest, PathMap(made))


def _make_folder(path: str, restart: Restart) -> None:
    """A folder that is ours alone, and those above it."""
    if os.path.isdir(path):
        return
    above = os.path.dirname(path)
    _make_folder(above, restart)
    os.mkdir(path, 0o700)
    restart.on_failure(lambda: os.rmdir(path))
