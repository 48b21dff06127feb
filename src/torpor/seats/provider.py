"""What gives seats: the one small interface that every kind of giver implements.

A provider is made for one seat of one job. It lives in a process of its own (supervise/seat_keeper.py), which has
nothing else to do, so its methods may wait. What they say about why something is not to be had goes to the user as it
is, and into the log.

Other packages register theirs under the entry points `torpor.seats`: a callable that takes (options, Request) and
returns such an object. docs/policy.md tells how the providers of torpor's own speak.
"""

from __future__ import annotations

from typing import Protocol

from torpor.model.errors import TorporError
from torpor.named_tuple import NamedTuple


class NoneFree(TorporError):
    """All seats are taken; the text says by whom. Worth another attempt."""


class Unreachable(TorporError):
    """Whoever gives seats does not answer. Worth another attempt."""


class NotEntitled(TorporError):
    """There is no seat for this job, however long it waits: the licence has expired, there is no such pool."""


class Lost(TorporError):
    """A seat that was held is not held any more."""


class Request(NamedTuple):
    """For whom a seat is. seat: its name in the policy.  identity: of the job, the same over all restarts; who asks
    with it once more gets the seat that he had.  job: its name.  host, user: where it runs, and whose it is."""

    seat: str
    identity: str
    job: str
    host: str
    user: str


class Status(NamedTuple):
    """All seats. total: 0 if that is not known.  holders: a line for each that is taken."""

    total: int
    holders: tuple[str, ...]


class Provider(Protocol):
    """every: seconds between two renewals."""

    every: float

    def acquire(self) -> None:
        """Have the seat; does nothing else if this job has it already. Raises NoneFree, Unreachable, NotEntitled."""
        ...

    def renew(self) -> None:
        """Go on having it. Raises Lost, Unreachable, NotEntitled."""
        ...

    def release(self) -> None:
        """Give it back, if it is held. Raises Unreachable."""
        ...

    def status(self) -> Status:
        """Who has the seats. Raises Unreachable, NotEntitled."""
        ...

    def fileno(self) -> int:
        """A descriptor that becomes readable when `renew` is to be called at once, -1 for none. Only asked while the
        seat is held."""
        ...
