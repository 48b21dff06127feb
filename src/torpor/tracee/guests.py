"""The threads of a living process make their calls, a few at the same time.

While one makes its calls, the next is told its own: so neither we nor the threads wait for the way from one to the
other, which takes longer than the calls.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence

from torpor.tracee.call import Call
from torpor.tracee.process import LivingProcess
from torpor.tracee.task import Begun, Gone, Made, Task


def make(process: LivingProcess, asked: Iterable[tuple[Task, Sequence[Call]]]) -> list[Made]:
    """Have threads that are not the first one make calls; what came of them, in the same order.

    Raises Gone, OSError. All of them stand where they were found afterwards, in any case.
    """
    made: list[Made] = []
    begun: deque[Begun] = deque()
    lanes = 0
    try:
        for number, (task, calls) in enumerate(asked):
            lanes = lanes or process.lanes
            if len(begun) == lanes:
                made.append(begun.popleft().made())
            begun.append(Begun(task, process.seat_guest(task, number % lanes), calls))
        while begun:
            made.append(begun.popleft().made())
    finally:
        for one in begun:
            try:
                one.made()
            except (Gone, OSError):
                pass  # the first that went wrong is told
    return made
