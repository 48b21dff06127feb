"""A signal that means `checkpoint-stop`, while a job is being restarted: there is nothing to save yet. The restart is
given up, which leaves nothing behind, and the checkpoint it came from is as good as a new one."""

from __future__ import annotations

import signal
from collections.abc import Sequence
from types import FrameType
from typing import Any


class Interrupted(BaseException):
    """Such a signal has come, and nothing is left of the restart. status: exit status to end with."""

    def __init__(self, number: int, status: int) -> None:
        from torpor.supervise.upkeep import signal_name

        super().__init__(f"{signal_name(number)}: the restart was given up")
        self.status = status


class Interrupts:
    """For the length of a `with`: those signals raise Interrupted, until `hold`."""

    def __init__(self, numbers: Sequence[int], status: int) -> None:
        """status: exit status that says "run me again"."""
        self._numbers, self._status = numbers, status
        self._before: list[tuple[int, Any]] = []

    def __enter__(self) -> Interrupts:
        self._before = [(number, signal.signal(number, self._raise)) for number in self._numbers]
        signal.pthread_sigmask(signal.SIG_UNBLOCK, self._numbers)
        return self

    def hold(self) -> None:
        """The job is about to run: they wait until its supervisor reads them."""
        if self._numbers:
            signal.pthread_sigmask(signal.SIG_BLOCK, self._numbers)

    def __exit__(self, *exc: object) -> None:
        for number, handler in self._before:
            signal.signal(number, handler)

    def _raise(self, number: int, _frame: FrameType | None) -> None:
        raise Interrupted(number, self._status)
