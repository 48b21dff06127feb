"""Which processes a job is: everything below its anchor."""

from __future__ import annotations

from functools import partial

import msgspec

from torpor.linux import proc
from torpor.model.snapshot import is_copy


class Tree(msgspec.Struct, frozen=True):
    """Where a job hangs. All pids are the host's.

    anchor: the process below which the job's processes are. include_anchor: it belongs to the job itself. skip:
    torpor's own processes below the anchor (the stand-ins of a restarted job): not saved, but what is below them is.
    aside: another such process, with all that is below it. root: the job's first process. watched: torpor has put a
    filter of its own on the job (watch/).
    """

    anchor: int
    include_anchor: bool
    root: int
    skip: tuple[int, ...] = ()
    watched: bool = False
    aside: int = 0

    def find(self) -> list[int]:
        """Host pids of the job's processes now: the root first, and parents before their children.

        A process whose first thread has ended is listed by the number of one that lives (`proc.face`).
        """
        found = [self.anchor] if self.include_anchor else []
        queue = [self.anchor]
        seen = {self.anchor}
        for parent in queue:
            try:
                below = proc.children(parent)
            except (FileNotFoundError, ProcessLookupError):
                continue
            for pid in below:
                if pid not in seen and pid != self.aside:
                    seen.add(pid)
                    queue.append(pid)
                    if pid not in self.skip:
                        found.append(pid)
        if self.root in found:
            found.remove(self.root)
            found.insert(0, self.root)
        return [face for pid in found if (face := _face(pid))]


def _face(pid: int) -> int:
    """proc.face; 0 for a copy of one of the processes, made to be saved."""
    try:
        name, state = proc.name_and_state(pid)
    except OSError:
        return pid
    if is_copy(name, state, partial(proc.descriptors, pid)):
        return 0
    return proc.face(pid) if state in "ZX" else pid


def of_pid(pid: int) -> Tree:
    """The tree of a process that was never started under torpor."""
    return Tree(anchor=pid, include_anchor=True, root=pid)
