"""A store in several folders, on several disks that are written to in parallel.

Packs, which are nearly all of a store, are spread over all folders: each folder is a lane (lanes.py), so a slow disk
gets less. Everything else is in the first folder, where put-if-absent is what it is for one folder. There is no
redundancy: without one of its disks, a stripe has lost the packs that were on it. So it matters that a disk that is
missing is noticed, and named: the folder of a disk that is not mounted looks just like a new, empty one.

    first folder    `stripe`       what makes this a stripe: its ID
                    `members/ID`   a folder that belongs to it, and the path it had when it was added
    every other     `member`       the stripe's ID and its own

A folder is added by naming it (as the last); it is told from a missing one by its path. Paths may change, as long as
the first stays first.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Sequence
from typing import TypeVar

import msgspec

from torpor.model.data import Buffer
from torpor.model.errors import Damaged, UsageError
from torpor.store import envelope
from torpor.store.backend import Backend, Stat, Upload
from torpor.store.folder import Folder

MAGIC = b"torporS\0"
VERSION = 1
STRIPE, MEMBERS, MEMBER = "stripe", "members", "member"
PACKS = "packs"

T = TypeVar("T")


class Stripes(msgspec.Struct, frozen=True):
    """The object `stripe`."""

    id: bytes


class Member(msgspec.Struct, frozen=True):
    """The object `member` of a folder, and with its path `members/ID` of the first one."""

    stripe: bytes
    id: bytes
    path: str = ""


class Stripe:
    """See backend.Backend."""

    def __init__(self, folders: Sequence[str], make: Callable[[str], Backend] = Folder) -> None:
        """folders: absolute paths. make: the back end of each. Raises UsageError."""
        self.place = f"stripe:{','.join(folders)}"
        if len(folders) < 2 or len(set(folders)) < len(folders):
            raise UsageError(f"{self.place}: a stripe is stripe:DIR1,DIR2,... with different folders")
        self._folders = [make(folder) for folder in folders]
        self._first = self._folders[0]
        self.lanes = len(folders)
        self.pack_size = min(folder.pack_size for folder in self._folders)

    # -- the folders

    def prepare(self) -> None:
        """Raises OSError where a folder is missing, or belongs to another stripe."""
        known = self._known()
        self._refuse_missing(known)
        for folder in self._folders:
            folder.prepare()
        self._first.put(STRIPE, [_wrap(Stripes(os.urandom(16)))])
        stripe = _read(self._first, STRIPE, Stripes)
        for folder in self._folders[1:]:
            folder.put(MEMBER, [_wrap(Member(stripe.id, os.urandom(16)))])
            member = _read(folder, MEMBER, Member)
            if member.stripe != stripe.id:
                raise OSError(errno.EINVAL, f"{folder.place} is part of another stripe", folder.place)
            if member.id not in known:
                self._first.put(f"{MEMBERS}/{member.id.hex()}", [_wrap(Member(stripe.id, member.id, folder.place))])

    def _known(self) -> dict[bytes, str]:
        """The folders that the first one knows: their paths by their IDs."""
        found = {}
        for name in self._first.list(MEMBERS):
            member = _read(self._first, f"{MEMBERS}/{name}", Member)
            found[member.id] = member.path
        return found

    def _refuse_missing(self, known: dict[bytes, str]) -> None:
        """Raise OSError if a folder that belongs here is not there."""
        here: dict[bytes, str] = {}
        for folder in self._folders[1:]:
            try:
                member = _read(folder, MEMBER, Member)
            except FileNotFoundError:
                if folder.place in known.values():
                    raise _missing(folder.place, "is empty or not there: is the disk mounted?") from None
                continue
            here[member.id] = folder.place
        if here and not known and not self._there(STRIPE):
            raise _missing(self._first.place, "is empty or not there: is the disk mounted?")
        for number, path in known.items():
            if number not in here:
                raise _missing(path, "is not named, and belongs to it")

    def _there(self, name: str) -> bool:
        try:
            self._first.stat(name)
        except FileNotFoundError:
            return False
        return True

    # -- the objects

    def lag(self) -> float:
        return max(folder.lag() for folder in self._folders)

    def put(self, name: str, pieces: Sequence[Buffer], durable: bool = True) -> bool:
        return self._first.put(name, pieces, durable)

    def create(self, name: str, lane: int = 0) -> Upload:
        if not name.startswith(f"{PACKS}/"):
            return self._first.create(name)
        folder = self._folders[lane % len(self._folders)]
        return _Named(folder.create(name), folder.place)

    def sync(self, folder: str) -> None:
        for each in self._folders if folder == PACKS else (self._first,):
            try:
                each.sync(folder)
            except FileNotFoundError:
                pass  # none of them got there

    def get(self, name: str, offset: int = 0, length: int = -1) -> bytes:
        return self._where(name, lambda folder: folder.get(name, offset, length))

    def list(self, folder: str) -> list[str]:
        if folder not in (PACKS, ""):
            return self._first.list(folder)
        if folder == PACKS:
            self._refuse_missing(self._known())
        names = {name for each in self._folders for name in each.list(folder)}
        return sorted(names - {STRIPE, MEMBERS, MEMBER})

    def stat(self, name: str) -> Stat:
        return self._where(name, lambda folder: folder.stat(name))

    def touch(self, name: str) -> None:
        self._where(name, lambda folder: folder.touch(name))

    def delete(self, name: str) -> None:
        for folder in self._folders if name.startswith(f"{PACKS}/") else (self._first,):
            folder.delete(name)

    def path(self, name: str) -> str | None:
        if name.startswith(f"{PACKS}/"):
            for folder in self._folders:
                found = folder.path(name)
                if found and os.path.exists(found):
                    return found
            self._refuse_missing(self._known())
        return self._first.path(name)

    def tidy(self, before: float) -> None:
        for folder in self._folders:
            folder.tidy(before)

    def close(self) -> None:
        pass

    def _where(self, name: str, call: Callable[[Backend], T]) -> T:
        """What `call` says of the folder that has the object. Raises FileNotFoundError if none has, OSError if that
        may be because one is missing."""
        if name.startswith(f"{PACKS}/"):
            for folder in self._folders[1:]:
                try:
                    return call(folder)
                except FileNotFoundError:
                    continue
        try:
            return call(self._first)
        except FileNotFoundError:
            self._refuse_missing(self._known())
            raise


class _Named:
    """An upload whose errors say which disk they are about."""

    def __init__(self, upload: Upload, place: str) -> None:
        self._upload = upload
        self._place = place
        self.discard = upload.discard

    def write(self, offset: int, data: Buffer) -> None:
        try:
            self._upload.write(offset, data)
        except OSError as error:
            raise self._named(error) from error

    def finish(self) -> None:
        try:
            self._upload.finish()
        except OSError as error:
            raise self._named(error) from error

    def _named(self, error: OSError) -> OSError:
        return OSError(error.errno, f"{error.strerror or error} ({self._place})", self._place)


def _missing(place: str, how: str) -> OSError:
    return OSError(errno.ENODEV, f"folder {place} of the stripe {how}", place)


def _wrap(value: msgspec.Struct) -> bytes:
    return envelope.wrap(MAGIC, VERSION, msgspec.msgpack.encode(value))


S = TypeVar("S", bound=msgspec.Struct)


def _read(folder: Backend, name: str, kind: type[S]) -> S:
    """Raises FileNotFoundError, OSError where it is damaged."""
    what = f"{folder.place}/{name}"
    try:
        return msgspec.msgpack.decode(envelope.unwrap(MAGIC, VERSION, folder.get(name), what), type=kind)
    except (Damaged, msgspec.MsgspecError) as error:
        raise OSError(errno.EIO, str(error), what) from error
