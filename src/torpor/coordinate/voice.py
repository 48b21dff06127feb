"""What a coordinator says in one turn: instructions for the code around it. No decisions."""

from __future__ import annotations

from torpor.coordinate import words
from torpor.coordinate.phases import SOON
from torpor.coordinate.words import Answer, Instruction, Tell, Wake


class Voice:
    """term: of the coordinator.  now: when this turn began, in seconds on its clock."""

    def __init__(self, term: int) -> None:
        self.term = term
        self.now = 0.0
        self._out: list[Instruction] = []

    def say(self, instruction: Instruction) -> None:
        """One more."""
        self._out.append(instruction)

    def only(self, instruction: Instruction) -> None:
        """That one, and nothing of what was to be said."""
        self._out = [instruction]

    def tell(self, host: str, word: words.Spoken) -> None:
        """To one host."""
        self.say(Tell(host, word))

    def wake(self, seconds: float) -> None:
        """Be called again after a while."""
        self.say(Wake(max(seconds, SOON)))

    def answer(
        self, ask: str, ok: bool, text: str, number: int = 0, seconds: tuple[tuple[str, float], ...] = (),
        passing: bool = False,
    ) -> None:  # fmt: skip
        """To whoever asked."""
        self.say(Answer(ask, ok, text, number, seconds, passing))

    def taken(self) -> list[Instruction]:
        """All of it; the turn is over."""
        out, self._out = self._out, []
        return out
