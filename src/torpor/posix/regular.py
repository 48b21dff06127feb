"""Open regular files.

The kernel keeps for one: the inode, the offset, the open flags, the locks. The file itself stays where it
is; how much of it belongs to the checkpoint is a matter of policy (`files`):

    auto   a file that the job had open for writing is cut back, at the restart, to the length it had,
           and what was beyond is kept beside it; every other file has to be unchanged
    save   the contents of what it had open for writing are in the checkpoint too and are put back
    keep   nothing is touched

Files in a folder that is saved whole (`save:FOLDER`, see scratch.py) have come back by the time they are opened.

A file on tmpfs that the job maps shared and writable (POSIX shared memory, named semaphores) is memory of the job:
it is saved with its contents, and made again if it is gone, except with `keep`.

A file without a name (deleted, or never named: O_TMPFILE) is always saved with its contents: nobody else
keeps them.

Nothing is changed in `create`, which only looks and opens; files are brought back in `finish`, when a
restart can hardly fail any more. O_CREAT, O_EXCL and O_TRUNC are never replayed: the kernel does not even
remember them.
"""

from __future__ import annotations

import os
import stat
from typing import Protocol

import msgspec

from torpor.linux import filesystem, mounts
from torpor.model.data import Sink
from torpor.model.errors import Refusal, Refused, RestartFailed
from torpor.posix import inherited, locks, paths
from torpor.posix.contents import Contents, load_file, reflink, store_file, writer
from torpor.posix.descriptors import (
    AT_OPEN,
    O_ACCMODE,
    O_PATH,
    O_TMPFILE,
    first_object,
    is_type,
    reopen,
    set_status,
    siblings,
    status_flags,
)
from torpor.posix.directory import missing, open_again, unreachable
from torpor.posix.paths import FileIdentity
from torpor.posix.rewind import create_beside, cut_back, put_back
from torpor.posix.service import Descriptor, DescriptorBase, Job, Restart


class OpenFile(msgspec.Struct, frozen=True):
    """An open regular file."""

    file: FileIdentity
    """Its path without ' (deleted)', size and so on at the checkpoint."""
    flags: int
    offset: int
    written: bool = False
    """Somebody in the job had it open for writing."""
    keep: bool = False
    """The policy at the checkpoint was to touch nothing."""
    made_up: bool = False
    deleted: bool = False
    holder: int = -1
    """The object whose record has the contents; -1 if they are not saved."""
    contents: Contents | None = None
    """Here only in the record of the holder."""
    locks: tuple[locks.Lock, ...] = ()
    mapped: bool = False
    """It is a file in memory that the job shares by mapping it: saved with its contents whatever the policy."""
    in_folder: bool = False
    """It is in a folder that is saved whole."""

    @property
    def only_read(self) -> bool:
        """Is it to be found at its path as it was, since nobody writes to it and nothing else brings it back?"""
        return not (self.written or self.made_up or self.deleted or self.holder >= 0 or self.in_folder)


class Wanted(Protocol):
    """What a restart is to do about files; see `Restart`."""

    @property
    def files(self) -> str: ...

    @property
    def changed_files(self) -> str: ...


class RegularService(DescriptorBase):
    name = "file"
    record = OpenFile

    def claims(self, seen: Descriptor) -> bool:
        return (
            is_type(seen, stat.S_IFREG)
            and seen.target.startswith("/")
            and not seen.target.startswith(("/memfd:", "/secretmem"))
        )

    def survey(self, seen: Descriptor, job: Job) -> Refusal | None:
        refusal = locks.refusal(seen)
        if refusal:
            return refusal
        if not paths.is_deleted(seen.target, seen.dev, seen.ino):
            return _no_mount(seen) or unreachable(seen, "a file")
        link = f"/proc/{seen.pid}/fd/{seen.number}"
        try:
            if os.stat(link).st_nlink > 0 and not paths.other_name(seen.target, seen.dev, seen.ino):
                return seen.refuse(
                    f"{seen.target}, which has another name that cannot be found",
                    "close it before the checkpoint",
                )
            if not os.access(link, os.R_OK):
                return seen.refuse(
                    f"{seen.target}, whose contents we have no right to read",
                    "run torpor as its owner or as root",
                )
        except FileNotFoundError:
            pass  # closed meanwhile; it will not be there in the second survey
        return None

    def capture(self, fd: int, seen: Descriptor, job: Job) -> OpenFile:
        offset = os.lseek(fd, 0, os.SEEK_CUR)
        flags = status_flags(fd)
        deleted = paths.is_deleted(seen.target, seen.dev, seen.ino)
        path = seen.target.removesuffix(paths.DELETED) if deleted else seen.target
        if deleted and os.fstat(fd).st_nlink:
            path, deleted = paths.other_name(seen.target, seen.dev, seen.ino), False
        file = paths.identity(fd, path)
        held = locks.of_description(seen.info)
        made_up = not os.major(seen.dev) and filesystem.is_made_up(fd)
        if made_up:
            return OpenFile(file, flags, offset, made_up=True, locks=held)
        same = [one for one in siblings(seen, job) if not one.flags & O_PATH]
        written = any(one.access != os.O_RDONLY for one in same)
        in_folder = not deleted and job.in_saved_folder(path)
        if in_folder:
            return OpenFile(file, flags, offset, written, locks=held, in_folder=True)
        holder, contents = -1, None
        # The bare policy `save` means what the job writes, not the data it reads; files named one by one are
        # meant. No list names the empty path.
        explicit = not job.save_contents("")
        mapped = job.files != "keep" and is_shared_memory(seen.pid, seen.dev, seen.ino, job)
        if deleted or mapped or ((written or explicit) and job.save_contents(path)):
            mine = job.object_of(seen.pid, seen.number)
            holder = first_object([one for one in same if inherited.role(one, job) < 0], job)
            if mine is None or holder in (mine, -1):
                try:
                    clone = -1 if deleted else reflink(fd, path)
                    if clone >= 0:
                        job.later(lambda: msgspec.structs.replace(record, contents=_of_clone(clone, job.sink)))
                    else:
                        contents = store_file(fd, job.sink)
                        job.say(f"{path}: {contents.size} bytes were read while the job was stopped")
                except OSError as error:
                    thing = f"{path}, whose contents cannot be read ({error.strerror})"
                    raise Refused([seen.refuse(thing, "run torpor as its owner or as root")]) from None
        keep = job.files == "keep"
        record = OpenFile(file, flags, offset, written, keep, False, deleted, holder, contents, held, mapped)
        return record

    def needs(self, record: OpenFile) -> tuple[int, ...]:
        return (record.holder,) if record.contents is None and record.holder >= 0 else ()

    def create(self, record: OpenFile, restart: Restart) -> int:
        fd = self._nameless(record, restart) if record.deleted else self._named(record, restart)
        set_status(fd, record.flags)
        if record.offset:
            os.lseek(fd, record.offset, os.SEEK_SET)
        locks.set_again(fd, record.locks, record.file.path)
        return fd

    def finish(self, record: OpenFile, fd: int, restart: Restart) -> None:
        if record.deleted or record.made_up or record.in_folder or _kept(record, restart):
            return
        if record.contents is not None:
            put_back(fd, record.file, record.contents, restart)
        elif record.written and record.holder < 0 and record.flags & O_ACCMODE != os.O_RDONLY:
            cut_back(fd, record.file, restart)

    def _named(self, record: OpenFile, restart: Restart) -> int:
        path = record.file.path
        if record.contents is not None and not _kept(record, restart):
            make_missing(record.file, restart)
        if not _empty(record, restart) or not self._made(record, restart):
            verify(record, restart)
        return open_again(path, record.flags, stat.S_IFREG)

    def _made(self, record: OpenFile, restart: Restart) -> bool:
        """Make an empty file if it is gone, for all that are open on it. Was it?"""
        file = record.file

        def make() -> bool:
            if paths.replaced(file) != paths.GONE:
                return False
            make_missing(file, restart)
            os.utime(file.path, ns=(file.mtime_ns, file.mtime_ns))
            restart.say(f"{file.path} was empty, and has been removed since: it is made again")
            return True

        made: bool = restart.shared((f"empty {file.path}", 0), make, lambda _: None)
        return made

    def _nameless(self, record: OpenFile, restart: Restart) -> int:
        """A file without a name: made again, or another description of the one that was made."""
        path = record.file.path
        try:
            if record.contents is None:
                return self._reopen(restart.object(record.holder), record)
            fd = self._made_again(record, restart)
            own = writer(fd)
            try:
                load_file(record.contents, restart.source, own)
                os.utime(own, ns=(record.file.mtime_ns, record.file.mtime_ns))
                os.fchmod(own, stat.S_IMODE(record.file.mode))
            finally:
                os.close(own)
            return fd
        except OSError as error:
            raise RestartFailed(f"cannot make {path} (deleted) again: {error.strerror}") from None

    def _made_again(self, record: OpenFile, restart: Restart) -> int:
        """A new empty file where the old one was, without a name already, open as the old one was."""
        path = record.file.path
        folder, base = os.path.split(path)
        try:
            if record.flags & O_TMPFILE:
                # Not to be had by opening it once more: the flag is one of this one description.
                return os.open(folder, os.O_TMPFILE | (record.flags & AT_OPEN) | os.O_CLOEXEC, 0o600)
            maker, name = create_beside(path, 0o600)
        except OSError as error:
            instead = os.environ.get("TMPDIR", "/tmp")
            restart.say(f"{path} (deleted) is made again in {instead}: {error.strerror}")
            maker, name = create_beside(f"{instead}/{base}", 0o600)
        try:
            os.unlink(name)
            return reopen(maker, record.flags)
        finally:
            os.close(maker)

    def _reopen(self, fd: int, record: OpenFile) -> int:
        try:
            return reopen(fd, record.flags)
        except PermissionError:
            # Opened while its mode allowed it, or created without: ours, so the mode can be lent.
            mode = stat.S_IMODE(os.fstat(fd).st_mode)
            os.chmod(f"/proc/self/fd/{fd}", 0o600)
            try:
                return reopen(fd, record.flags)
            finally:
                os.chmod(f"/proc/self/fd/{fd}", mode)


def _of_clone(clone: int, sink: Sink) -> Contents:
    """The contents of a clone made while the job was stopped; the clone is given up."""
    try:
        return store_file(clone, sink)
    finally:
        os.close(clone)


def make_missing(file: FileIdentity, restart: Restart) -> None:
    """Create a file that is gone; its contents come later. Nothing if it is there. Raises Refused, RestartFailed."""
    path = file.path
    if os.path.lexists(path):
        return
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except FileNotFoundError:
        raise missing(path, "is gone, and so is its folder") from None
    except OSError as error:
        raise RestartFailed(f"cannot create {path} again: {error.strerror}") from None
    restart.on_failure(lambda: os.unlink(path))
    os.fchmod(fd, stat.S_IMODE(file.mode))
    os.close(fd)


def verify(record: OpenFile, restart: Wanted) -> None:
    """Is the file still what the job may go on with, if nothing brings it back? Raises Refused. Pure looking."""
    file = record.file
    kept = _kept(record, restart)
    if record.made_up or record.deleted or ((record.in_folder or record.holder >= 0) and not kept):
        return
    if record.written:
        if kept:
            return
        reason = paths.replaced(file)
        if reason and not (reason == paths.GONE and _empty(record, restart)):
            way_out = "bring it back, or restart with --files=keep to go on with what is there"
            if reason == paths.GONE:
                way_out = "bring it back, or put another in its place and restart with --files=keep"
            raise missing(file.path, reason, way_out)
    else:
        check_unchanged(file, restart)


def check_unchanged(file: FileIdentity, restart: Wanted) -> None:
    """For a file that was only read or mapped: raises Refused if it changed, unless that was accepted."""
    reason = paths.changed(file)
    if reason and (reason == "is gone" or restart.changed_files != "accept"):
        way_out = "put it back" if reason == "is gone" else "bring it back, or restart with --changed-files=accept"
        raise missing(file.path, reason, way_out)


def is_shared_memory(pid: int, dev: int, ino: int, job: Job) -> bool:
    """Is it a file on tmpfs that the job maps shared and writable, as shm_open(3) and sem_open(3) make them?

    Such a file is memory of the job rather than a file: it comes back with its contents.
    """
    return not os.major(dev) and job.maps(dev, ino) and mounts.kind_of_device(pid, dev) in ("tmpfs", "ramfs")


def _no_mount(seen: Descriptor) -> Refusal | None:
    """Files of kernel facilities look like regular ones, but are on no mount."""
    if os.major(seen.dev) or paths.is_at(seen.target, seen.dev, seen.ino):
        return None
    try:
        mount = mounts.of(seen.pid, seen.mnt_id)
    except OSError:
        return None
    if mount is None:
        thing = f"{seen.target} on no mounted filesystem (a kernel object)"
        return seen.refuse(thing, "close it before the checkpoint")
    return None


def was_empty(record: OpenFile) -> bool:
    """Was there nothing in a file that the job writes? Then nothing is lost if the job has removed it since: it is made
    again (not with `--files=keep`)."""
    comes_back = record.deleted or record.in_folder or record.holder >= 0
    return record.written and not record.file.size and not comes_back and not record.keep


def _empty(record: OpenFile, restart: Wanted) -> bool:
    return was_empty(record) and restart.files != "keep"


def _kept(record: OpenFile, restart: Wanted) -> bool:
    return record.keep or restart.files == "keep"


SERVICE = RegularService()
