"""System V shared memory.

The kernel keeps for a segment: its identity (posix/sysv.py), its size, its pages, who made it and who attached or
detached last, whether it is locked, and whether it goes with its last attachment (IPC_RMID while attached). Each
attachment is a memory area '/SYSVkey (deleted)' whose inode number is the segment's id; the number of areas in the
job against the number the kernel counts (shm_nattch) tells whether somebody else has it attached: then it is
refused.

Contents are read through the memory of a process that has the segment attached. Of a segment that nobody has
attached (or of which all have unmapped a part) they are read by a helper of ours that enters the IPC namespace and
attaches it: that shows in the segment's last pid and times.

At the restart one stub makes every segment and fills it. Then each stub attaches whole, somewhere, what it had
attached, and makes its areas from that with mremap(2): so parts come back as parts, and attachments that cannot be
made writable (SHM_RDONLY) as such. An area's protection is the memory floor's business (posix/memory/area.py).

Not the same afterwards: times; the last pid where that process is gone; SHM_NORESERVE, which the kernel does not
show. Huge pages (SHM_HUGETLB) are refused.

Source: shmctl(2), shmop(2), ipc/shm.c.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import msgspec

from torpor.linux import proc, sysvipc, uio
from torpor.linux.arch.x86_64 import NR
from torpor.linux.libc import syscall
from torpor.linux.proc import Area
from torpor.linux.sysvipc import Segment
from torpor.model.data import CHUNK_SIZE, Sink, Source
from torpor.model.errors import CheckpointFailed, NotNow, RestartFailed
from torpor.posix.memory.area import SYSV, AreaRecord
from torpor.posix.memory.capture import object_chunks, touched_pages
from torpor.posix.service import Job, JobBase
from torpor.posix.sysv import Identity, Members, actor, check_owner, identity, listed, made, next_number
from torpor.tracee.call import Call, In, call
from torpor.tracee.process import Process

PREFIX = "/SYSV"
PAGE = 4096

Attachments = dict[int, list[tuple[Process, Area]]]


class SharedSegment(msgspec.Struct, frozen=True):
    """A segment. identity: with the key it was made with, which its areas show even after IPC_RMID. chunks: (offset,
    bytes, chunk) of what is not zero. doomed: IPC_RMID was called; it goes with its last attachment. cpid, lpid: who
    made it and who attached or detached last, as the job sees them."""

    identity: Identity
    size: int
    chunks: tuple[tuple[int, int, int], ...]
    doomed: bool
    locked: bool
    cpid: int
    lpid: int


class SharedSegments(msgspec.Struct, frozen=True):
    segments: tuple[SharedSegment, ...]


class SharedMemoryService(JobBase):
    name = "sysv_shm"
    record: type[msgspec.Struct] = SharedSegments

    def capture(self, job: Job, processes: Sequence[Process]) -> SharedSegments | None:
        members = Members(processes)
        attached = attachments(processes)
        found = []
        for number, raw in listed(members, NR.shmctl, sysvipc.SHM_STAT_ANY, sysvipc.SEGMENT_SIZE, attached):
            segment = sysvipc.segment(raw)
            here = attached.pop(number, [])
            if not here and members.are_younger(max(segment.ctime, segment.atime, segment.dtime)):
                continue
            if belongs(members, number, segment, here):
                mine = identity(number, segment.perm)
                check_owner(members, "the shared memory segment", mine)
                found.append(_capture(members, mine, segment, here, job.sink))
        if attached:
            number = next(iter(attached))
            raise members.refuse(f"the shared memory segment {number} is of another IPC namespace", "detach it")
        return SharedSegments(tuple(found)) if found else None

    def create(self, record: Any, processes: Mapping[int, Process], source: Source) -> None:
        # Those that are doomed first: their key may be another's by now.
        for segment in sorted(record.segments, key=lambda one: not one.doomed):
            _create(segment, processes, source)

    def finish(self, record: Any, processes: Mapping[int, Process]) -> None:
        """Who attached or detached last does so last. (What is doomed would not survive nobody having it attached.)"""
        for segment in record.segments:
            process = processes.get(segment.lpid)
            if process is not None:
                number = segment.identity.number
                address = process.run([call(NR.shmat, number, 0, sysvipc.SHM_RDONLY)])[0].value
                process.run([call(NR.shmdt, address)])


def attachments(processes: Sequence[Process]) -> Attachments:
    """The areas of a job's processes that are shared memory segments, by id."""
    found: Attachments = {}
    for process in processes:
        for area in process.areas:
            if area.path.startswith(PREFIX):
                found.setdefault(area.ino, []).append((process, area))
    return found


def belongs(members: Members, number: int, segment: Segment, here: Sequence[tuple[Process, Area]]) -> bool:
    """Is it the job's? Raises Refused if it is somebody else's as well."""
    if here and segment.attached > len(here):
        outside = _attached_outside(members, number)
        refused = members.refuse(
            f"the shared memory segment {number} (key {segment.perm.key:#x}) is attached by "
            f"{outside or 'a process outside the job'} too",
            "start both in one job, or let one of them detach it (shmdt)",
        )
        # Where nobody is seen to have it, a process of the job may just be ending, and give its memory up.
        raise refused if outside else NotNow(refused.refusals)
    if not here and segment.perm.mode & sysvipc.SHM_DEST:
        return False  # it goes with whoever still has it: outside the job, or just ending
    if here or members.private:
        return True
    if segment.attached:
        return False
    used = ((segment.cpid, segment.ctime), (segment.lpid, max(segment.atime, segment.dtime)))
    return any(members.acted(pid, when) for pid, when in used) or members.made_here(segment.perm, segment.ctime, used)


def _attached_outside(members: Members, number: int) -> str:
    """Who else has it attached, in words; '' where nobody is seen to."""
    inside = {process.pid for process in members.processes}
    for name in os.listdir("/proc"):
        if not name.isdigit() or int(name) in inside:
            continue
        try:
            if any(area.ino == number and area.path.startswith(PREFIX) for area in proc.maps(int(name))):
                return f"process {name} ({proc.comm(int(name))}) outside the job"
        except OSError:
            continue
    return ""


def _capture(
    members: Members, mine: Identity, segment: Segment, here: Sequence[tuple[Process, Area]], sink: Sink
) -> SharedSegment:
    doomed = bool(segment.perm.mode & sysvipc.SHM_DEST)
    if here:
        # IPC_RMID makes the key private; the areas are still called by the one it was made with.
        mine = msgspec.structs.replace(mine, key=key_of(here[0][1].path))
    whole = (segment.size + PAGE - 1) // PAGE * PAGE
    if here and _covered(here) >= whole:
        sources = [
            (process, AreaRecord(area.start, area.end, SYSV, 1, True, (), area.offset)) for process, area in here
        ]
        _, chunks = object_chunks(sources, sink, touched_pages)
    else:
        chunks = [(at, len(data), sink.put(data)) for at, data in read_apart(members, mine.number, whole)]
    locked = bool(segment.perm.mode & sysvipc.SHM_LOCKED)
    return SharedSegment(mine, segment.size, tuple(chunks), doomed, locked, segment.cpid, segment.lpid)


def key_of(path: str) -> int:
    """'/SYSV0000002a (deleted)': 42. Keys are signed."""
    key = int(path.removeprefix(PREFIX).split(" ")[0], 16)
    return key - (1 << 32) if key >> 31 else key


def _covered(here: Sequence[tuple[Process, Area]]) -> int:
    """Bytes from the start of a segment that are mapped somewhere without a gap."""
    end = 0
    for start, size in sorted((area.offset, area.size) for _, area in here):
        if start > end:
            break
        end = max(end, start + size)
    return end


def read_apart(members: Members, number: int, size: int) -> Iterator[tuple[int, bytes]]:
    """The parts of a segment that are not zero, as (offset, bytes), read by a helper process that attaches it.

    If we die, the helper does not stay: it ends when nobody reads. Raises CheckpointFailed.
    """
    namespaces = [] if not members.private else ["user", "ipc"]
    inside = [os.open(f"/proc/{members.first.pid}/ns/{kind}", os.O_RDONLY | os.O_CLOEXEC) for kind in namespaces]
    if namespaces and os.stat(inside[0]).st_ino == os.stat("/proc/self/ns/user").st_ino:
        os.close(inside.pop(0))  # one is not allowed to enter one's own
    source, target = os.pipe2(os.O_CLOEXEC)
    child = os.fork()
    if child == 0:
        _read(inside, number, size, source, target)
    os.close(target)
    for fd in inside:
        os.close(fd)
    failure = ""
    try:
        with os.fdopen(source, "rb") as stream:
            while head := stream.read(16):
                at, length = int.from_bytes(head[:8], "little"), int.from_bytes(head[8:], "little")
                if not length:
                    failure = os.strerror(at)
                    break
                yield at, stream.read(length)
    finally:
        _, status = os.waitpid(child, 0)
    if failure or status:
        raise CheckpointFailed(f"the shared memory segment {number} cannot be read: {failure or 'its reader died'}")


def _read(inside: Sequence[int], number: int, size: int, source: int, target: int) -> None:
    """The helper: attach, write what is not zero to the pipe, end. Never returns."""
    try:
        os.close(source)
        for namespace in inside:
            syscall(NR.setns, namespace, 0)
        address = syscall(NR.shmat, number, 0, sysvipc.SHM_RDONLY)
        vector = ctypes.create_string_buffer(CHUNK_SIZE // PAGE)
        for at in range(0, size, CHUNK_SIZE):
            length = min(CHUNK_SIZE, size - at)
            syscall(NR.mincore, address + at, length, ctypes.addressof(vector))
            if not any(vector.raw[: length // PAGE]) and not _swapping():
                continue
            data = ctypes.string_at(address + at, length)
            if data.count(0) != length:
                os.write(target, at.to_bytes(8, "little") + length.to_bytes(8, "little"))
                done = 0
                while done < length:
                    done += os.write(target, data[done:])
    except OSError as error:
        os.write(target, (error.errno or 5).to_bytes(8, "little") + bytes(8))
    finally:
        os._exit(0)


def _swapping() -> bool:
    return len(proc.text("/proc/swaps").splitlines()) > 1


def _create(segment: SharedSegment, processes: Mapping[int, Process], source: Source) -> None:
    """A segment with its contents; one that is doomed stays attached in the stub that made it."""
    mine = segment.identity
    number = mine.number
    maker = actor(processes, segment.cpid)
    next_number(maker, "shm", number)
    flags = sysvipc.CREAT | sysvipc.EXCL | mine.mode
    made(
        maker, "the shared memory segment", mine,
        call(NR.shmget, mine.key, segment.size, flags), call(NR.shmctl, 0, sysvipc.RMID, 0),
    )  # fmt: skip
    address = maker.run([call(NR.shmat, number, 0, 0)])[0].value
    for offset, length, ref in segment.chunks:
        data = memoryview(source.get(ref))[:length]
        try:
            uio.write_from(maker.pid, [(address + offset, length)], uio.address_of_readonly(data), length)
        except OSError as error:
            raise RestartFailed(f"the shared memory segment {number} cannot be filled: {error.strerror}") from error
    raw = sysvipc.permissions(sysvipc.SEGMENT_SIZE, mine.uid, mine.gid, mine.mode)
    calls: list[Call] = [call(NR.shmctl, number, sysvipc.SET, In(raw))]
    if segment.locked:
        calls.append(call(NR.shmctl, number, sysvipc.SHM_LOCK, 0))
    calls.append(call(NR.shmctl, number, sysvipc.RMID, 0) if segment.doomed else call(NR.shmdt, address))
    answers = maker.run(calls, check=False)
    for what, answer in zip(calls, answers):
        if answer.error:
            hint = " (ulimit -l)" if what.args[1] == sysvipc.SHM_LOCK else ""
            raise RestartFailed(f"the shared memory segment {number}: {os.strerror(answer.error)}{hint}")


SERVICE = SharedMemoryService()
