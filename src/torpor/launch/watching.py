"""Whether a job can be watched, and what is then put around it (watch/wrapper.py)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

import msgspec

from torpor.model.address_map import AddressMap
from torpor.model.errors import Unwatched
from torpor.model.ledger import Ledger
from torpor.watch.ledger import CONNECT, NAMES, begun
from torpor.watch.possible import impossible

if TYPE_CHECKING:
    from torpor.watch.wrapper import Wrapper


def again(
    saved: Ledger | None, how: str, words: Iterable[str], moves: AddressMap | None = None, datagrams: bool = False
) -> Ledger | None:
    """The ledger that a job is restarted with, None if it is not to be watched. how: what a policy wants written down
    (watch/ledger.py), '' for nothing.  words: where addresses are now that it was saved with (`--map-host`).  moves:
    where all are that it believes in, for a part of a job over hosts.  datagrams: it may send some with addresses, by
    any call."""
    later = AddressMap.parse(words)
    if saved is None and not how and not later and not moves:
        return None
    prior = saved or begun(how or CONNECT)
    before = AddressMap.parse(prior.moved) if moves is None else moves
    moved = before.then(later).words()
    return msgspec.structs.replace(
        prior,
        moved=moved,
        with_sendmsg=prior.with_sendmsg or bool(moved and datagrams),
        with_answers=prior.with_answers or how == NAMES,
    )


def wrapper(prior: Ledger, say: Callable[[str], None]) -> Wrapper | None:
    """What to put around a job; None where it has to run unwatched, which is said.

    Raises Unwatched where it asks for addresses that are elsewhere now, and would not find them.
    """
    why = impossible()
    if why and prior.moved:
        raise Unwatched(f"addresses of other hosts cannot be mapped: {why}")
    if why:
        say(f"the job runs unwatched: {why}")
        return None
    from torpor.watch.wrapper import Wrapper

    return Wrapper(prior)
