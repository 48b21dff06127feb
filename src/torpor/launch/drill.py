"""`torpor drill`: rehearse a restart up to the moment before the first instruction, and throw it away.

First everything is looked at that a restart would need of this host (checkpoint/prospects.py, addresses.py, room.py).
Then this process goes into namespaces of its own, for good, and restarts the job there, cut loose from all that is
outside (checkpoint/rehearse.py). Chunks that this did not read are read at the end.

The job may run meanwhile. Nothing is put into the registry, nothing is left: what was made is in memory or in the
namespaces, and goes with this process, however it ends.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from torpor.launch import program
from torpor.model.errors import Damaged, Refusal, Refused, Sealed, TorporError, Untrusted, UsageError
from torpor.named_tuple import NamedTuple
from torpor.supervise import registry

if TYPE_CHECKING:
    from torpor.checkpoint.addresses import Mine
    from torpor.image.manifest import Manifest
    from torpor.model.data import Buffer, Ref
    from torpor.store import RootInfo
    from torpor.store.load import Load

Progress = Callable[[str, int, int], None]

SPARE = 256 << 20
"""Bytes of memory that have to stay free beside what a rehearsal fills: the job may be running and grow."""


class Drilled(NamedTuple):
    """What came of a drill. failures: why the checkpoint would not start, a line each; none: it would.

    running: the job runs now. rehearsed: the restart was carried to the moment before the first instruction; filled:
    with the contents of memory. seconds: of the drill; restart_seconds: of the rehearsed restart. processes, threads,
    objects (open files of every kind), files (looked at on this host), addresses, chunks: how many; bytes: of memory
    and data.
    """

    checkpoint: str
    store: str
    failures: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    running: bool = False
    rehearsed: bool = False
    filled: bool = False
    processes: int = 0
    threads: int = 0
    objects: int = 0
    files: int = 0
    addresses: int = 0
    chunks: int = 0
    bytes: int = 0
    seconds: float = 0.0
    restart_seconds: float = 0.0

    @property
    def ok(self) -> bool:
        """Would it start?"""
        return not self.failures


class Wishes(NamedTuple):
    """As for `restart`: what would be asked for."""

    changed_files: str = "refuse"
    untrusted: bool = False
    map_path: tuple[str, ...] = ()
    progress: Progress | None = None


def drill(checkpoint: str | None, store: str, wishes: Wishes) -> Drilled:
    """Rehearse the restart of a checkpoint. This process must have no other threads, and is in other namespaces
    afterwards. Raises NotFound, UsageError; Refused where no rehearsal can be held here."""
    from torpor.store import open_store
    from torpor.supervise import audit

    began = time.perf_counter()
    program.hold_standard()
    opened = open_store(store or None, apart=True)
    info = opened.resolve(checkpoint)
    name = f"{info.job}@{info.number}"
    told: dict[str, Any] = {"job": info.job, "checkpoint": name, "store": opened.location, "why": "command"}
    try:
        result = Drilled(name, opened.location)
        try:
            if info.damaged:
                raise Damaged(info.damaged)
            if info.parts:
                raise UsageError(f"{name} was saved on several hosts: torpor verify --deep looks at all of its parts")
            from torpor.image.seal import Opening

            load = opened.load(info.job, info.number, Opening(wishes.untrusted))
        except (Damaged, Untrusted, Sealed) as error:
            result = result._replace(failures=(str(error),))
        else:
            try:
                result = _drill(_Seen(load), info, wishes, result)
            finally:
                load.close()
                opened.close()
        result = result._replace(seconds=round(time.perf_counter() - began, 4))
    except UsageError:
        raise
    except BaseException as error:
        audit.record("drill", error, **told)
        raise
    audit.record(
        "drill", None if result.ok else TorporError(result.failures[0]), **told, seconds=result.seconds,
        bytes_total=result.bytes,
    )  # fmt: skip
    return result


class _Seen:
    """An opened checkpoint that knows which of its chunks were read, and so verified."""

    near = None
    """No process reads packs itself (checkpoint/own_fill.py): it would not be known here what it has read."""

    def __init__(self, load: Load) -> None:
        self.load = load
        self.info, self.body = load.info, load.body
        self._seen: set[int] = set()

    def get(self, ref: Ref) -> Buffer:
        data = self.load.get(ref)
        self._seen.add(ref)
        return data

    def rest(self, progress: Progress | None) -> None:
        """Read what was not read. Raises Damaged."""
        left = [ref for ref in self.load.refs if ref not in self._seen]
        total = sum(self.load.size(ref) for ref in left)
        done = 0
        for ref in left:
            self.get(ref)
            done += self.load.size(ref)
            if progress is not None:
                progress("chunks", done, total)


def _drill(seen: _Seen, info: RootInfo, wishes: Wishes, result: Drilled) -> Drilled:
    from torpor.checkpoint import addresses, prospects, rehearse, room
    from torpor.checkpoint.relocate import relocate
    from torpor.checkpoint.required import check
    from torpor.checkpoint.restart import read
    from torpor.model.path_map import PathMap
    from torpor.supervise import state

    moved = PathMap.parse(wishes.map_path)
    failures: list[str] = []
    try:
        seen.load.look()
        saved = relocate(read(seen), moved)
    except Damaged as error:
        return result._replace(failures=(str(error),))
    mine, runs = _mine(info, saved)
    records = rehearse.decoded(saved)
    private = state.provided(info.job)
    around = prospects.look(saved, records, prospects.Policy(changed_files=wishes.changed_files), private, mine)
    found = addresses.look(records, mine)
    refusals = dict.fromkeys([*check(saved, wishes.changed_files), *around.refusals, *found.refusals])
    failures += [str(refusal) for refusal in refusals]
    failures += _forbidden(saved)
    notes = [*around.notes]
    failures += [
        f"{place.path} has {_size(place.free)} free, and a restart may write {_size(place.needed)} there; make room"
        for place in room.disk(saved, records, private)
        if place.needed > place.free
    ]
    if runs or around.own or found.own:
        runs = True
        own = list(dict.fromkeys((*around.own, *found.own)))
        used = f" ({_and(own)} in its use)" if own else ""
        notes.append(f"{info.job} is running{used}: a restart waits for its end, or is a copy (--clone)")
    needed, free = room.memory_needed(saved, records), room.memory_free()
    fill = needed + SPARE <= free
    if not fill:
        line = f"{_size(needed)} of memory are needed and {_size(free)} are free"
        if runs or needed <= free + room.swap_free():
            notes.append(f"{line}: memory was not filled")
        else:
            failures.append(f"{line}; end something, or use a larger machine")
    result = result._replace(
        running=runs, processes=len(saved.processes), threads=sum(len(p.threads) for p in saved.processes),
        objects=len(saved.objects), files=around.looked, addresses=found.needed, bytes=info.bytes_total,
        chunks=len(seen.load.refs),
    )  # fmt: skip
    if not failures:
        rehearsal = rehearse.Rehearsal(_hidden(result.store), rehearse.stand_ins(saved), fill)
        try:
            _settle(rehearsal, found.local, records)
            seconds, told = _rehearse(seen, moved, rehearsal, wishes.progress)
            result = result._replace(rehearsed=True, filled=fill, restart_seconds=round(seconds, 4))
            notes += told
        except Damaged as error:
            return result._replace(failures=(str(error),), notes=tuple(notes))
        except _Nowhere:
            raise
        except Refused as error:
            failures += [str(refusal) for refusal in error.refusals]
        except TorporError as error:
            more = "; the job is running, and may have what only one can have" if runs else ""
            failures.append(f"{error}{more}")
    try:
        seen.rest(wishes.progress)
    except Damaged as error:
        failures.insert(0, str(error))
    return result._replace(failures=tuple(failures), notes=tuple(notes))


class _Nowhere(Refused):
    """No rehearsal can be held here."""

    def __init__(self, thing: str, way_out: str) -> None:
        super().__init__([Refusal(0, "", thing, way_out)], "no restart can be rehearsed here")


def _forbidden(saved: Manifest) -> list[str]:
    """Why policies would refuse the restart. Seats are not asked for."""
    from torpor.policy import files
    from torpor.policy.decide import decide, merged
    from torpor.policy.outside import services

    terms = saved.terms
    layers = merged(terms.layers if terms is not None else (), files.standing())
    outcome = decide(services(saved), layers, terms.held if terms is not None else ())
    return [f"{what}: {why}; see torpor policy explain" for what, why in outcome.refusals]


def _mine(info: RootInfo, saved: Manifest) -> tuple[Mine, bool]:
    """Is a process one of the job; and does the job run? Told by the registry, and by the number that a process has in
    its own namespace together with its program."""
    from torpor.linux import proc
    from torpor.supervise.tree import members, reach

    entry = registry.running(info.job)
    known = frozenset(members(reach(entry))) if entry is not None else frozenset()
    programs = {
        process.pid: saved.files[process.exe].identity for process in saved.processes if process.exe >= 0
    }  # fmt: skip

    def mine(pid: int) -> bool:
        if pid in known:
            return True
        try:
            program = programs.get(proc.inner_pid(proc.status(pid)))
            if program is None:
                return False
            st = os.stat(f"/proc/{proc.face(pid)}/exe")
            return (st.st_ino, st.st_size, st.st_mtime_ns) == (program.ino, program.size, program.mtime_ns)
        except OSError:
            return False

    return mine, entry is not None or mine(saved.root)


def _hidden(store: str) -> str:
    """The folder over which a filesystem is hung that nobody else sees: torpor's own, so that none of the job's is
    hidden. Raises Refused where something else is needed from there."""
    from torpor.supervise import audit, state

    folder = registry.runtime()
    for path in (store, state.base(), audit.path()):
        if os.path.realpath(path).startswith(os.path.realpath(folder) + "/"):
            raise _Nowhere(f"{path} is in torpor's runtime folder", "name another one in TORPOR_RUNTIME")
    return folder


def _settle(rehearsal: Any, local: frozenset[bytes], records: list[tuple[str, Any]]) -> None:
    """Go into namespaces of our own, for good, and prepare them. Raises Refused where there are none."""
    from torpor.linux import devpts, loopback, namespaces

    user = os.geteuid() != 0
    why = namespaces.refused(user)
    if not why:
        settings = loopback.settings()
        try:
            namespaces.leave(user)
            namespaces.mount_memory(rehearsal.folder)
            rehearsal.prepare()
            loopback.up(local)
            loopback.apply(settings)
            if any(service == "pty_master" for service, _ in records):
                devpts.hang(devpts.make())
        except OSError as error:
            why = str(error.strerror)
    if why:
        raise _Nowhere(f"without namespaces ({why})", "torpor verify --deep looks at the data alone")
    # What is made under any name is made where nobody sees it.
    os.environ["TMPDIR"] = rehearsal.folder
    with open("/proc/self/oom_score_adj", "w") as adjustment:
        adjustment.write("1000")


class _Whole(BaseException):
    """The job is whole and has not run yet: that was all."""


def _rehearse(seen: _Seen, moved: Any, rehearsal: Any, progress: Progress | None) -> tuple[float, tuple[str, ...]]:
    """Restart, up to the release. How many seconds it took, and what it had to say. Raises what `restart` raises."""
    from torpor.checkpoint.restart import Restarted, RestartRequest, restart

    notes: tuple[str, ...] = ()
    seconds = 0.0

    def stop(job: Restarted) -> None:
        nonlocal notes, seconds
        notes, seconds = job.notes, job.seconds
        raise _Whole

    null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
    try:
        restart(
            RestartRequest(
                load=seen,
                standard=(null, null, null),
                clone=True,
                files="keep",
                changed_files="accept",
                map_path=moved,
                private=f"{rehearsal.folder}/provided",
                in_place=False,
                progress=progress,
                before_release=stop,
                rehearsal=rehearsal,
            )
        )
    except _Whole:
        return seconds, notes
    finally:
        os.close(null)
    raise AssertionError("a rehearsed job was let go")


def _and(words: list[str]) -> str:
    shown = words[:3] + ([f"{len(words) - 3} more"] if len(words) > 3 else [])
    return f"{', '.join(shown)} {'are' if len(shown) > 1 else 'is'}"


def _size(count: int) -> str:
    return f"{count / (1 << 20):.0f} MiB"
