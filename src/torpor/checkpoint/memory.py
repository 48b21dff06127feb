"""The memory of a frozen job: which process maps what, objects shared between processes, contents to the sink."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING

import msgspec

from torpor.checkpoint.ahead import Ahead
from torpor.checkpoint.beforehand import Flags
from torpor.checkpoint.dropping import Dropping, Work, code_apart
from torpor.checkpoint.huge_pages import HUGE, HugePages
from torpor.checkpoint.shortage import INTERVAL, Shortage
from torpor.checkpoint.stretches import Range, minus
from torpor.linux import proc
from torpor.linux.proc import Area
from torpor.model.data import Sink
from torpor.model.errors import CheckpointFailed, Refusal, Refused
from torpor.model.snapshot import COMM
from torpor.named_tuple import NamedTuple
from torpor.posix.memory import capture, objects
from torpor.posix.memory.area import FILE, OBJECT, AreaRecord
from torpor.posix.memory.forget import Forget
from torpor.posix.memory.objects import MemoryObjectRecord
from torpor.posix.memory.pages import PagesRecord, Window, for_threads, pack, windows
from torpor.posix.service import Job
from torpor.tracee.freeze import Frozen
from torpor.tracee.process import LivingProcess, Process
from torpor.tracee.snapshot import Copy, Snapshot

if TYPE_CHECKING:
    from torpor.checkpoint.tracking import Unchanged

WORKERS = 2
_BATCH = 16
"""Windows that a thread takes at once."""

Progress = Callable[[str, int, int], None]


class Unlike(CheckpointFailed):
    """What a copy of a process shows is not what was thought of it: it has to be saved while it is stopped."""


class Remarked(Unlike):
    """A process' memory is marked otherwise than was supposed."""


class Look(NamedTuple):
    """The areas of a stopped process. settled: all there is to know of them is known.  marked: at least it is known
    of all large ones how they were marked, and whether they had huge pages, a moment ago."""

    seen: list[capture.Seen]
    settled: bool
    marked: bool = False


class Saved(NamedTuple):
    """By host pid: the areas and contents of each process."""

    areas: dict[int, tuple[AreaRecord, ...]]
    pages: dict[int, PagesRecord]
    guards: dict[int, tuple[tuple[int, int], ...]]


def look(frozen: Frozen, known: Flags | None) -> dict[int, Look]:
    """The areas of all processes. To be called before anything is run in them, which needs memory of its own.

    known: what there is to know can in part be learned from copies later, if they are to be made; None if it has to be
    settled now. Raises Refused.
    """
    looks = {}
    for pid, process in frozen.processes.items():
        marks = {} if known is None else known.get(pid, {})
        sketched = None if known is None else capture.sketch(process, marks)
        if sketched is None:
            looks[pid] = Look(capture.look(process), True)
        else:
            marked = all(area in marks for area in process.areas if area.size >= HUGE)
            looks[pid] = Look(sketched, False, marked)
    return looks


def save(
    frozen: Frozen,
    order: Sequence[int],
    looks: dict[int, Look],
    job: Job,
    file_number: Callable[[str], int],
    sink: Sink,
    progress: Progress | None,
    snapshot: Snapshot | None,
    ask: Callable[[Sequence[LivingProcess]], Iterator[str]],
    forget: Forget,
    look_at_writes: Callable[[Iterable[int]], Unchanged] | None = None,
) -> Held:
    """Save all memory that has to be saved while the job is stopped; the rest is held in copies of its processes, which
    `Held.finish` saves. order: host pids, parents before their children.  snapshot: takes the copies; None to save
    everything now.  ask: asks processes all there is to ask, one after the other, while those before it make their
    copies; it says of each why it is not to make any, '' if it may.  forget: what is left out.  look_at_writes: see
    tracking.Tracker.look.

    Raises Refused, CheckpointFailed, Gone, OSError, and what `ask` raises.
    """
    held = Held(looks, file_number, sink, progress, snapshot, forget)
    shared: dict[tuple[int, int], list[tuple[Process, Area, AreaRecord]]] = {}
    for pid, (seen, *_) in looks.items():
        process = frozen.processes[pid]
        forget.look(pid, process.leader.tid)
        records = held.number(process, seen)
        for (area, *_), record in zip(seen, records):
            if record.kind == OBJECT:
                shared.setdefault((area.dev, area.ino), []).append((process, area, record))
        held.areas[pid] = records
    held.objects = _objects(shared, held.areas, job, sink)
    try:
        for pid, why in zip(order, ask([frozen.processes[pid] for pid in order])):
            if snapshot is not None and why:
                held.why[pid] = why
            elif snapshot is not None:
                seen = looks[pid].seen
                adviser = any(one.record.huge for one in seen) and not held.huge_pages.unaided
                snapshot.begin(frozen.processes[pid], capture.dropped(seen), adviser)
    finally:
        # Also where one of them could not be asked: the others are in the middle of it.
        if snapshot is not None:
            held.why |= snapshot.finish()
    # Nothing more is asked: what is saved is the memory as it was found.
    for process in frozen.processes.values():
        process.set_out_home()
    for process in frozen.processes.values():
        process.unpark()
    if look_at_writes is not None:
        held.unchanged = look_at_writes(frozen.processes)
    held.settle(frozen)
    return held


class Held:
    """The memory of a job, saved in part. why: by host pid of those that no copy could be made of, the reason.
    unchanged: what need not be read.  pages: by host pid, what there is of each process, once all is saved.
    bytes_read: of all this.  flags: what the copies showed.  huge_pages: to be closed before the
    snapshot is."""

    def __init__(
        self,
        looks: dict[int, Look],
        file_number: Callable[[str], int],
        sink: Sink,
        progress: Progress | None,
        snapshot: Snapshot | None,
        forget: Forget,
    ) -> None:
        self.forget = forget
        self.areas: dict[int, tuple[AreaRecord, ...]] = {}
        self.objects: tuple[MemoryObjectRecord, ...] = ()
        self.why: dict[int, str] = {}
        self.unchanged: Unchanged | None = None
        self.pages: dict[int, PagesRecord] = {}
        self.bytes_read = 0
        self.flags: dict[int, capture.Flags] = {}
        self.huge_pages = HugePages()
        self._looks, self._file_number, self._sink, self._progress = looks, file_number, sink, progress
        self._copies = {} if snapshot is None else snapshot.copies
        self._snapshot = snapshot
        self._comm: dict[int, str] = {}
        self._later: list[int] = []
        """Processes of which it is seen last whether their memory is marked as supposed."""
        self._found: dict[int, list[tuple[Window, int]]] = {pid: [] for pid in looks}
        self._stretches: dict[int, list[tuple[Range, PagesRecord]]] = {pid: [] for pid in looks}
        self._guards: dict[int, tuple[tuple[int, int], ...]] = {}

    def number(self, process: Process, seen: Iterable[capture.Seen]) -> tuple[AreaRecord, ...]:
        """Records that say which file of the manifest an area maps. Raises Refused."""
        return tuple(
            msgspec.structs.replace(one.record, what=_file(process, one.area, self._file_number))
            if one.record.kind == FILE
            else one.record
            for one in seen
        )

    def settle(self, frozen: Frozen) -> None:
        """Save what has to be while the job is stopped: all of the processes without a copy, and of the others what a
        copy has not."""
        copied: Collection[int] = () if self._snapshot is None else self._snapshot.made
        for pid, process in list(frozen.processes.items()):
            if pid not in copied and not self._looks[pid].settled:
                self._settle_now(process)
        work: list[Work] = []
        for pid, (seen, *_) in self._looks.items():
            chosen = [one for one in seen if one.apart] if pid in copied else seen
            work += _work(pid, pid, self._runs(pid, pid, chosen))
            # A copy has neither what is apart nor all of what is shared; guard pages go with their areas.
            lacking = [one for one in seen if pid not in copied or one.record.shared or one.apart]
            self._guards[pid] = capture.guards(pid, lacking)
            if pid in copied:
                self._comm[pid] = frozen.processes[pid].comm
        self._take(self._unknown(work)[0])

    def adopt(self) -> None:
        """To be called as soon as the job goes on, by the thread that made the copies; nobody else waits for our
        children meanwhile. Raises Unlike."""
        for pid in self._snapshot.adopt() if self._snapshot is not None else ():
            raise self._killed(pid)

    def finish(self, shortage: Shortage | None) -> Saved:
        """Save the rest, from the copies, and let these end. shortage: looks after the memory that they need; None if
        there are none. Raises Unlike, CheckpointFailed."""
        if self._snapshot is not None and shortage is not None:
            with shortage:
                try:
                    self._read_copies(self._snapshot, shortage)
                finally:
                    self._snapshot.release()
                    if shortage.why:
                        self._snapshot.close()  # the job goes on when what they had is free again
            self.huge_pages.mend()
        for pid, found in self._found.items():
            stretches = sorted((start, record) for (start, _), record in self._stretches[pid])
            self.pages[pid] = pack(sorted(found), stretches)
        return Saved(self.areas, self.pages, self._guards)

    def _read_copies(self, snapshot: Snapshot, shortage: Shortage) -> None:
        ahead = Ahead({pid: copy.pid for pid, copy in self._copies.items()})
        try:
            snapshot.clean()
            runs = {pid: list(self._of_copy(pid, copy)) for pid, copy in self._copies.items()}
            ahead.go(
                {pid: [run for pages in areas for run in pages] for pid, areas in runs.items()},
                [pid for pid in self._copies if self._may_claim(pid)],
                shortage.enough,
            )
            work = [each for pid, copy in self._copies.items() for each in _work(pid, copy.pid, runs[pid])]
            work, known = self._unknown(work)
            code, work = code_apart(work, self._copies)
            self._take(code)
            stretches = {pid: [one for one, _ in self._stretches[pid]] for pid in self._copies}
            dropping = Dropping(snapshot, work, known, stretches, shortage.guard)

            def mind(done: int) -> None:
                shortage.mind()
                dropping.saved(done)

            self._take(work, mind)
            if self._later:
                dropping.saved(0)
            for pid in self._later:
                self._confirm(pid, self._copies[pid])
        except (OSError, Refused, CheckpointFailed) as error:
            self._mind_dead()
            if isinstance(error, CheckpointFailed):
                raise
            raise Unlike(f"a copy cannot be read: {error}") from error
        # What is read of a copy that has been killed is nothing, which is not always told from there being nothing.
        self._mind_dead()

    def _may_claim(self, pid: int) -> bool:
        """May the kernel be made to do what it would do at writes of a process? Not where writes are noted, nor where
        equal pages are wanted to be one (MADV_MERGEABLE)."""
        return self.unchanged is None and not any("mg" in area.flags for area in self.areas[pid])

    def _mind_dead(self) -> None:
        """Raises Unlike if a copy was killed."""
        for pid, copy in self._copies.items():
            try:
                stat = proc.stat(copy.pid)
                alive = stat.comm == COMM and stat.state == "t"
            except OSError:
                alive = False
            if not alive:
                raise self._killed(pid)

    def _killed(self, pid: int) -> Unlike:
        return Unlike(f"the copy of process {pid} ({self._comm[pid]}) was killed")

    def _settle_now(self, process: Process) -> None:
        """The areas of a stopped process that was to have a copy."""
        found = capture.look(process)
        self._looks[process.pid] = Look(found, True)
        self._renumber(process.pid, found)

    def _of_copy(self, pid: int, copy: Copy) -> Iterable[Sequence[Range]]:
        """What there is to read in a copy, by area."""
        seen, settled, marked = self._looks[pid]
        huge = [(one.record.start, one.record.end) for one in seen if one.record.huge]
        adviser = partial(self._snapshot.advise, pid) if self._snapshot is not None and copy.adviser else None
        self.huge_pages.note(pid, copy.pid, huge, adviser)
        if not settled and marked:
            self._later.append(pid)
        elif not settled:
            seen = self._confirm(pid, copy)
        else:
            seen = [one for one in seen if not one.apart]
            self._guard(pid, copy, seen)
        return self._runs(pid, copy.pid, seen)

    def _confirm(self, pid: int, copy: Copy) -> list[capture.Seen]:
        """What a copy shows of the areas of its process. The kernel looks at all pages that are there, so this comes
        when most have been dropped, if it can. Raises Remarked."""
        seen, found = self._looks[pid].seen, capture.look_at_copy(pid, self._comm[pid], copy.pid, copy.scratch)
        if not capture.confirm(seen, found):
            raise Remarked(f"process {pid} ({self._comm[pid]}) changed the marks of its memory")
        if pid in self._later:
            found = [one.with_huge(before.record.huge) for one, before in zip(found, seen)]
        self._renumber(pid, found)
        self.flags[pid] = capture.seen_of(found)
        self._guard(pid, copy, found)
        return found

    def _guard(self, pid: int, copy: Copy, seen: Iterable[capture.Seen]) -> None:
        """Take in the guard pages that a copy shows."""
        shown = capture.guards(copy.pid, (one for one in seen if not one.record.shared))
        self._guards[pid] = tuple(sorted((*self._guards[pid], *shown)))

    def _runs(self, pid: int, source: int, seen: Iterable[capture.Seen]) -> Iterator[Sequence[Range]]:
        """Runs of pages that there are to save of each of these areas of a process, but for long stretches that are
        what they were. source: it, or its copy."""
        for pages in capture.own_pages(source, [one for one in seen if self.forget.kept(pid, one.record)]):
            stretches = [] if self.unchanged is None else self.unchanged.stretches(pid, pages)
            self._stretches[pid] += stretches
            yield list(minus(pages, (one for one, _ in stretches))) if stretches else pages

    def _renumber(self, pid: int, found: Iterable[capture.Seen]) -> None:
        """Records as they were found now; the numbers of files and objects are known."""
        self.areas[pid] = tuple(
            msgspec.structs.replace(one.record, what=old.what, descriptor=old.descriptor)
            for one, old in zip(found, self.areas[pid])
        )

    def _unknown(self, work: list[Work]) -> tuple[list[Work], list[Work]]:
        """What has to be read; and what the store has already: then there is nothing to do for it."""
        unknown: list[Work] = []
        known: list[Work] = []
        for each in work:
            ref = None if self.unchanged is None else self.unchanged.ref(each.pid, each.window)
            if ref is None:
                unknown.append(each)
            else:
                known.append(each)
                self._found[each.pid].append((each.window, ref))
        return unknown, known

    def _take(self, work: list[Work], mind: Callable[[int], None] | None = None) -> None:
        """mind: see _pump."""
        total = sum(each.window.size for each in work)
        self.bytes_read += total
        progress = self._progress
        told = (lambda done: progress("memory", done, total)) if progress else None
        refs = _pump(work, self._sink, told, self.forget, mind)
        for each, ref in zip(work, refs):
            self._found[each.pid].append((each.window, ref))


def _work(pid: int, source: int, runs: Iterable[Sequence[Range]]) -> Iterator[Work]:
    """What there is to be read of a process. source: it, or its copy."""
    return (Work(pid, source, window) for pages in runs for window in windows(pages))


def _file(process: Process, area: Area, file_number: Callable[[str], int]) -> int:
    try:
        return file_number(area.path)
    except OSError as error:
        raise Refused(
            [
                Refusal(
                    process.pid, process.comm, f"maps {area.path}, which cannot be looked at ({error.strerror})",
                    "make it reachable under that name",
                )
            ]
        ) from error  # fmt: skip


def _objects(
    shared: dict[tuple[int, int], list[tuple[Process, Area, AreaRecord]]],
    areas: dict[int, tuple[AreaRecord, ...]],
    job: Job,
    sink: Sink,
) -> tuple[MemoryObjectRecord, ...]:
    """Number the memory objects, write the numbers into the areas, save the contents.

    An object that is also open somewhere in the job is saved by the service of that descriptor.
    """
    open_files: dict[tuple[int, int], int | None] = {}
    for seen in sorted(job.descriptors, key=lambda seen: seen.access != 2):
        if not seen.flags & os.O_PATH:
            open_files.setdefault((seen.dev, seen.ino), job.object_of(seen.pid, seen.number))
    records: list[MemoryObjectRecord] = []
    for key, mappings in shared.items():
        holder = open_files.get(key)
        if holder is not None:
            changed = {"descriptor": holder}
        else:
            kind = objects.kind_of(mappings[0][1].path)
            size, chunks = capture.object_chunks(
                [(process, record) for process, _, record in mappings], sink, capture.shown_pages
            )
            changed = {"what": len(records)}
            records.append(MemoryObjectRecord(kind, objects.name_of(mappings[0][1].path), size, tuple(chunks)))
        for process, _, record in mappings:
            areas[process.pid] = tuple(
                msgspec.structs.replace(r, **changed) if r is record else r for r in areas[process.pid]
            )
    return tuple(records)


def _pump(
    work: list[Work],
    sink: Sink,
    progress: Callable[[int], None] | None,
    forget: Forget,
    mind: Callable[[int], None] | None,
) -> list[int]:
    """Read every window and put it into the sink, with a few threads; the chunks in the order of the work. mind: called
    in this one meanwhile, now and then, if there is much to do, with how many windows from the first on are done."""
    refs = [0] * len(work)
    lock = threading.Lock()
    begun = done = 0
    underway: set[int] = set()
    failures: list[BaseException] = []

    def drain() -> None:
        nonlocal begun, done
        try:
            with capture.Reader() as reader:
                while not failures:
                    with lock:
                        first = begun
                        begun = end = min(first + _BATCH, len(work))
                        underway.add(first)
                    for i in range(first, end):
                        pid, source, window = work[i]
                        data = reader.read(source, window)
                        forget.blot(pid, window, data)
                        refs[i] = sink.put(data)
                    with lock:
                        underway.discard(first)
                        if first == end:
                            return
                        done += sum(work[i].window.size for i in range(first, end))
                        if progress is not None:
                            progress(done)
        except BaseException as error:
            failures.append(error)

    workers = WORKERS if for_threads(len(work), sum(each.window.size for each in work)) else 1
    helpers = [threading.Thread(target=drain) for _ in range(workers - (mind is None) if len(work) > 64 else 0)]
    for helper in helpers:
        helper.start()
    if mind is None or not helpers:
        drain()
    else:
        try:
            for helper in helpers:
                while helper.is_alive():
                    with lock:
                        until = min(underway, default=begun)
                    mind(until)
                    helper.join(INTERVAL)
        except BaseException as error:
            failures.append(error)
    for helper in helpers:
        helper.join()
    if failures:
        if isinstance(failures[0], OSError):
            raise CheckpointFailed(f"memory could not be read: {failures[0]}") from failures[0]
        raise failures[0]
    return refs
