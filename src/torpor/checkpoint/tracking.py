"""Which memory was written since the last checkpoint, so that the next one reads only that.

A userfaultfd of each process, held by us, lets the kernel note writes to its private anonymous memory (WP_ASYNC; nobody
is asked, no process waits for us). Right before the job is stopped, what is new is made to be noted; while it is
stopped, the kernel is asked which pages were written, and forgets it: that is the moment from which the next time
counts. What a window of memory held is known by the name of its chunk in the last checkpoint.

What is believed: that a page of an area in which writes have been noted since the last checkpoint, which has not been
written, is what it was. Everything else is read:

- areas that are mapped anew, moved (mremap), of forked children or of another program after execve: the kernel does not
  note their writes, and says so (`Pagemap.written`);
- areas that have been noted since a moment ago only (`fresh`);
- all of it after a checkpoint that failed, since its look has made the kernel forget;
- small areas, files, shared memory (others may write to it).

A page that was dropped and is there again counts as written; one that was dropped and is not, changes the bitmap of
its window. Devices that write by themselves keep a job from being saved at all, as long as they do.

It costs the program a fault, some microsecond, for the first write to a page after each checkpoint, and the kernel no
longer joins these areas with new ones beside them. It ends with us: if we die, the kernel takes the marks off.

Source: Documentation/admin-guide/mm/userfaultfd.rst (WP_ASYNC), Documentation/admin-guide/mm/pagemap.rst,
mm/userfaultfd.c, fs/proc/task_mmu.c (pagemap_scan).
"""

from __future__ import annotations

import _socket
import array
import errno
import os
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager

import msgspec

from torpor.checkpoint.stretches import Range, merged, stretches
from torpor.linux import pagemap, proc, userfaultfd
from torpor.linux.arch.x86_64 import NR
from torpor.model.data import Ref
from torpor.model.errors import CheckpointFailed
from torpor.posix.memory import capture
from torpor.posix.memory.pages import WINDOW, PagesRecord, Window
from torpor.posix.turnover import Meeting, Numbers, Script, close_all, send_descriptor
from torpor.store.save import Kept, Save
from torpor.tracee.freeze import freeze
from torpor.tracee.process import LivingProcess
from torpor.tracee.task import Gone

SMALLEST = 1 << 20
"""Bytes of an area that is worth it."""
_LEAST = 4 << 20
"""Bytes of anonymous memory that a process has to have."""
_MOST = 256
"""Processes: each costs us a descriptor."""


class _Noted:
    """A process whose writes are noted. started: tells it from a later one of the same number (proc.Stat). fresh: areas
    of which nothing is known yet. known: what the last checkpoint has of its memory; its chunks are that one's."""

    def __init__(self, started: int, fd: int) -> None:
        self.started, self.fd = started, fd
        self.fresh: list[Range] = []
        self.known = PagesRecord()


class Tracker:
    """The writes of one job, from one checkpoint to the next. Belongs to whoever supervises it."""

    def __init__(self) -> None:
        self._noted: dict[int, _Noted] = {}
        self._alike: tuple[bytes, tuple[str, ...]] = b"", ()
        """By what the last checkpoint named its chunks, and what it left out of them."""
        self._kept = Kept()
        self.why = ""
        """Why writes are not noted on this machine, '' if they are."""
        self.flags: Mapping[int, capture.Flags] = {}
        """By host pid: how memory was marked at the last checkpoint. That it is not any more shows in time
        (memory.Remarked)."""
        self._marks_change = False

    def prepare(self, find: Callable[[], Sequence[int]], guard: AbstractContextManager[object]) -> None:
        """Let the writes of a running job be noted, as far as they are not. Processes that are new to us are stopped
        for a moment. find: the job's processes (host pids). guard: see SaveRequest. Raises Refused and
        CheckpointFailed as `freeze` does."""
        for probe in (userfaultfd.probe_wp, pagemap.probe):
            able, why = probe()
            if not able:
                self.why = f"all memory was read, since writes cannot be tracked here: {why}"
                return
        self._forget_gone()
        new = [pid for pid in find() if pid not in self._noted and _worth_it(pid)]
        new = new[: max(0, _MOST - len(self._noted))]
        if new:
            try:
                with guard, freeze(find) as frozen:
                    for pid in new:
                        if pid in frozen.processes:
                            self._meet(frozen.processes[pid])
            except (Gone, ProcessLookupError, FileNotFoundError):
                pass  # it is just ending
        for pid, noted in list(self._noted.items()):
            try:
                _note(pid, noted)
            except (ProcessLookupError, FileNotFoundError):
                self._forget(pid)  # ended, or another program now

    def look(self, pids: Iterable[int], saving: Save, forget: Sequence[str]) -> Unchanged:
        """What of the stopped processes is as it was. From here on everything counts anew, and until `remember` nothing
        is known. forget: what this checkpoint leaves out."""
        found = {}
        for pid in pids:
            noted = self._noted.get(pid)
            if noted is not None:
                known, noted.known = noted.known, PagesRecord()
                found[pid] = known, _changed(pid, noted)
        alike, self._alike = self._alike, (saving.names_by, tuple(forget))
        kept, self._kept = self._kept, Kept()
        return Unchanged(found, kept, saving if alike == self._alike else None)

    def doubt(self) -> bool:
        """Memory was not marked as it was supposed to be: that is not supposed any more. Was it?"""
        supposed, self.flags, self._marks_change = bool(self.flags), {}, True
        return supposed

    def remember(self, pages: Mapping[int, PagesRecord], saving: Save, flags: Mapping[int, capture.Flags]) -> None:
        """A checkpoint was made of what `look` was told of. pages, flags: by host pid."""
        if not self._marks_change:
            self.flags = flags
        self._kept = saving.kept()
        for pid, record in pages.items():
            noted = self._noted.get(pid)
            if noted is not None:
                noted.known = record

    def close(self) -> None:
        """Writes are noted no more."""
        for pid in list(self._noted):
            self._forget(pid)

    def _meet(self, process: LivingProcess) -> None:
        """Get a userfaultfd of a stopped process. It is made there, in one batch that leaves nothing behind whatever
        becomes of us, and sent to us."""
        meeting = Meeting(_socket.SOCK_SEQPACKET)
        try:
            numbers, script = Numbers(process.pid), Script()
            link = meeting.connect(numbers, script, "over")
            made = numbers.take()
            flags = os.O_CLOEXEC | os.O_NONBLOCK | userfaultfd.USER_MODE_ONLY
            script.add(NR.userfaultfd, flags, otherwise="over")
            send_descriptor(link, made, script)
            script.label("over")
            close_all(numbers, script)
            answers = process.leader.run(script.calls, check=False)
            if any(answer.error for answer in answers):
                return  # not allowed there, no room for a descriptor: it is read
            fd = _received(meeting.accept(process.tgid))
            try:
                userfaultfd.note_writes(fd)
                self._noted[process.pid] = _Noted(proc.stat(process.pid).starttime, fd)
            except OSError:
                os.close(fd)
        except CheckpointFailed:
            pass  # see above
        finally:
            meeting.close()

    def _forget_gone(self) -> None:
        for pid, noted in list(self._noted.items()):
            try:
                if proc.stat(pid).starttime == noted.started:
                    continue
            except OSError:
                pass
            self._forget(pid)

    def _forget(self, pid: int) -> None:
        os.close(self._noted.pop(pid).fd)


class Unchanged:
    """What memory of a job is as it was in the last checkpoint."""

    def __init__(
        self, found: Mapping[int, tuple[PagesRecord, list[Range]]], kept: Kept, saving: Save | None
    ) -> None:  # fmt: skip
        """found: by host pid, what is known, and what may have changed since.  kept: the chunks of the last checkpoint.
        saving: None if it names chunks otherwise."""
        self._found = found
        self._kept = kept
        self._saving = saving
        self._starts = {pid: [start for start, _ in changed] for pid, (_, changed) in found.items()}

    def stretches(self, pid: int, pages: Sequence[Range]) -> list[tuple[Range, PagesRecord]]:
        """What of these pages, in long stretches, is what it was, so that it need not be read: its addresses, and what
        is to be written down of it. pages: ranges, ascending."""
        if self._saving is None or pid not in self._found:
            return []
        record, changed = self._found[pid]
        found = []
        for stretch in stretches(record, pages, changed):
            rows = record.cut(stretch.first, stretch.end)
            refs = self._saving.take_over(self._kept, rows.refs)
            if refs is not None:
                found.append((stretch.range, msgspec.structs.replace(rows, refs=refs)))
        return found

    def ref(self, pid: int, window: Window) -> Ref | None:
        """The chunk of a window, if it is what it was and the store has it still; None if it has to be read."""
        name = self.name(pid, window)
        return self._saving.again(name, window.size) if name is not None and self._saving is not None else None

    def name(self, pid: int, window: Window) -> bytes | None:
        """The name of the chunk that the window had in the last checkpoint, if it has not changed. Pure."""
        if pid not in self._found:
            return None
        (record, changed), number = self._found[pid], window.address // WINDOW
        numbers = record.numbers
        row = bisect_left(numbers, number)
        if row == len(numbers) or numbers[row] != number or record.bitmap(row) != window.bitmap:
            return None
        at = bisect_right(self._starts[pid], window.address + WINDOW - 1)
        if at and changed[at - 1][1] > window.address:
            return None
        return self._kept.names[record.ref(row)]


def _worth_it(pid: int) -> bool:
    try:
        return int(proc.status(pid)["RssAnon"].split()[0]) << 10 >= _LEAST
    except (OSError, KeyError):
        return False


def _eligible(area: proc.Area) -> bool:
    return area.perms[1] == "w" and area.perms[3] == "p" and not area.ino and area.size >= SMALLEST


def _note(pid: int, noted: _Noted) -> None:
    """Note writes to all of a running process that is large enough. Raises OSError (ESRCH: it has ended or executed
    another program)."""
    pages = pagemap.Pagemap(pid)
    try:
        for row in rows(proc.maps(pid)):
            if not any(_eligible(area) and not pages.noted(area.start) for area in row):
                continue
            new = [area for area in row if not pages.noted(area.start)]
            try:
                userfaultfd.register(noted.fd, row[0].start, row[-1].end - row[0].start)
            except OSError as error:
                if error.errno == errno.ESRCH:
                    raise
                continue  # it has just changed, or is of a kind that cannot be noted: it is read
            for area in new:
                noted.fresh.append((area.start, area.end))
                pages.written(area.start, area.end)
    finally:
        pages.close()


def rows(areas: Iterable[proc.Area]) -> Iterator[list[proc.Area]]:
    """Private anonymous areas (ascending) that lie side by side. Writes are noted in all of a row or in none of it:
    where a program has one page protected for a moment, there are three areas, and would be for good if writes were
    noted in two of them; then mremap(2) of all of it, which is one area to the program, fails (EFAULT). Pure."""
    row: list[proc.Area] = []
    for area in areas:
        plain = area.perms[3] == "p" and not area.ino and area.path not in _KERNELS
        if row and not (plain and row[-1].end == area.start):
            yield row
            row = []
        if plain:
            row.append(area)
    if row:
        yield row


_KERNELS = ("[vdso]", "[vvar]", "[vvar_vclock]", "[vsyscall]")


def _changed(pid: int, noted: _Noted) -> list[Range]:
    """Ranges of a stopped process' memory that may differ from what they were, as `merged` gives them."""
    changed, noted.fresh = noted.fresh, []
    pages = pagemap.Pagemap(pid)
    try:
        for area in proc.maps(pid):
            found = pages.written(area.start, area.end) if _eligible(area) else None
            changed += [(area.start, area.end)] if found is None else found
    finally:
        pages.close()
    return merged(changed)


def _received(link: _socket.socket) -> int:
    """The descriptor that waits there."""
    try:
        _, control, _, _ = link.recvmsg(1, 64, _socket.MSG_CMSG_CLOEXEC)
        return array.array("i", control[0][2])[0]
    finally:
        link.close()
