"""Which jobs are running: one folder for each in the user's runtime folder, with `info.json` and the
supervisor's `socket`.

There is no daemon, so the folder is the only meeting point of a supervisor and the commands. It is
`$XDG_RUNTIME_DIR/torpor`, or `/tmp/torpor-UID` where that variable is not set or names nothing we can write
to; a job started without the variable (cron) is still found by a command that has it, because both are looked
at. A folder in /tmp might have been prepared by somebody else, so owner, type and mode are checked before
anything in it is believed.

With $TORPOR_RUNTIME, that folder is used and no other: jobs started so are apart from all others (tests).

A job is put in by renaming a complete folder into place: a name can be taken once, and nobody ever sees half
an entry. Changes are made under flock(2) on the runtime folder.
"""

from __future__ import annotations

import fcntl
import os
import stat as mode
import time
from collections.abc import Callable, Iterator
from typing import Any

from torpor.linux import proc
from torpor.model.errors import NotFound, TorporError, UsageError
from torpor.named_tuple import NamedTuple
from torpor.supervise import as_json, state

ALLOWED = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-")
NAME_LIMIT = 100


class Pid(NamedTuple):
    """A process that cannot be mistaken for a later one of the same number. start: /proc/PID/stat, field
    22."""

    pid: int
    start: int

    @classmethod
    def of(cls, pid: int) -> Pid:
        """The process as it is now; start is 0 if it is gone already."""
        try:
            return cls(pid, proc.stat(pid).starttime)
        except OSError:
            return cls(pid, 0)

    @property
    def state(self) -> str:
        """The letter of /proc/PID/stat ('R', 'S', 'T', 'Z', ...), or '' once the process is gone."""
        if self.pid <= 0:
            return ""
        try:
            seen = proc.stat(self.pid)
        except OSError:
            return ""
        return seen.state if seen.starttime == self.start else ""

    @property
    def alive(self) -> bool:
        """Is it still there, other than as a zombie?"""
        return self.state not in ("", "Z", "X")


NOBODY = Pid(0, 0)


class Entry(NamedTuple):
    """A job on this host, as its supervisor wrote it down.

    root: the job's first process, by its host pid; root_vpid: the same as the job sees it.
    anchor, include_anchor, skip: the tree of the job (checkpoint Tree); `anchor` is 0 where that is the
    supervisor's own subtree while it lives, and else the root's.
    parent_is_reaper: with `anchor`, whether the root's parent is where the job's orphans go.
    store: absolute location of the store, '' for the default one.  started, saved_at: seconds since the
    epoch. saved: the newest checkpoint made in this run, `train@3`, or ''.  origin: the checkpoint it was
    restarted from.  part: which part of a job over hosts this is.  door: what lets its other hosts in.  heir: who ends
    what is left of it, after its supervisor's death.  holder: who answers for the filter of a job that is
    watched (watch/).  upkeep: what is done for it unasked, as `upkeep.encode` writes it.
    inside: how it speaks with torpor (inside.py), '' if it does not.  policy: its own, as `terms.encode` writes it.
    seats: that it holds, by name; keeper: who keeps them (seat_keeper.py).  bringer: who brings memory that was not
    there at its restart (arriving.py).  identity: see lease.py.
    """

    name: str
    supervisor: Pid = NOBODY
    root: Pid = NOBODY
    root_vpid: int = 0
    reaper: Pid = NOBODY
    helpers: tuple[int, ...] = ()
    anchor: int = 0
    include_anchor: bool = False
    skip: tuple[int, ...] = ()
    parent_is_reaper: bool = False
    holder: Pid = NOBODY
    store: str = ""
    started: float = 0.0
    argv: tuple[str, ...] = ()
    log: str = ""
    origin: str = ""
    saved: str = ""
    saved_at: float = 0.0
    upkeep: str = ""
    inside: str = ""
    policy: str = ""
    seats: tuple[str, ...] = ()
    keeper: Pid = NOBODY
    bringer: Pid = NOBODY
    identity: str = ""
    part: str = ""
    door: Pid = NOBODY
    heir: Pid = NOBODY
    boot: str = ""
    pid_namespace: int = 0
    folder: str = ""
    """Where the entry is; not written down."""

    @property
    def supervised(self) -> bool:
        """Is there a supervisor that can answer? (Not one that is stopped by Ctrl-Z.)"""
        return self.supervisor.state not in ("", "Z", "X", "T", "t")

    @property
    def alive(self) -> bool:
        """Is the job still running, or about to?"""
        if self.boot != proc.boot_id():
            return False
        return self.root.alive or self.supervisor.alive or self.reaper.alive or self.heir.alive


def fit_name(program: str) -> str:
    """A job name made of a program's name: its last component, with what does not fit replaced by '-'."""
    base = program.rstrip("/").rpartition("/")[2]
    fitted = "".join(c if c in ALLOWED else "-" for c in base).lstrip(".-")[:NAME_LIMIT]
    return fitted or "job"


def fresh_identity() -> str:
    """A word that no other job has (lease.py)."""
    return os.urandom(16).hex()


def check_name(name: str) -> str:
    """`name`, if it may be the name of a job, or of a pool of seats. Raises UsageError."""
    if not name or name[0] in ".-" or len(name) > NAME_LIMIT or not ALLOWED.issuperset(name):
        raise UsageError(f"{name!r} cannot be a name: use letters, digits, '.', '_' and '-'")
    return name


def _ours(path: str) -> bool:
    """Is `path` a folder that is ours and closed to others? Raises TorporError if it is somebody else's."""
    try:
        seen = os.lstat(path)
    except OSError:
        return False
    if not mode.S_ISDIR(seen.st_mode) or seen.st_uid != os.geteuid():
        raise TorporError(f"{path} is not a folder of ours (owner {seen.st_uid}): remove it, or set XDG_RUNTIME_DIR")
    if seen.st_mode & 0o077:
        os.chmod(path, 0o700)
    return True


def _candidates() -> list[str]:
    if only := os.environ.get("TORPOR_RUNTIME", ""):
        return [os.path.abspath(only)]
    out = []
    session = os.environ.get("XDG_RUNTIME_DIR", "")
    if session.startswith("/"):
        out.append(f"{session}/torpor")
    user = os.geteuid()
    out += [path for path in (f"/run/user/{user}/torpor",) if path not in out and os.path.isdir(path)]
    out.append(f"/tmp/torpor-{user}")
    return out


def folders() -> list[str]:
    """The runtime folders that exist, the preferred one first."""
    out = []
    for path in _candidates():
        try:
            if _ours(path):
                out.append(path)
        except TorporError:
            # Somebody else's folder is never read. It stands in the way only of who would have to write
            # there.
            continue
    return out


def runtime() -> str:
    """The runtime folder for a new job, made if need be. Raises TorporError where none can be used."""
    if only := os.environ.get("TORPOR_RUNTIME", ""):
        only = os.path.abspath(only)
        try:
            _make(only)
        except OSError as error:
            raise TorporError(f"no runtime folder: {only}: {error.strerror}") from None
        return only
    session = os.environ.get("XDG_RUNTIME_DIR", "")
    if session.startswith("/"):
        try:
            # A session folder of another user is what `su` and `sudo` leave behind in the environment.
            if os.stat(session).st_uid == os.geteuid():
                path = f"{session}/torpor"
                _make(path)
                return path
        except (OSError, TorporError):
            pass
    path = f"/tmp/torpor-{os.geteuid()}"
    try:
        _make(path)
    except OSError as error:
        raise TorporError(f"no runtime folder: {path}: {error.strerror}; set XDG_RUNTIME_DIR") from None
    return path


def _make(path: str) -> None:
    try:
        os.mkdir(path, 0o700)
    except FileExistsError:
        _ours(path)
    if not os.access(path, os.W_OK | os.X_OK):
        raise PermissionError(13, "not writable")


class _Lock:
    """flock(2) on a runtime folder, for the length of a `with`."""

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self.fd = -1

    def __enter__(self) -> None:
        self.fd = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        fcntl.flock(self.fd, fcntl.LOCK_EX)

    def __exit__(self, *exc: object) -> None:
        os.close(self.fd)


def pid_namespace() -> int:
    """A number for the PID namespace we are in; 0 if /proc does not tell."""
    try:
        return os.stat("/proc/self/ns/pid").st_ino
    except OSError:
        return 0


def _write(folder: str, entry: Entry) -> None:
    plain = entry._asdict()
    del plain["folder"]
    data = as_json.encoded({"version": 1, **plain})
    temporary = f"{folder}/info.json.new"
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        os.write(fd, data)
    finally:
        os.close(fd)
    os.rename(temporary, f"{folder}/info.json")


def read(folder: str) -> Entry | None:
    """The entry in one folder; None if there is none that can be understood."""
    try:
        plain: dict[str, Any] = as_json.decoded(proc.read(f"{folder}/info.json"))
        known = {key: value for key, value in plain.items() if key in Entry._fields}
        for key in ("supervisor", "root", "reaper", "holder", "keeper", "bringer", "door", "heir"):
            known[key] = Pid(*known.get(key, NOBODY))
        for key in ("helpers", "skip", "argv", "seats"):
            known[key] = tuple(known.get(key, ()))
        return Entry(**{**known, "folder": folder})
    except (OSError, ValueError, TypeError, AttributeError):
        return None


def _remove(folder: str) -> None:
    """Delete an entry. It is renamed first, so that nobody meets half of one."""
    parent, _, name = folder.rpartition("/")
    gone = f"{parent}/.gone-{os.getpid()}-{name}"
    try:
        os.rename(folder, gone)
        for part in os.listdir(gone):
            os.unlink(f"{gone}/{part}")
        os.rmdir(gone)
    except OSError:
        pass


def _older(path: str, seconds: float) -> bool:
    try:
        return time.time() - os.stat(path).st_mtime > seconds
    except OSError:
        return False


def entries() -> Iterator[Entry]:
    """Every entry, also those of jobs that have ended. What cannot be understood is deleted after a while."""
    for parent in folders():
        try:
            names = sorted(os.listdir(parent))
        except OSError:
            continue
        for name in names:
            if name.startswith("."):
                continue
            entry = read(f"{parent}/{name}")
            if entry is not None:
                yield entry
            elif _older(f"{parent}/{name}", 60.0):
                _remove(f"{parent}/{name}")


def jobs() -> list[Entry]:
    """The running jobs, by name; what dead supervisors left behind is deleted.

    Entries of another PID namespace (a container that shares our /tmp) are neither shown nor touched: their
    pids mean nothing here.
    """
    here = pid_namespace()
    live: list[Entry] = []
    stale: list[Entry] = []
    for entry in entries():
        if entry.pid_namespace == here:
            (live if entry.alive else stale).append(entry)
    for entry in stale:
        with _Lock(entry.folder.rpartition("/")[0]):
            now = read(entry.folder)
            if now is not None and not now.alive:
                _remove(entry.folder)
    return sorted(live, key=lambda entry: entry.name)


def find(name: str | None) -> Entry:
    """The running job of that name, or the only one if no name is given. Where the name was still taken when a part of
    a job over hosts began, `JOB.PART` is meant by `JOB`, too. Raises NotFound, UsageError."""
    running = jobs()
    if name:
        for entry in running:
            if entry.name == name:
                return entry
        parts = [entry for entry in running if entry.part and entry.name == f"{name}.{entry.part}"]
        if len(parts) == 1:
            return parts[0]
        raise NotFound(f"no job named {name} is running")
    if not running:
        raise NotFound("no job is running")
    if len(running) > 1:
        raise UsageError(f"which job? {', '.join(entry.name for entry in running)}")
    return running[0]


def running(name: str) -> Entry | None:
    """The running job of that name, if there is one."""
    return next((entry for entry in jobs() if entry.name == name), None)


def claim(entry: Entry, names: Iterator[str], taken: Callable[[str], bool]) -> Entry | None:
    """Put a job in, under the first of `names` that no running job has and that is not `taken`.

    Returns the entry with its name and folder, or None if no name was free. Raises TorporError where there is
    no runtime folder, OSError where it cannot be written.
    """
    parent = runtime()
    entry = entry._replace(
        supervisor=Pid.of(os.getpid()),
        started=time.time(),
        boot=proc.boot_id(),
        pid_namespace=pid_namespace(),
    )
    in_use = {other.name for other in jobs()}
    fresh = f"{parent}/.new-{os.getpid()}"
    try:
        os.mkdir(fresh, 0o700)
    except FileExistsError:  # of a dead process with our pid
        _remove(fresh)
        os.mkdir(fresh, 0o700)
    for name in names:
        if name in in_use or taken(name):
            continue
        entry = entry._replace(name=name)
        _write(fresh, entry)
        try:
            with _Lock(parent):
                os.rename(fresh, f"{parent}/{name}")
        except OSError:
            # Taken this very moment: rename(2) refuses to replace a folder that is not empty.
            continue
        return entry._replace(folder=f"{parent}/{name}")
    _remove(fresh)
    return None


def series(base: str) -> Iterator[str]:
    """`train`, `train-2`, `train-3`, ..."""
    yield base
    for number in range(2, 10_000):
        yield f"{base}-{number}"


def update(entry: Entry) -> Entry:
    """Write an entry down again; if the folder has vanished (a login session ended), put it into the next
    one."""
    if not os.path.isdir(entry.folder):
        parent = runtime()
        folder = f"{parent}/{entry.name}"
        try:
            os.mkdir(folder, 0o700)
        except FileExistsError:
            other = read(folder)
            if other is not None and other.supervisor != entry.supervisor and other.alive:
                return entry
        entry = entry._replace(folder=folder)
    _write(entry.folder, entry)
    return entry


def release(entry: Entry) -> None:
    """Take a job out."""
    if not entry.folder:
        return
    try:
        with _Lock(entry.folder.rpartition("/")[0]):
            now = read(entry.folder)
            if now is None or now.supervisor == entry.supervisor:
                state.remove_provided(entry.name)
                _remove(entry.folder)
    except OSError:
        pass
