"""What a restart would find on this host, looked at from outside and without a trace: files, named pipes, locks.

`required.check` looks at what is mapped or run. Here is the rest, which a restart only meets when it is under way, and
with a rehearsal it does not meet at all (checkpoint/rehearse.py): is what was open still there, may it be written to
where a restart would write, is a lock free that it would take, could it make again what it would make again.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from typing import Any

import msgspec

from torpor.checkpoint import copies
from torpor.image.manifest import Manifest
from torpor.linux import proc
from torpor.model.errors import Refusal, Refused
from torpor.named_tuple import NamedTuple
from torpor.posix import locks, regular
from torpor.posix.descriptors import O_ACCMODE
from torpor.posix.locks import Lock, PosixLocks

Mine = Callable[[int], bool]

_RIGHTS = "give yourself the right to, or run torpor as its owner"


class Policy(NamedTuple):
    """How a restart would treat files; see `posix.regular.Wanted`."""

    files: str = "auto"
    changed_files: str = "refuse"


class Found(NamedTuple):
    """refusals: what would fail a restart. own: what the job itself holds now, since it runs. notes: what a restart
    would do that might surprise. looked: how many files were looked at."""

    refusals: tuple[Refusal, ...]
    own: tuple[str, ...]
    notes: tuple[str, ...]
    looked: int


def look(manifest: Manifest, records: list[tuple[str, Any]], policy: Policy, private: str, mine: Mine) -> Found:
    """Look around. records: `rehearse.decoded`. private: where a restart would make files that are missing. mine: is a
    process one of the job itself."""
    search = _Search(policy, mine)
    carried = {file.identity.name for file in manifest.files if copies.needed(file)}
    for service, state in records:
        if service == "file":
            if state.deleted or state.file.name not in carried:
                search.file(state)
        elif service == "fifo" and not state.deleted:
            search.fifo(os.fsdecode(state.name), state.mode)
    for file in manifest.files:
        if file.contents is not None:
            search.writable(file.identity.path)
        search.looked.add(file.identity.path)
    for folder in manifest.scratch.folders:
        search.writable(os.fsdecode(folder.path))
        search.makable(os.fsdecode(folder.path))
    search.locks(_locks(manifest, records))
    if carried:
        search.private(private, manifest)
    return Found(tuple(search.refusals), tuple(search.own), tuple(search.notes), len(search.looked))


def _locks(manifest: Manifest, records: list[tuple[str, Any]]) -> Iterator[tuple[str, Lock]]:
    """All locks that a restart would take, with the path of the file."""
    for service, state in records:
        if service == "file" and not state.deleted:
            yield from ((state.file.path, lock) for lock in state.locks)
    for process in manifest.processes:
        kept = process.services.get("locks")
        if kept is None:
            continue
        objects = {d.number: manifest.objects[d.object] for d in process.descriptors}
        for number, lock in msgspec.msgpack.decode(kept, type=PosixLocks).locks:
            one = objects.get(number)
            if one is not None and one.service == "file":
                file = msgspec.msgpack.decode(one.state, type=regular.OpenFile)
                if not file.deleted:
                    yield file.file.path, lock


class _Search:
    def __init__(self, policy: Policy, mine: Mine) -> None:
        self._policy, self._mine = policy, mine
        self.refusals: list[Refusal] = []
        self.own: list[str] = []
        self.notes: list[str] = []
        self.looked: set[str] = set()

    def file(self, state: regular.OpenFile) -> None:
        """An open regular file."""
        path = state.file.path
        try:
            regular.verify(state, self._policy)
        except Refused as error:
            self._add(*error.refusals)
        if state.deleted or state.made_up or state.keep:
            return
        if regular.was_empty(state) and path not in self.looked and not os.path.lexists(path):
            self.notes.append(f"{path} was empty, is gone, and would be made again")
        self.looked.add(path)
        if state.in_folder:
            return  # it comes back with its folder
        if state.contents is not None or (state.written and state.flags & O_ACCMODE != os.O_RDONLY):
            self.writable(path)

    def writable(self, path: str) -> None:
        """A file or folder that a restart writes to, or makes again if it is gone."""
        if not os.path.lexists(path):
            self.makable(path)
        elif not os.access(path, os.W_OK, effective_ids=True):
            self._add(Refusal(0, "", f"{path} is not to be written to", _RIGHTS))

    def makable(self, path: str) -> None:
        """Something that a restart makes, or moves away."""
        folder = os.path.dirname(path) or "/"
        if not os.path.isdir(folder):
            self._add(Refusal(0, "", f"{path} is gone, and so is its folder", "make the folder again"))
        elif not os.access(folder, os.W_OK | os.X_OK, effective_ids=True):
            thing = f"{path} cannot be made again: its folder is not to be written to"
            self._add(Refusal(0, "", thing, _RIGHTS))

    def fifo(self, path: str, mode: int) -> None:
        """A named pipe. Opening it would wake who waits for its other end, so nobody does."""
        self.looked.add(path)
        try:
            st = os.stat(path)
        except OSError:
            self.makable(path)
            self.notes.append(f"{path}: the named pipe is gone and would be made again")
            return
        if not stat.S_ISFIFO(st.st_mode):
            self._add(Refusal(0, "", f"{path} is not a named pipe any more", "put it back as it was"))
        elif not os.access(path, os.R_OK | os.W_OK, effective_ids=True):
            self._add(Refusal(0, "", f"the named pipe {path} is not to be opened", _RIGHTS))

    def locks(self, wanted: Iterator[tuple[str, Lock]]) -> None:
        table = ""
        for path, lock in wanted:
            try:
                table = table or proc.text("/proc/locks")
                st = os.stat(path)
            except OSError:
                continue  # no lock on it then
            pid = locks.in_the_way(lock, st.st_dev, st.st_ino, table)
            if pid is None:
                continue
            if (pid and self._mine(pid)) or _has_locked(st, lock.kind, self._mine):
                self.own.append(f"the lock on {path}")
            else:
                who = f"process {pid} ({proc.comm(pid)})" if pid else "another process"
                self._add(Refusal(0, "", f"{path} is locked by {who}", "end it"))

    def private(self, folder: str, manifest: Manifest) -> None:
        """The folder in which files are made that are missing and that the checkpoint carries."""
        while not os.path.isdir(folder):
            folder = os.path.dirname(folder)
        missing = next(file.identity.path for file in manifest.files if copies.needed(file))
        if not os.access(folder, os.W_OK | os.X_OK, effective_ids=True):
            self._add(Refusal(0, "", f"{missing} is gone and cannot be made in {folder}", _RIGHTS))
        elif os.statvfs(folder).f_flag & os.ST_NOEXEC and any(
            file.identity.mode & 0o111 for file in manifest.files if copies.needed(file)
        ):
            thing = f"{missing} is gone, and {folder}, where it would be made, is mounted noexec"
            self._add(Refusal(0, "", thing, "set XDG_STATE_HOME to another folder"))

    def _add(self, *found: Refusal) -> None:
        self.refusals += [one for one in found if one not in self.refusals]


def _has_locked(st: os.stat_result, kind: str, mine: Mine) -> bool:
    """Has a process of the job a lock of that kind on the file? /proc/locks does not tell for those of a description:
    it shows nobody, or who once took it."""
    for name in os.listdir("/proc"):
        if not name.isdigit() or not mine(int(name)):
            continue
        face = proc.face(int(name))
        try:
            for number in proc.descriptors(face):
                seen = os.stat(f"/proc/{face}/fd/{number}")
                if (seen.st_dev, seen.st_ino) == (st.st_dev, st.st_ino):
                    info = proc.text(f"/proc/{face}/fdinfo/{number}").splitlines()
                    if any(one.kind == kind for one in locks.held(info)):
                        return True
        except OSError:
            continue
    return False
