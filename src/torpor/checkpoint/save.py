"""The pipeline that saves a job: find, survey, freeze, capture, store, release, commit."""

from __future__ import annotations

import contextlib
import gc
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

import msgspec

from torpor.checkpoint import beforehand, headroom, practice, survey
from torpor.checkpoint.capture import capture, end
from torpor.checkpoint.captured import Captured
from torpor.checkpoint.copies import Copies
from torpor.checkpoint.memory import Remarked, Unlike
from torpor.checkpoint.shortage import Shortage
from torpor.checkpoint.together import SavedTogether
from torpor.checkpoint.tree import Tree
from torpor.image import codec
from torpor.image.whole import PartRecord
from torpor.linux import masks, proc
from torpor.model.address_map import AddressMap
from torpor.model.errors import CheckpointFailed, NotNow, Refused
from torpor.model.ledger import Ledger
from torpor.model.terms import Terms
from torpor.posix.backlog import Backlogs
from torpor.posix.job_services import job_services
from torpor.posix.memory.forget import Forget
from torpor.posix.service import Stream
from torpor.tracee.call import CallFailed
from torpor.tracee.freeze import freeze
from torpor.tracee.snapshot import Snapshot
from torpor.tracee.task import Gone

if TYPE_CHECKING:
    from torpor.checkpoint.tracking import Tracker
    from torpor.image.manifest import Manifest
    from torpor.store.root import RootInfo
    from torpor.store.save import Save
    from torpor.store.sealing import Sealer
    from torpor.store.store import Store

Progress = Callable[[str, int, int], None]


class SaveRequest(msgspec.Struct, kw_only=True):
    """What to save and where.

    name: the job's name. files: 'auto', 'keep', 'save' or 'save:PATH,...'. streams: what the job inherited, with our
    own descriptors for it. progress: called with (phase, bytes done, bytes in all). guard: held from the freeze to
    the release; whoever waits for the job's processes must not do so meanwhile. stop: end the job once it is saved.
    sealer: who signs, and to whom it is encrypted.
    with_files: also what the job runs, maps and has open without writing to it.
    compress: see Store.begin.
    label: more that is to be seen in a listing.
    ledger: called while the job is stopped: what it has asked for so far, None if it is not watched.  terms: what is
    sealed of policies and seats.  identity: which job it is (`store.root.Header`).
    together: the other hosts of the job, if it is not alone: then this is a part of a checkpoint, which exists when
    somebody has written its root (whole.py).  first: the job began here.
    forget: what is left out (posix/memory/forget.py).  tracker: knows which memory was written since the last
    checkpoint.
    """

    name: str
    tree: Tree
    store: Store
    sealer: Sealer
    stop: bool = False
    files: str = "auto"
    with_files: bool = False
    compress: str = ""
    streams: Sequence[Stream] = ()
    parent_is_reaper: bool = False
    progress: Progress | None = None
    guard: AbstractContextManager[object] = msgspec.field(default_factory=contextlib.nullcontext)
    label: Mapping[str, str] = msgspec.field(default_factory=dict)
    ledger: Callable[[], Ledger | None] = lambda: None
    terms: Terms | None = None
    identity: str = ""
    together: SavedTogether | None = None
    first: bool = True
    forget: Sequence[str] = ()
    tracker: Tracker | None = None


class SaveReport(msgspec.Struct, frozen=True, kw_only=True):
    """What was saved: sizes in bytes, times in seconds. bytes_read: of memory that had to be read; the rest is known to
    be as it was (tracking.py)."""

    job: str
    number: int
    bytes_total: int
    bytes_new: int
    bytes_read: int
    seconds: float
    pause_seconds: float
    location: str
    processes: int
    threads: int
    notes: tuple[str, ...] = ()


def save(request: SaveRequest) -> SaveReport:
    """Save a job. To be called in one thread from start to end: a tracee belongs to the thread that attached to it.

    Raises Refused, CheckpointFailed; the job then runs on, and earlier checkpoints are whole.
    """
    began = time.perf_counter()
    if not (pids := request.tree.find()):
        raise CheckpointFailed("the job has no processes any more")
    # Where writes are tracked, this is known from before; or the first look has to come after `prepare`.
    marks = beforehand.Meanwhile(pids) if request.tracker is None and not request.stop else None
    refusals = survey.running(request.tree, request.streams, request.files)
    if refusals:
        raise Refused(refusals)
    last: frozenset[int] = frozenset()
    if request.tracker is not None:
        request.tracker.prepare(request.tree.find, request.guard)
    if request.together is not None:
        return _attempt(request, began, last, _PAUSES[-1], True, True)  # the others do not try again
    why = ""
    for number, pause in enumerate(_PAUSES):
        try:
            return _attempt(request, began, last, pause, number >= _PATIENT, marks=None if number else marks)
        except Changed:
            # A process ended in the middle of it, by a signal from outside or of its own accord. Once more, then.
            break
        except NotNow as error:
            # What is in the way is of the kind that passes. A server that never rests has connections waiting at
            # every moment: they become fewer only while those who connect stand still already.
            last = error.waits_for
            time.sleep(pause)
        except Unlike as error:
            if isinstance(error, Remarked) and request.tracker is not None and request.tracker.doubt():
                continue
            why = f"saved while it was stopped: {error}"
            break
    return _attempt(request, began, last, _PAUSES[-1], True, True, why)


_PAUSES = (0, 0.005, 0.02, 0.08, 0.2, 0.4, 0.8)
"""Seconds before another attempt, and for which it lets processes run that something waits for."""


_PATIENT = 3
"""After so many attempts connections that wait to be accepted are looked into (posix/backlog.py)."""


class Changed(CheckpointFailed):
    """The job changed under our hands."""


def _changed(error: Exception) -> Changed:
    return Changed(f"the job changed while it was being saved ({error}); it runs on")


def _attempt(
    request: SaveRequest,
    began: float,
    last: frozenset[int],
    grace: float,
    may: bool,
    certain: bool = False,
    why: str = "",
    marks: beforehand.Meanwhile | None = None,
) -> SaveReport:
    """certain: what there is to know of memory is looked up while the job is stopped. why: all of it is saved while the
    job is stopped, and the reason.  marks: a look at how memory is marked that has begun already."""
    saving = _begin(request)
    together, tracker = request.together, request.tracker
    copies = Copies(request.with_files)
    look_at_writes = None
    if tracker is not None:
        look_at_writes = lambda pids: tracker.look(pids, saving, request.forget)  # noqa: E731
    if not (request.stop or why):
        needs = headroom.look(request.tree.find())
        lacking = masks.REASON if masks.masked("snapshot") else headroom.lacking(needs, headroom.machine())
        why = f"saved while it was stopped: {lacking}" if lacking else ""
    snapshot, shortage = None, None
    if not (request.stop or why):
        snapshot = Snapshot()
        shortage = Shortage(request.tree.find, request.guard, needs, snapshot)
    job_services()  # they are modules, which are loaded while the job runs
    if snapshot is not None:
        practice.once(request.guard)
    flags = None
    if snapshot is not None and not certain:
        pids = request.tree.find()
        known = tracker.flags if tracker is not None else {}
        flags = beforehand.flags(pids, known) if marks is None else marks.found(pids)
    captured: Captured | None = None
    try:
        if together is not None:
            together.surveyed()
        with request.guard, _no_collection(wanted=snapshot is not None):
            with freeze(request.tree.find, last=last, grace=grace) as frozen:
                paused = frozen.since
                try:
                    captured = capture(
                        frozen,
                        saving,
                        request.name,
                        request.tree,
                        request.streams,
                        request.files,
                        request.parent_is_reaper,
                        request.progress,
                        copies,
                        Backlogs(may, lambda: _moved(request)),
                        together,
                        flags,
                        snapshot,
                        Forget(request.forget),
                        look_at_writes,
                    )
                    captured = captured.told(request.ledger(), request.terms)
                except (CallFailed, Gone, ProcessLookupError, FileNotFoundError) as error:
                    raise _changed(error) from error
                if together is not None:
                    captured.memory.adopt()  # the other hosts may take longer than copies wait for us
                    together.captured()
                if request.stop:
                    info, manifest = _commit(saving, captured, request, began, None)
                    notes = _notes(captured, why, None, tracker)
                    _stored(request, saving, manifest, captured, notes, began, paused)
                    end(frozen, manifest)
                    frozen.kill()
            resumed = time.perf_counter()
            captured.memory.adopt()
        if not request.stop:
            if together is not None:
                together.resumed()
            info, manifest = _commit(saving, captured, request, began, shortage)
            if tracker is not None:
                tracker.remember(captured.memory.pages, saving, captured.memory.flags)
            notes = _notes(captured, why, shortage, tracker)
            _stored(request, saving, manifest, captured, notes, began, paused, resumed)
    except BaseException:
        saving.abort()
        raise
    finally:
        copies.close()
        proc.forget_areas()
        if captured is not None:
            captured.memory.huge_pages.close(request.guard)
        if snapshot is not None:
            snapshot.close()
    return SaveReport(
        job=info.job,
        number=info.number,
        bytes_total=info.bytes_total,
        bytes_new=info.bytes_new,
        bytes_read=captured.memory.bytes_read,
        seconds=time.perf_counter() - began,
        pause_seconds=resumed - paused + (shortage.seconds if shortage is not None else 0.0),
        location=request.store.location,
        processes=len(manifest.processes),
        threads=_threads(manifest),
        notes=notes,
    )


def _moved(request: SaveRequest) -> AddressMap:
    """Which addresses lead elsewhere for this job."""
    ledger = request.ledger() if request.tree.watched else None
    return AddressMap.parse(ledger.moved if ledger is not None else ())


@contextlib.contextmanager
def _no_collection(wanted: bool) -> Iterator[None]:
    """Without collections of garbage, which take milliseconds, and would fall into the pause."""
    wanted &= gc.isenabled()
    if wanted:
        gc.disable()
    try:
        yield
    finally:
        if wanted:
            gc.enable()


def _begin(request: SaveRequest) -> Save:
    together = request.together
    if together is None:
        return request.store.begin(request.name, request.sealer, request.compress)
    return request.store.begin_part(request.name, together.number, together.part, request.sealer, request.compress)


def _notes(captured: Captured, why: str, shortage: Shortage | None, tracker: Tracker | None) -> tuple[str, ...]:
    """What whoever asked is to know."""
    more = why, shortage.note if shortage else "", tracker.why if tracker is not None else ""
    return (*captured.notes, *captured.left_out(), *filter(None, more))


def _stored(
    request: SaveRequest,
    saving: Save,
    manifest: Manifest,
    captured: Captured,
    notes: tuple[str, ...],
    began: float,
    paused: float,
    resumed: float = 0.0,
) -> None:
    """Tell the other hosts that this one's part is stored."""
    if request.together is None:
        return
    from torpor.checkpoint import resettle
    from torpor.linux import interfaces

    assert saving.written is not None
    now = time.perf_counter()
    request.together.stored(
        PartRecord(
            part=saving.written,
            host=manifest.machine.host,
            address=request.together.address,
            processes=len(manifest.processes),
            threads=_threads(manifest),
            command=manifest.processes[0].comm,
            pause=(resumed or now) - paused,
            seconds=now - began,
            first=request.first,
            notes=notes,
            face=request.together.face,
            ports=resettle.ports(manifest),
            also=tuple(sorted(interfaces.addresses())),
            bytes_read=captured.memory.bytes_read,
        )
    )


def _commit(
    saving: Save, captured: Captured, request: SaveRequest, began: float, shortage: Shortage | None
) -> tuple[RootInfo, Manifest]:
    try:
        manifest = captured.complete(shortage)
    except CallFailed as error:
        raise _changed(error) from error
    label: dict[str, str | int | float] = {
        "created": manifest.created,
        "host": manifest.machine.host,
        "processes": len(manifest.processes),
        "threads": _threads(manifest),
        "command": manifest.processes[0].comm,
        "seconds": round(time.perf_counter() - began, 3),
        **request.label,
    }
    return saving.commit(codec.encode(manifest), label, identity=request.identity), manifest


def _threads(manifest: Manifest) -> int:
    return sum(len(process.threads) for process in manifest.processes)
