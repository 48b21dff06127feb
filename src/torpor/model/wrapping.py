"""Something that is put around all of a job from its first process on (watch/wrapper.py), as a restart sees it."""

from __future__ import annotations

from typing import Protocol


class Wrapping(Protocol):
    """Two halves, which wait for each other."""

    def inside(self) -> None:
        """In the job's first process, before it forks the others."""
        ...

    def outside(self, pid: int) -> None:
        """In its parent, meanwhile. pid: the first process. Raises TorporError."""
        ...
