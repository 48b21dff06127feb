"""A checkpoint of a job over hosts that somebody has asked this supervisor for: what it came to."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from torpor.coordinate.words import Answer
from torpor.model.errors import TorporError
from torpor.supervise.keeper import Done, Order
from torpor.supervise.part import Part
from torpor.supervise.saving import Progress
from torpor.supervise.wire import Ask


class Question(NamedTuple):
    """word: to the member process.  tries: how often it was refused for something that passes.  then: called with the
    report, in a thread; returns it.  done: called with what it came to."""

    word: Ask
    order: Order
    tries: int
    progress: Progress
    then: Callable[[dict[str, Any]], dict[str, Any]]
    done: Done


def report(part: Part, question: Question, answer: Answer) -> dict[str, Any]:
    """Of a checkpoint that exists; reads the store. Raises TorporError."""
    from torpor.supervise import saving

    try:
        found = saving.whole_report(part.store, part.job, answer.attempt, answer.seconds, answer.text)
    except (OSError, TorporError) as error:
        raise TorporError(f"{part.job}@{answer.attempt} was saved, but cannot be read: {error}") from None
    return question.then(found)


def finish(part: Part, question: Question, result: dict[str, Any] | None, error: BaseException | None) -> None:
    """Write it into the log of what was done, and tell whoever has asked."""
    from torpor.supervise import audit

    told: dict[str, Any] = {"job": part.job, "why": question.order.why, "store": part.store}
    if result is not None:
        told |= {"checkpoint": f"{result['job']}@{result['number']}", "store": result["location"]}
        told |= {name: round(result[name], 4) for name in ("seconds", "pause_seconds", "bytes_total", "bytes_new")}
        told["stopped"] = question.order.stop
    audit.record("checkpoint", error, **told)
    question.done(result, error)
