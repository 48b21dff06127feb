"""Batches in many tasks at the same time: while one makes its calls, the next is told its own.

A *work* (tracee/task.py) yields what is to be asked in a task, and gets the answers. `together` carries out many works:
a task whose batch is at its end waits there until it is its turn, so that neither we nor the tasks wait for the way
from one to the other. Only for processes that are being recreated (tracee/stub.py).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator

from torpor.named_tuple import NamedTuple
from torpor.tracee.batch import Batch, laid_out
from torpor.tracee.call import Answer, failed
from torpor.tracee.stub import LANES, StubProcess
from torpor.tracee.task import HEAD, Asked, Seat, Started, Work


class _Flight(NamedTuple):
    """A batch that is running. rest: those of the same calls that are to follow."""

    work: Work
    asked: Asked
    seat: Seat
    started: Started
    rest: Iterator[Batch]


def together(works: Iterable[Work], alone: bool = True) -> None:
    """Carry out all works to their ends. alone: there is at most one for each process; else they share its room.

    Raises CallFailed, Gone, or what a work raises; others may be running then.
    """
    lanes = 1 if alone else LANES
    flying: dict[int, deque[_Flight]] = {}
    large: list[tuple[Work, Asked]] = []
    queue: deque[tuple[Work, list[Answer] | None]] = deque((work, None) for work in works)
    while True:
        while queue:
            work, answers = queue.popleft()
            asked = _advance(work, answers)
            if asked is None:
                continue
            process = asked.task.owner
            assert isinstance(process, StubProcess)
            mine = flying.setdefault(process.pid, deque())
            seat = asked.seat
            if seat is None and len(mine) < lanes:
                taken = {flight.seat.scratch for flight in mine}
                seat = next(seat for seat in process.lanes(lanes) if seat.scratch not in taken)
            elif seat is None:
                seat = _land(mine, queue)
            try:
                parts = laid_out(seat.scratch + HEAD, seat.size - HEAD, asked.calls, asked.objects)
                batches = iter(parts if alone else list(parts))
            except ValueError:
                large.append((work, asked))  # needs all the room there is, for itself
                continue
            mine.append(_Flight(work, asked, seat, asked.task.launch(seat, next(batches)), batches))
        for mine in flying.values():
            while mine:
                _land(mine, queue)
        if not queue:
            break
    for work, asked in large:
        queue.append((work, asked.task.run(asked.calls, asked.check, asked.objects)))
        while queue:
            following = _advance(*queue.popleft())
            if following is not None:
                queue.append((work, following.task.run(following.calls, following.check, following.objects)))


def _advance(work: Work, answers: list[Answer] | None) -> Asked | None:
    """What the work asks next, None at its end. To ask for nothing is answered at once."""
    try:
        asked = next(work) if answers is None else work.send(answers)
        while not asked.calls:
            asked = work.send([])
    except StopIteration:
        return None
    return asked


def _land(mine: deque[_Flight], queue: deque[tuple[Work, list[Answer] | None]]) -> Seat:
    """Wait for the oldest of a process' batches, and those that belong to it; its work is to go on. The seat that is
    free now."""
    flight = mine.popleft()
    answers = flight.started.finish()
    for batch in flight.rest:
        answers += flight.asked.task.launch(flight.seat, batch).finish()
    if flight.asked.check:
        failed(flight.asked.task.tgid, flight.asked.calls, answers)
    queue.append((flight.work, answers))
    return flight.seat
