"""Files in memory (memfd_create): a file without a name on a mount of the kernel's own.

What there is to save: the name it was given, its contents with holes, its seals, its mode, and for each
open file description of it offset and flags. One object (the *holder*) has the contents; the others are
opened from it. Whether sealing was allowed shows in the seals: a file made without MFD_ALLOW_SEALING has
F_SEAL_SEAL from the start.

Memory areas that map such a file map the object again; their contents are here. Seals are set in
`finish`, when the contents are there and what is mapped is mapped.
"""

from __future__ import annotations

import fcntl
import os
import stat

import msgspec

from torpor.model.errors import Refusal, Refused, RestartFailed
from torpor.posix import paths
from torpor.posix.contents import Contents, load_file, store_file, writer
from torpor.posix.descriptors import O_PATH, first_object, is_type, reopen, set_status, siblings, status_flags
from torpor.posix.service import Descriptor, DescriptorBase, Job, Restart

PREFIX = "/memfd:"


class MemoryFile(msgspec.Struct, frozen=True):
    """An open file description of a file in memory."""

    name: bytes
    flags: int
    offset: int
    mode: int
    mtime_ns: int
    seals: int
    holder: int = -1
    contents: Contents | None = None
    """Here only in the record of the holder."""


class MemoryFileService(DescriptorBase):
    name = "memfd"
    record = MemoryFile

    def claims(self, seen: Descriptor) -> bool:
        return is_type(seen, stat.S_IFREG) and seen.target.startswith(PREFIX) and os.major(seen.dev) == 0

    def survey(self, seen: Descriptor, job: Job) -> Refusal | None:
        try:
            block = os.stat(f"/proc/{seen.pid}/fd/{seen.number}").st_blksize
        except OSError:
            return None
        if block > os.sysconf("SC_PAGE_SIZE"):
            return seen.refuse(
                f"a memory file of huge pages ({seen.target})",
                "use plain pages: huge ones are not supported yet",
            )
        return None

    def capture(self, fd: int, seen: Descriptor, job: Job) -> MemoryFile:
        offset = os.lseek(fd, 0, os.SEEK_CUR)
        st = os.fstat(fd)
        same = [one for one in siblings(seen, job) if not one.flags & O_PATH]
        mine = job.object_of(seen.pid, seen.number)
        holder = first_object(same, job)
        contents = None
        if mine is None or holder in (mine, -1):
            try:
                contents = store_file(fd, job.sink)
            except OSError as error:
                raise Refused(
                    [
                        seen.refuse(
                            f"{seen.target}, which cannot be read ({error.strerror})",
                            "run torpor as its owner",
                        )
                    ]
                ) from None
        name = os.fsencode(seen.target.removesuffix(paths.DELETED).removeprefix(PREFIX))
        seals = fcntl.fcntl(fd, fcntl.F_GET_SEALS)
        return MemoryFile(
            name, status_flags(fd), offset, stat.S_IMODE(st.st_mode), st.st_mtime_ns, seals, holder, contents
        )

    def needs(self, record: MemoryFile) -> tuple[int, ...]:
        return (record.holder,) if record.contents is None and record.holder >= 0 else ()

    def create(self, record: MemoryFile, restart: Restart) -> int:
        try:
            if record.contents is None:
                fd = reopen(restart.object(record.holder), record.flags)
            else:
                fd = self._made_again(record, record.contents, restart)
            set_status(fd, record.flags)
            if record.offset:
                os.lseek(fd, record.offset, os.SEEK_SET)
        except OSError as error:
            name = os.fsdecode(record.name)
            raise RestartFailed(f"cannot make the memory file {name} again: {error.strerror}") from None
        return fd

    def _made_again(self, record: MemoryFile, contents: Contents, restart: Restart) -> int:
        fd = os.memfd_create(record.name.decode("utf-8", "surrogateescape"), _creation(record.seals))
        own = writer(fd)
        try:
            load_file(contents, restart.source, own)
            os.utime(own, ns=(record.mtime_ns, record.mtime_ns))
            if stat.S_IMODE(os.fstat(own).st_mode) != record.mode:
                os.fchmod(own, record.mode)
        finally:
            os.close(own)
        if record.flags & 3 != os.O_RDWR:
            first = fd
            fd = reopen(first, record.flags)
            os.close(first)
        return fd

    def finish(self, record: MemoryFile, fd: int, restart: Restart) -> None:
        if record.contents is None:
            return
        missing = record.seals & ~fcntl.fcntl(fd, fcntl.F_GET_SEALS)
        if not missing:
            return
        own = writer(fd)  # seals are set through a descriptor open for writing
        try:
            fcntl.fcntl(own, fcntl.F_ADD_SEALS, missing)
        except OSError as error:
            name = os.fsdecode(record.name)
            raise RestartFailed(f"cannot seal the memory file {name} again: {error.strerror}") from None
        finally:
            os.close(own)


def _creation(seals: int) -> int:
    """Flags for memfd_create that lead to these seals."""
    flags = os.MFD_CLOEXEC
    if seals == fcntl.F_SEAL_SEAL:
        return flags  # sealing was never allowed
    return flags | os.MFD_ALLOW_SEALING


SERVICE = MemoryFileService()
