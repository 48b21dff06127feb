"""How a save and a collection that run at the same time, on whatever hosts, keep out of each other's way.

A save puts a *lease* (`leases/ID`) before it looks at what the store has, touches it while it lives, and
deletes it after its root is there. A collection never deletes a pack at once. It first puts a *warrant*
(`warrants/ID`) that names packs nobody refers to; saves do not rely on packs that a warrant names. Then it
looks which leases there are, and notes them (`warrants/ID.leases`): only these saves can have missed the
warrant. Once all of those are gone, and the roots, read again after that, still do not refer to a pack, it is
deleted, and last the warrant.

So a pack that a save relies on is either named in a warrant the save saw (then it does not rely on it), or
the save's lease was there when the collection looked (then the collection waits until the root is there to be
seen).

A save that was killed leaves its lease; it counts for nothing once it was not touched for EXPIRY. A save that
was stopped for longer than that and then goes on finds its lease gone after its root is there, and takes the
root back (save.py).
"""

from __future__ import annotations

import os
import threading

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


NOTE, QUIET = ".leases", ".quiet"
"""What the objects beside a warrant are called: which leases there were; and that they were seen to be
gone."""


class Warrant(msgspec.Struct, frozen=True):
    packs: list[bytes]


class Note(msgspec.Struct, frozen=True):
    leases: list[str]


def take(backend: Backend) -> str:
    """Put a lease; its object's name."""
    name = f"leases/{os.urandom(16).hex()}"
    backend.put(name, [b""], durable=False)
    return name


class Keeper:
    """Touches a lease from a thread of its own for as long as the save goes on."""

    def __init__(self, backend: Backend, name: str) -> None:
        self._backend = backend
        self._name = name
        self._over = threading.Event()
        threading.Thread(target=self._run, name="torpor-lease", daemon=True).start()

    def alive(self) -> bool:
        """Is the lease still there? Touches it. Raises OSError."""
        try:
            self._backend.touch(self._name)
        except FileNotFoundError:
            return False
        return True

    def stop(self) -> None:
        """Touch it no more. May be called again."""
        self._over.set()

    def _run(self) -> None:
        while not self._over.wait(TOUCH):
            try:
                if not self.alive():
                    return  # found out by the save before it ends
            except OSError:
                pass  # the next time, perhaps


def issue(backend: Backend, packs: list[bytes]) -> str:
    """Put a warrant; its object's name."""
    name = f"warrants/{os.urandom(16).hex()}"
    backend.put(name, [_encode(Warrant(packs))], durable=False)
    return name


def warrants(backend: Backend) -> dict[str, list[bytes]]:
    """The packs that warrants name, by the names of the warrants. A damaged one names nothing."""
    found = {}
    for name in backend.list("warrants"):
        if "." not in name:
            try:
                where = f"warrants/{name}"
                found[where] = msgspec.msgpack.decode(_payload(backend, where), type=Warrant).packs
            except FileNotFoundError:
                pass  # its packs are gone, or used again
            except (Damaged, msgspec.MsgspecError):
                found[where] = []
    return found


def condemned(backend: Backend) -> set[bytes]:
    """The packs that warrants name."""
    return {pack for packs in warrants(backend).values() for pack in packs}


def note(backend: Backend, warrant: str, leases: list[str]) -> None:
    """Put down which leases there were; nothing happens if that was done already."""
    backend.put(warrant + NOTE, [_encode(Note(leases))], durable=False)


def noted(backend: Backend, warrant: str) -> list[str] | None:
    """The leases that were noted, or None."""
    try:
        return msgspec.msgpack.decode(_payload(backend, warrant + NOTE), type=Note).leases
    except FileNotFoundError:
        return None
    except (Damaged, msgspec.MsgspecError):
        backend.delete(warrant + NOTE)
        return None


def _encode(value: Warrant | Note) -> bytes:
    return envelope.wrap(MAGIC, VERSION, msgspec.msgpack.encode(value))


def _payload(backend: Backend, name: str) -> memoryview:
    return envelope.unwrap(MAGIC, VERSION, backend.get(name), "warrant")
