"""Draining a tier: what the fast place has, the slow one gets.

Pure order of steps, so that it may be killed anywhere: packs of a checkpoint, made durable; its root; only then packs
may leave the fast place.
"""

from __future__ import annotations

from collections.abc import Callable

from torpor.model.errors import Damaged
from torpor.store import index, numbers, pack, root
from torpor.store.tier import PIECE, Tier


def drain(tier: Tier, say: Callable[[str, int, int], None] = lambda *_: None) -> int:
    """Copy every checkpoint that is only in the fast place to the slow one, oldest first, then let go of packs there;
    how many were copied. say: told job, number and bytes of each that is there now. Raises OSError, Damaged."""
    count = 0
    for job, number in sorted(tier.waiting(), key=lambda each: _time(tier, *each)):
        size = _copy(tier, job, number)
        if size >= 0:
            count += 1
            say(job, number, size)
    _copy_claims(tier)
    _copy_index(tier)
    _let_go(tier)
    return count


def _time(tier: Tier, job: str, number: int) -> float:
    try:
        return tier.fast.stat(root.object_name(job, number)).time
    except FileNotFoundError:
        return 0.0


def _copy(tier: Tier, job: str, number: int) -> int:
    """Copy a checkpoint; how many bytes of packs, -1 if it was removed meanwhile."""
    where = root.object_name(job, number)
    try:
        data = tier.fast.get(where)
    except FileNotFoundError:
        return -1
    table = root.decode(data, f"checkpoint {job}@{number}")[1]
    there = set(tier.slow.list("packs"))
    size = 0
    for name in (each.hex() for each in table.packs):
        if name not in there:
            try:
                size += _copy_pack(tier, f"packs/{name}")
            except FileNotFoundError:
                try:
                    tier.slow.stat(f"packs/{name}")  # another drain was quicker
                except FileNotFoundError:
                    if _gone(tier, where):
                        return -1
                    raise Damaged(
                        f"checkpoint {job}@{number}: pack {tier.fast.place}/packs/{name} is missing"
                    ) from None
    tier.slow.sync("packs")
    tier.slow.put(where, [data])
    if _gone(tier, where):
        # Removed while it was copied: `Tier.delete` looks at the fast place first.
        tier.slow.delete(where)
        return -1
    return size


def _copy_index(tier: Tier) -> None:
    """The segments that the fast place has; those it does not have any more go where it knows their packs. It only
    helps: a save after the fast place was lost finds the chunks."""
    here, there = set(tier.fast.list("index")), set(tier.slow.list("index"))
    known: set[bytes] = set()
    for name in here:
        try:
            known.update(index.open_segment(tier.fast, name).table.packs)
            if name not in there:
                tier.slow.put(f"index/{name}", [tier.fast.get(f"index/{name}")], durable=False)
        except (FileNotFoundError, Damaged):
            continue  # merged meanwhile
    for name in there - here:
        try:
            if known.issuperset(index.open_segment(tier.slow, name).table.packs):
                tier.slow.delete(f"index/{name}")
        except (FileNotFoundError, Damaged):
            continue


def _gone(tier: Tier, where: str) -> bool:
    try:
        tier.fast.stat(where)
    except FileNotFoundError:
        return True
    return False


def _copy_pack(tier: Tier, name: str) -> int:
    """Copy a pack as it is; its size."""
    size = tier.fast.stat(name).size
    upload = tier.slow.create(name)
    try:
        for offset in range(0, size, PIECE):
            upload.write(offset, tier.fast.get(name, offset, PIECE))
        try:
            upload.finish()
        except FileExistsError:
            pass  # another drain was quicker
    finally:
        upload.discard()
    return size


def _copy_claims(tier: Tier) -> None:
    """The numbers that were given, so that they are not given again after the fast place was lost."""
    for job in tier.fast.list("claims"):
        highest = max((int(n) for n in tier.fast.list(f"claims/{job}") if n.isdigit()), default=0)
        if highest:
            tier.slow.put(f"claims/{job}/{highest}", [b""], durable=False)


def _let_go(tier: Tier) -> None:
    """Delete packs from the fast place that are in the slow one, but for those of each job's newest checkpoint. A
    save that relies on one finds it in the slow place as well."""
    kept: set[bytes] = set()
    for job in tier.list("roots"):
        for number in numbers.existing(tier, job)[-1:]:
            try:
                kept.update(root.decode(tier.get(root.object_name(job, number)), "a checkpoint")[1].packs)
            except FileNotFoundError:
                return  # removed this moment: another time
    waiting = {each for job, number in tier.waiting() for each in _packs(tier, job, number)}
    there = set(tier.slow.list("packs"))
    for name in set(tier.fast.list("packs")) & there:
        if bytes.fromhex(name) not in kept | waiting:
            tier.fast.delete(pack.path(bytes.fromhex(name)))


def _packs(tier: Tier, job: str, number: int) -> list[bytes]:
    try:
        return root.decode(tier.fast.get(root.object_name(job, number)), "a checkpoint")[1].packs
    except FileNotFoundError:
        return []
