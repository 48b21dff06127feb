"""Checkpoints of a job over hosts that somebody has asked this supervisor for: they are asked for on all hosts, again
where what was in the way may have passed, and what came of them is told."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import msgspec

from torpor.coordinate.words import Answer, Word
from torpor.model.errors import CheckpointFailed, TorporError, UsageError
from torpor.named_tuple import NamedTuple
from torpor.supervise.keeper import Done, Order
from torpor.supervise.loop import Loop
from torpor.supervise.part import Part
from torpor.supervise.saving import Progress, Worker, apart, lasting
from torpor.supervise.wire import Ask, How

AGAIN = (0.05, 0.1, 0.2, 0.3, 0.5, 0.5, 0.5, 0.5)
"""Seconds before each of the attempts after one that met something that passes."""


class Question(NamedTuple):
    """word: to the member process.  tries: how often it was refused for something that passes.  then: called with the
    report, in a thread; returns it.  done: called with what it came to."""

    word: Ask
    order: Order
    tries: int
    progress: Progress
    then: Callable[[dict[str, Any]], dict[str, Any]]
    done: Done


class Questions:
    """Those of one supervisor. send: to the member process.  changed: called when one less is open."""

    def __init__(self, part: Part, send: Callable[[Word], None]) -> None:
        self._part, self._send = part, send
        self._open: dict[str, Question] = {}
        self._reports = 0
        self._loop: Loop
        self._worker: Worker
        self._changed: Callable[[], None]

    def attach(self, loop: Loop, worker: Worker, changed: Callable[[], None]) -> None:
        """The supervisor's loop runs."""
        self._loop, self._worker, self._changed = loop, worker, changed

    @property
    def open(self) -> bool:
        """Is an answer awaited?"""
        return bool(self._open)

    @property
    def over(self) -> bool:
        """Has everybody been told?"""
        return not self._open and not self._reports

    def ask(
        self, order: Order, progress: Progress, then: Callable[[dict[str, Any]], dict[str, Any]], done: Done
    ) -> None:
        """Have the job saved, on all hosts. then, done: see `Question`. Raises UsageError."""
        if order.name or order.store:
            raise UsageError("a job over hosts is saved under its own name and into its own store")
        with_files, compress = lasting(self._part.upkeep, order.with_files, order.compress)
        how = How(order.files, with_files, compress, order.encrypt_to, order.why, order.on, order.forget)
        what = msgspec.json.encode(how).decode()
        word = Ask(self._name(), order.stop, what)
        self._open[word.ask] = Question(word, order, 0, progress, then, done)
        self._send(word)

    def say_again(self) -> None:
        """There is another member process."""
        for question in self._open.values():
            self._send(question.word)

    def progress(self) -> Progress:
        """Called by the save that begins now, in its thread: tells those who wait for it."""
        waiting = list(self._open.values())

        def tell(phase: str, done: int, total: int) -> None:
            for question in waiting:
                question.progress(phase, done, total)

        return tell

    def answer(self, answer: Answer) -> None:
        """What came of one."""
        question = self._open.get(answer.ask)
        if question is None:
            return
        if not answer.ok:
            if answer.passing and question.tries < len(AGAIN):
                self._ask_again(question)
            else:
                self._fail(question, answer.text)
            return
        del self._open[answer.ask]
        self._reports += 1
        part = self._part

        def finish(result: dict[str, Any] | None, error: BaseException | None) -> None:
            self._reports -= 1
            _finish(part, question, result, error)
            self._changed()

        apart("torpor-report", lambda: _report(part, question, answer), finish, self._worker.post)

    def fail(self, reason: str) -> None:
        """Nobody will answer any more."""
        for question in list(self._open.values()):
            self._fail(question, reason)

    def _ask_again(self, question: Question) -> None:
        """Under another name, after a while: what was in the way may have passed."""
        del self._open[question.word.ask]
        word = msgspec.structs.replace(question.word, ask=self._name())
        self._open[word.ask] = question._replace(word=word, tries=question.tries + 1)

        def ask() -> None:
            if word.ask in self._open:
                self._send(word)

        self._loop.later(AGAIN[question.tries], ask)

    def _name(self) -> str:
        """Of a question."""
        return f"{self._part.part}/{os.urandom(8).hex()}"

    def _fail(self, question: Question, reason: str) -> None:
        del self._open[question.word.ask]
        _finish(self._part, question, None, CheckpointFailed(f"{self._part.job} was not saved: {reason}"))


def _report(part: Part, question: Question, answer: Answer) -> dict[str, Any]:
    """Of a checkpoint that exists; reads the store. Raises TorporError."""
    from torpor.supervise import saving

    try:
        found = saving.whole_report(part.store, part.job, answer.attempt, answer.seconds, answer.text)
    except (OSError, TorporError) as error:
        raise TorporError(f"{part.job}@{answer.attempt} was saved, but cannot be read: {error}") from None
    return question.then(found)


def _finish(part: Part, question: Question, result: dict[str, Any] | None, error: BaseException | None) -> None:
    """Write it into the log of what was done, and tell whoever has asked."""
    from torpor.supervise import audit

    told: dict[str, Any] = {"job": part.job, "why": question.order.why, "store": part.store}
    if result is not None:
        told |= {"checkpoint": f"{result['job']}@{result['number']}", "store": result["location"]}
        told |= {name: round(result[name], 4) for name in ("seconds", "pause_seconds", "bytes_total", "bytes_new")}
        told["stopped"] = question.order.stop
    audit.record("checkpoint", error, **told)
    question.done(result, error)
