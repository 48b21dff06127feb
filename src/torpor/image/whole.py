"""The body of a checkpoint of a job over hosts: what it consists of. Each part has a manifest of its own."""

from __future__ import annotations

import msgspec

from torpor.store.parts import Part


class Face(msgspec.Struct, frozen=True):
    """How the job knows the host of a part, wherever that is.

    name: what uname(2) tells there.  names: under which it is looked up, and the address that this gives; '': that of
    the part.
    """

    name: str = ""
    names: tuple[str, ...] = ()
    address: str = ""


class PartRecord(msgspec.Struct, frozen=True):
    """What one host has saved.

    part: where it is in the store; its name is the host's name in the job.  host: what the host calls itself.
    address: numeric, by which the other hosts reached it.
    pause: how long its processes stood still, seconds.  first: the job began here.  face: see there.  ports: on which
    it listens, or which it has for datagrams.  own: its program had joined the job, which waits for that program's end.
    also: all addresses that the host had for others.  bytes_read: see SaveReport.
    """

    part: Part
    host: str
    address: str
    processes: int
    threads: int
    command: str
    pause: float
    seconds: float
    first: bool = False
    notes: tuple[str, ...] = ()
    face: Face = Face()
    ports: tuple[int, ...] = ()
    own: bool = False
    also: tuple[str, ...] = ()
    bytes_read: int = 0


class Whole(msgspec.Struct, frozen=True, kw_only=True):
    """All of them, in the order of their names. first: the one where the job began."""

    job: str
    created: float
    torpor: str
    parts: tuple[PartRecord, ...]
    first: str = ""
