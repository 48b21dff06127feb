"""An opened checkpoint, as far as a restart needs it (store/load.py has one; a drill notes what is read of it)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Protocol

from torpor.model.data import Ref, Source

if TYPE_CHECKING:
    from torpor.store.root import RootInfo


class Near(Source, Protocol):
    """Chunks that processes which are forked from us may read as well."""

    def lies(self, ref: Ref) -> tuple[int, int] | None:
        """Where a chunk is kept as it is: number of the pack, and offset. None where only `get` knows its bytes."""
        ...

    def read_into(self, wanted: Iterable[tuple[Sequence[Ref], memoryview]]) -> None:
        """Read chunks into memory, and verify them there: each time some that lie one behind the other, and memory that
        is as large as they are. Raises Damaged."""
        ...


class Opened(Source, Protocol):
    """What the restarting process reads from."""

    @property
    def info(self) -> RootInfo:
        """What its root says of it."""
        ...

    @property
    def body(self) -> bytes:
        """The manifest, encoded."""
        ...

    @property
    def near(self) -> Near | None:
        """None where only the restarting process can, or shall, read chunks."""
        ...
