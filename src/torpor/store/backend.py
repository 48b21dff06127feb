"""Where a store's objects are: the one small interface that every kind of place implements.

An object has a name (`packs/0f..`, words of [A-Za-z0-9._-] with `/` between) and bytes. It appears whole or
not at all, and once there it never changes: nobody ever sees a part of an object under its name, whatever is
killed when. What the rest of the store relies on is said at each method; a conformance suite holds it.

Errors: what is not there raises FileNotFoundError, everything else that the place reports raises OSError,
with `filename` set where there is one. The callers turn them into the one line a user sees. Retrying what is
worth retrying (a cut connection, a 503) is the back end's own business: an error that leaves it is final. All
methods may be called from several threads.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from torpor.model.data import Buffer
from torpor.named_tuple import NamedTuple


class Stat(NamedTuple):
    size: int
    """Bytes."""
    time: float
    """When it was put or last touched, unix seconds by the clock of the place (not of this host)."""


class Upload(Protocol):
    """A large object on its way. One thread at a time. Nothing of it is visible before `finish`, nothing is
    left of it after `discard` or after the process was killed (at most something that `tidy` removes)."""

    def write(self, offset: int, data: Buffer) -> None:
        """Put `data` at `offset`. Offsets only grow; what is left out reads as zeros. `data` may be reused at
        once."""
        ...

    def finish(self) -> None:
        """It is there under its name now. Durable only after `Backend.sync` of its folder."""
        ...

    def discard(self) -> None:
        """Forget it. May be called at any time, also after `finish` (and then does nothing)."""
        ...


class Backend(Protocol):
    """A place for objects."""

    place: str
    """As the user named it; stands in errors."""
    lanes: int
    """How many large objects are best written at the same time. 1: writing is quick, because something behind it
    (the page cache) takes the data; each thread that has data then writes by itself (store/lanes.py)."""
    pack_size: int
    """Bytes at which a pack is closed here."""

    def prepare(self) -> None:
        """Make the place if there is none yet, and see whether all of it is there to be written to. Called before
        the first put of a save. Raises OSError, with the missing part in `strerror`."""
        ...

    def lag(self) -> float:
        """For how many seconds a listing, or a look whether something is there, may be out of date; 0:
        never."""
        ...

    def put(self, name: str, pieces: Sequence[Buffer], durable: bool = True) -> bool:
        """Put a small object, made of `pieces`, if there is none of that name: True if it is ours, False if
        there was one. Atomic: of several writers, on whatever hosts, exactly one gets True. When it returns
        True and `durable` is set, the object outlives a loss of power."""
        ...

    def create(self, name: str, lane: int = 0) -> Upload:
        """Begin a large object, on one of the `lanes`. The name must be unique (random): nothing guards against an
        older one."""
        ...

    def sync(self, folder: str) -> None:
        """All uploads to `folder` that finished before this call outlive a loss of power when it returns."""
        ...

    def get(self, name: str, offset: int = 0, length: int = -1) -> bytes:
        """A range of an object; less where the object is shorter; -1: to its end."""
        ...

    def list(self, folder: str) -> list[str]:
        """The names, without the folder, of what is directly in `folder` (objects and folders), in any order;
        empty if there is no such folder. Complete for everything that was there `lag` seconds ago."""
        ...

    def stat(self, name: str) -> Stat: ...

    def touch(self, name: str) -> None:
        """Set the object's time to now. Raises FileNotFoundError if it is gone."""
        ...

    def delete(self, name: str) -> None:
        """Remove an object; nothing happens if it is not there."""
        ...

    def path(self, name: str) -> str | None:
        """Where the object can be opened as a local file, if it can."""
        ...

    def tidy(self, before: float) -> None:
        """Remove what killed writers left behind and that was last written to before `before` (clock of the
        place)."""
        ...

    def close(self) -> None:
        """Nothing more is asked of it; connections and helpers may go."""
        ...
