"""Copying a checkpoint to another store, as it is: its packs, then its root, so that its signature stays good and
nobody has to be able to read it. Packs that are there already do not travel.

Names of chunks are made with the key of a store. A store that is made for the copy gets the key of the one it comes
from; one that has another key cannot take checkpoints that are not encrypted (encrypted ones have a key of their
own).
"""

from __future__ import annotations

from torpor.model.errors import Damaged, TorporError, UsageError
from torpor.store import index, lease, numbers, pack, parts, root
from torpor.store.backend import Backend
from torpor.store.parts import Part
from torpor.store.store import CONFIG, Store

PIECE = 8 << 20


def copy(source: Store, job: str, number: int, target: Store) -> int:
    """Copy a checkpoint, all its parts before its root; the bytes of packs that travelled, -1 if it was there already.

    Raises NotFound, Damaged, UsageError where the target cannot take it, TorporError if something fails.
    """
    return _copy_root(source, job, number, target)


def _copy_root(source: Store, job: str, number: int, target: Store, part: Part | None = None) -> int:
    """A root with its packs. part: the root is to be this one. As `copy`."""
    data, found, _ = source.read(job, number, part)
    where, what = root.object_name(job, number), f"checkpoint {job}@{number}"
    try:
        key = source.backend.get(CONFIG)
    except OSError as error:
        raise TorporError(f"{source.location} cannot be read: {error.strerror or error}") from error
    to = target.backend
    try:
        to.prepare()
        target.refuse_others()
        to.put(CONFIG, [key])
        if not found.header.recipients and to.get(CONFIG) != key:
            why = f"{target.location} names chunks with another key than {source.location}"
            raise UsageError(f"{why}: copy {job}@{number} to a store of its own, or encrypt it")
        sizes = [_copy_root(source, parts.series(job, each.name), number, target, each) for each in found.header.parts]
        own = _copy(source.backend, to, where, data, found.table.packs, what)
        return own if own < 0 else own + sum(size for size in sizes if size > 0)
    except OSError as error:
        raise TorporError(f"{what} cannot be copied to {target.location}: {error.strerror or error}") from error


def _copy(source: Backend, to: Backend, where: str, data: bytes, packs: list[bytes], what: str) -> int:
    job, number = where.split("/")[1:]
    mine = lease.take(to)
    keeper = lease.Keeper(to, mine)
    try:
        if not lease.condemned(to).isdisjoint(packs):
            raise TorporError(f"{to.place} is just deleting what {what} needs: try again after the next torpor prune")
        if number in to.list(f"roots/{job}"):
            if to.get(where) != data:
                raise UsageError(f"{to.place} has another {job}@{number}")
            return -1
        there = set(to.list("packs"))
        copied = [name for name in packs if name.hex() not in there]
        size = sum(copy_pack(source, to, name, what) for name in copied)
        to.sync("packs")
        for name in packs:
            to.stat(pack.path(name))
        numbers.keep_claim(to, job, int(number))
        if not to.put(where, [data]) and to.get(where) != data:
            raise UsageError(f"{to.place} has another {job}@{number}")
        if not keeper.alive():
            to.delete(where)
            raise TorporError(f"the copy stood still for so long that {to.place} was cleaned up meanwhile; try again")
        index.add(to, [entry for name in copied for entry in pack.contents(to, name)])
        return size
    finally:
        keeper.stop()
        to.delete(mine)


def copy_pack(source: Backend, to: Backend, name: bytes, what: str) -> int:
    """Copy a pack as it is; its size. Raises Damaged if it is not there, OSError."""
    where = pack.path(name)
    try:
        size = source.stat(where).size
    except FileNotFoundError:
        raise Damaged(f"{what}: pack {source.place}/{where} is missing") from None
    upload = to.create(where)
    try:
        for offset in range(0, size, PIECE):
            upload.write(offset, source.get(where, offset, PIECE))
        try:
            upload.finish()
        except FileExistsError:
            pass  # somebody else was quicker
    finally:
        upload.discard()
    return size
