"""What a host agrees on with the others while a job over hosts is saved or restarted: the seams of the two pipelines.

Each method says that this host is through with a phase, and returns when all others are, which is when the next one is
ordered. Each raises GivenUp when the attempt is over: whatever was done of it is then undone, as after any other
failure. On one host there is nothing to agree on, and nothing of this exists. Who speaks to the others is not known
here (supervise/).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Protocol

from torpor.image.whole import Face, PartRecord
from torpor.model.errors import CheckpointFailed
from torpor.named_tuple import NamedTuple
from torpor.posix.far import End, Told


class GivenUp(CheckpointFailed):
    """The attempt is over, here or on another host, or nobody speaks to this host any more; the text says why."""


class SavedTogether(Protocol):
    """A checkpoint. part: the name of this host's part.  address: numeric, by which others reach this host.  number: of
    the checkpoint.  face: how the job knows this host.  others: addresses (packed) of the other parts.  parts: the
    names of all that there were when the job began."""

    part: str
    address: str
    number: int
    face: Face
    others: Collection[bytes]
    parts: Sequence[str]

    def check(self) -> None:
        """Raises GivenUp if there is no point in going on."""
        ...

    def code(self, words: bytes) -> bytes:
        """A code of 32 bytes under some words, which only who is of this checkpoint can make."""
        ...

    def surveyed(self) -> None:
        """Nothing stands in the way. Returns when the job is to be stopped."""
        ...

    def frozen(self, ends: Sequence[End], addresses: Sequence[bytes], door: int) -> Sequence[Told]:
        """The job is stopped here. ends: of all its connections; addresses (packed): that others reach this host by.
        door: as in `Told`. Returns, when all hosts are stopped, what is known of the other ends."""
        ...

    def settled(self) -> None:
        """All that was under way to this host has arrived. Returns when the job is to be captured."""
        ...

    def captured(self) -> None:
        """There is a copy. Returns when the job may run on, or, if it is to be ended, when the copy is to be stored."""
        ...

    def resumed(self) -> None:
        """It runs on. Returns when the copy is to be stored."""
        ...

    def stored(self, record: PartRecord) -> None:
        """It is stored. Returns at once; where the job is to be ended, when the checkpoint exists."""
        ...

    def decided(self) -> str:
        """After that, where the job runs on: returns when it is known whether the checkpoint exists; '' if it does,
        else why not."""
        ...


class Place(NamedTuple):
    """Where the other end of a connection waits: `address`, or where that is None the address that the connection
    had."""

    host: str
    address: tuple[str, int] | None


class Reached(NamedTuple):
    """places: by connection, where this host is to call.  shifts: by part, its ports that are others now."""

    places: Mapping[bytes, Place]
    shifts: Mapping[str, Mapping[int, int]] = {}


class RestartedTogether(Protocol):
    """A restart."""

    def code(self, words: bytes) -> bytes:
        """A code of 32 bytes under some words, which only who is of this restart can make."""
        ...

    def recreated(
        self, ports: tuple[int, int], waits: Sequence[tuple[bytes, int]], calls: Sequence[bytes],
        shift: Mapping[int, int],
    ) -> Reached:  # fmt: skip
        """This host waits for connections: `waits`, by their names, and where (reunion.ORIGINAL: at the address that
        they had; SPARE, SPARE6: at the first or second of `ports`). It will call `calls`. shift: its ports that
        are others now. Returns, when all wait, where those are that it calls."""
        ...

    def connected(self) -> None:
        """All connections with other hosts are made. Returns when all hosts have theirs."""
        ...

    def filled(self) -> None:
        """The job is whole and has not run yet. Returns when it is to run."""
        ...
