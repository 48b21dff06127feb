"""`torpor run --resume-or-start`: restart the newest checkpoint of a name if there is one, else start the program.

A checkpoint that is damaged is not used, and that is said; the newest one that is whole is. If there are only damaged
ones it is an error: to begin from the beginning could throw away what somebody can still put in order, so that is left
to whoever says `torpor rm`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from torpor.model.errors import Damaged, NotFound
from torpor.supervise.say import say

T = TypeVar("T")


def candidates(store: str, name: str) -> tuple[list[str], list[str]]:
    """The checkpoints of that name that are whole as far as their listing tells, newest first; and what is to be said
    about newer ones. Raises Damaged if all are damaged, UsageError if there is something else at `store`."""
    from torpor.store import open_store

    opened = open_store(store or None, apart=True)  # a restart forks
    try:
        found = opened.list(name)[::-1]
    except NotFound:
        return [], []  # a store that is still to be made
    finally:
        opened.close()
    whole = [f"{info.job}@{info.number}" for info in found if not info.damaged]
    if found and not whole:
        raise Damaged(
            f"{found[0].damaged}, and no other checkpoint of {name} is whole; to start from the beginning, "
            f"remove them: torpor rm --all {name}"
        )
    notes = []
    for info in found:
        if not info.damaged:
            break
        notes.append(f"{info.damaged}; taking {whole[0]} instead")
    return whole, notes


def first_whole(names: Sequence[str], notes: Sequence[str], attempt: Callable[[str, tuple[str, ...]], T]) -> T:
    """`attempt` the checkpoints one after the other, until one turns out to be whole. It is given what is then to be
    said (`restart.Wishes.notes`). Raises Damaged if none is whole."""
    told = list(notes)
    for at, which in enumerate(names):
        try:
            return attempt(which, tuple(told))
        except Damaged as error:
            if at + 1 == len(names):
                for note in told:
                    say(f"torpor: {note}")
                raise
            told.append(f"{error}; taking {names[at + 1]} instead")
    raise Damaged("there is no checkpoint")
