"""What came of something that was asked of a job, as the commands and the Python API hold it. Supervisors tell it in
plain values (protocol.py; saving.py makes them)."""

from __future__ import annotations

from typing import Any

from torpor.named_tuple import NamedTuple


class Saved(NamedTuple):
    """What a checkpoint came to.

    bytes_total: memory and data in it; bytes_new: what this one added to the store; bytes_read: memory that had to be
    read for it (of a job over hosts not known: 0).  seconds: from the
    request to the commit; pause_seconds: how long the job stood still.  location: the store.  notes: lines
    worth reading.
    """

    job: str
    number: int
    bytes_total: int
    bytes_new: int
    seconds: float
    pause_seconds: float
    location: str
    processes: int
    threads: int
    notes: tuple[str, ...] = ()
    bytes_read: int = 0

    @property
    def name(self) -> str:
        """As the commands take it: `train@3`."""
        return f"{self.job}@{self.number}"


class Watching(NamedTuple):
    """A job that is watched from now on. processes: how many of it are.  notes: lines worth reading."""

    processes: int
    notes: tuple[str, ...]


class CheckedProcess(NamedTuple):
    """A process of a job that was checked. pid on the host, vpid inside; bytes that would be saved."""

    pid: int
    vpid: int
    comm: str
    threads: int
    bytes: int


class Checked(NamedTuple):
    """Could a job be saved? `refusals` is empty if so."""

    refusals: tuple[str, ...]
    processes: tuple[CheckedProcess, ...]
    bytes: int


def as_saved(plain: dict[str, Any]) -> Saved:
    """Of a report's plain values."""
    told = {key: plain[key] for key in Saved._fields if key in plain and key != "notes"}
    return Saved(**told, notes=tuple(plain["notes"]))


def as_checked(plain: dict[str, Any]) -> Checked:
    """Of a report's plain values."""
    return Checked(
        tuple(plain["refusals"]),
        tuple(CheckedProcess(*fields) for fields in plain["processes"]),
        int(plain["bytes"]),
    )
