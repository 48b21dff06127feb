"""On what terms a job uses what is outside of it, at this moment: for the checkpoint that is being made of it."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence

from torpor.model.terms import Layer, Terms
from torpor.policy import files


def encode(layers: Iterable[Layer]) -> str:
    """As the policy of a job stands in its entry (`registry.Entry.policy`); '' for none."""
    found = list(layers)
    if not found:
        return ""
    import msgspec

    return msgspec.json.encode(found).decode()


def decode(text: str) -> tuple[Layer, ...]:
    """What `encode` wrote."""
    if not text:
        return ()
    import msgspec

    return msgspec.json.decode(text, type=tuple[Layer, ...])


def standing() -> bool:
    """Is there any policy of the system or the user?"""
    return any(os.path.exists(path) for path in files.places())


def now(policy: str, held: Sequence[str], pids: Iterable[int], forget: Sequence[str] = ()) -> Terms | None:
    """The terms of a job with these processes; None if there is nothing to be said. policy: of the job's own, as
    `encode` wrote it; those of the system and the user hold too.  held: its seats.  forget: variables whose values are
    not to be kept. Raises UsageError for a policy that cannot be read."""
    from torpor.policy import known
    from torpor.policy.decide import merged

    terms = Terms(merged(decode(policy), files.standing()), tuple(held), known.signs(pids, forget))
    return None if terms == Terms() else terms
