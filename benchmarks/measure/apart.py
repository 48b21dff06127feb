"""Measurements with programs of their own: what they are given, and what they give."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import NamedTuple, TypedDict

from measure import table
from measure.limits import Limits
from measure.ours import Figures, Torpor


class Result(TypedDict):
    """One line of a table. trouble: what went wrong in a round, which then is left out."""

    case: str
    medians: Figures
    rounds: list[Figures]
    trouble: list[str]


class Apart(NamedTuple):
    """How often, and with what. program: compiled."""

    rounds: int
    ours: Torpor
    limits: Limits
    folder: str
    program: str

    def repeat(self, case: str, one: Callable[..., Figures], *given: object, keep: bool = False) -> Result:
        """All rounds of `one(*given)`, each with an empty store; keep: with the store as it is."""
        found: list[Figures] = []
        trouble: list[str] = []
        for number in range(self.rounds):
            print(f"{case}: round {number + 1} of {self.rounds}", file=sys.stderr, flush=True)
            try:
                found.append(one(*given))
            except (RuntimeError, OSError, TimeoutError) as error:
                trouble.append(f"{case}: {error}")
                print(f"  {error}", file=sys.stderr, flush=True)
            if not keep:
                self.ours.forget()
        return {"case": case, "medians": table.medians(found), "rounds": found, "trouble": trouble}
