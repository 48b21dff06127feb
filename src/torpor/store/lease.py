"""How a save and a collection that run at the same time, on whatever hosts, keep out of each other's way.

A save puts a *lease* (`leases/<random>`) before it looks at what the store has, touches it while it lives,
and deletes it after its root is there. A collection never deletes a pack at once. It first puts a *warrant*
(`warrants/<random>`) that names the packs nobody refers to; saves do not use the chunks of packs that a
warrant names. Then it looks which leases there are, and notes them in the warrant: only these saves can have
missed it. Once all of those are gone, and the roots, read again after that, still do not refer to a pack, it
is deleted.

So a pack that a save relies on is either named in a warrant the save saw (then it does not rely on it), or
the save's lease was there when the collection looked (then the collection waits until the root is there to be
seen).

A save that was killed leaves its lease; it counts for nothing once it was not touched for EXPIRY. A save that
was stopped for longer than that and then goes on finds its lease gone after its root is there, and takes the
root back unless all its packs are whole: see save.py.
"""

from __future__ import annotations

import os

import msgspec

from torpor.model.errors import Damaged
from torpor.store import envelope
from torpor.store.backend import Backend

TOUCH = 60.0
"""Seconds between two touches of a lease."""
EXPIRY = 3600.0
"""Seconds after which a lease that was not touched counts for nothing."""

MAGIC = b"torporW\0"
VERSION = 1


class Warrant(msgspec.Struct, frozen=True):
    packs: list[bytes]
    leases: list[str] | None = None
    """The saves that may have missed it; None: not known yet, any save that is running."""


def take(backend: Backend) -> str:
    """Put a lease; its object's name."""
    name = f"leases/{os.urandom(16).hex()}"
    backend.put(name, [b""], durable=False)
    return name


def warrants(backend: Backend) -> dict[str, Warrant]:
    """All warrants by the names of their objects. A damaged one names nothing."""
    found = {}
    for name in backend.list("warrants"):
        where = f"warrants/{name}"
        try:
            data = envelope.unwrap(MAGIC, VERSION, backend.get(where), "warrant")
            found[where] = msgspec.msgpack.decode(data, type=Warrant)
        except FileNotFoundError:
            pass
        except (Damaged, msgspec.MsgspecError):
            found[where] = Warrant([])
    return found


def issue(backend: Backend, warrant: Warrant) -> str:
    """Put a warrant; its object's name."""
    name = f"warrants/{os.urandom(16).hex()}"
    backend.put(name, [envelope.wrap(MAGIC, VERSION, msgspec.msgpack.encode(warrant))], durable=False)
    return name


def condemned(backend: Backend) -> set[bytes]:
    """The packs that warrants name."""
    return {pack for warrant in warrants(backend).values() for pack in warrant.packs}
