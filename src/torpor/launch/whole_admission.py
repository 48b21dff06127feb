"""Whether a job over hosts may begin to run: what has to be true first, and is made so, on the host of its first part,
before anything is started on any other.

There the job's lease and its seats are held, once for all parts: in the process that becomes the supervisor of the
first part. What a part's own host says of services (its files of policy) is decided there (admission.py): before the
job is let go anywhere, since a part that is refused undoes the restart of all.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeVar

from torpor.launch import admission
from torpor.model.errors import Refusal, Refused
from torpor.supervise import registry, terms
from torpor.supervise.registry import Entry
from torpor.supervise.standing import Standing

if TYPE_CHECKING:
    from torpor.launch.admission import Tell
    from torpor.launch.restart import Wishes
    from torpor.model.terms import SeatTerms
    from torpor.store import RootInfo, Store
    from torpor.store.load import Load
    from torpor.supervise.part import Part

T = TypeVar("T")


def new(first: Part, wait: float | None, tell: Tell) -> Standing | None:
    """What a job holds that is about to be started, None for nothing. wait, tell: as for `admission.start`. Raises
    Refused, UsageError."""
    entry = Entry(name=first.job, argv=tuple(word.decode(errors="replace") for word in first.argv),
                  identity=first.identity)  # fmt: skip
    return admission.start(entry, first.policy, wait, tell)[1]


def again(parts: Sequence[Part], wishes: Wishes, tell: Tell) -> Standing:
    """What a job holds that is about to be restarted: its lease, and its seats. parts: the first one first. Raises
    Refused, HookFailed, UsageError; nothing is held then."""
    from torpor.store import open_store

    first = parts[0]
    opened = open_store(first.store or None, apart=True)
    standing = Standing(first.identity, first.job)
    mine = registry.running(first.job)
    if wishes.seats >= 0 and mine is not None:
        standing.kept = mine.seats, wishes.seats, mine.keeper.pid
    try:
        info = opened.resolve(first.checkpoint)
        if wishes.new_policy:
            admission.refuse_foreign_seal(info)
        admission.sole(standing, opened, wishes.wait, wishes.why == "resume", tell)
        seats = _seats(opened, info, parts, wishes)
        if seats:
            admission.acquire(standing, seats, wishes.wait, tell, f"cannot restart {first.checkpoint}")
        elif standing.kept is not None:
            os.close(standing.kept[1])  # it has none any more
        _hooks(parts, opened.location, wishes.why)
        return standing
    except BaseException:
        standing.close()
        raise
    finally:
        opened.close()


def _seats(opened: Store, info: RootInfo, parts: Sequence[Part], wishes: Wishes) -> list[SeatTerms]:
    """The seats that have to be had, whichever part has used what they are for. Raises Refused where a policy that is
    known here refuses the restart.

    Where neither what holds here nor what is sealed into the first part names a seat, the other parts are not looked
    into: what another host's own files say is that host's affair."""
    from torpor.checkpoint.whereabouts import Whereabouts
    from torpor.image.manifest import Manifest
    from torpor.image.seal import Opening
    from torpor.image.whole import Whole
    from torpor.policy import files
    from torpor.policy.decide import decide, merged
    from torpor.policy.outside import services

    opening = Opening(wishes.untrusted)
    load = opened.load(info.job, info.number, opening)
    whole = _decoded(load, Whole, info)
    now = {part.part: part.address for part in parts}
    given, standing_ones = terms.decode(wishes.policy), files.standing()
    order = [part.part for part in parts]
    found: dict[str, SeatTerms] = {}
    refused: list[Refusal] = []
    for record in sorted(whole.parts, key=lambda record: order.index(record.part.name)):
        load = opened.load(info.job, info.number, opening, record.part)
        manifest = _decoded(load, Manifest, info)
        sealed = None if wishes.new_policy else manifest.terms
        layers = merged(sealed.layers if sealed is not None else (), given, standing_ones)
        if not admission.names_seat(layers):
            if record.part.name == order[0]:
                return []
            continue
        hosts = Whereabouts.of(record.part.name, whole.parts, now).addresses
        outcome = decide(services(manifest, hosts), layers, sealed.held if sealed is not None else ())
        refused += [Refusal(0, "", f"{record.part.name}: {what}: {why}", "") for what, why in outcome.refusals]
        for seat in outcome.seats:
            found.setdefault(seat.name, seat)
    if refused:
        way_out = f"torpor policy explain {info.job}@{info.number} --part PART"
        raise Refused(refused, f"cannot restart {info.job}@{info.number}", way_out)
    return list(found.values())


def _decoded(load: Load, kind: type[T], info: RootInfo) -> T:
    from torpor.image import codec

    try:
        return codec.decode(load.body, kind, f"checkpoint {info.job}@{info.number}")
    finally:
        load.close()


def _hooks(parts: Sequence[Part], store: str, why: str) -> None:
    """Run what is to be run before the job is restarted. Raises HookFailed."""
    first = parts[0]
    if first.upkeep:
        from torpor.supervise import hooks, upkeep

        told = {"JOB": first.job, "CHECKPOINT": first.checkpoint, "STORE": store, "WHY": why, "PART": first.part,
                "PARTS": " ".join(part.part for part in parts)}  # fmt: skip
        hooks.run(upkeep.decode(first.upkeep).hooks, "pre-restart", told)
