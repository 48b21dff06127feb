"""What is done for a job unasked: the decisions, and the keeper that carries them out in a loop of our own making."""

from __future__ import annotations

import signal
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from torpor.cli import upkeep as cli
from torpor.cli.parser import Parser
from torpor.model.errors import CheckpointFailed, UsageError
from torpor.supervise import hooks, keeper, upkeep
from torpor.supervise.keeper import Keeper, Order
from torpor.supervise.upkeep import Upkeep

TERM, USR1, HUP = int(signal.SIGTERM), int(signal.SIGUSR1), int(signal.SIGHUP)
KINDS = st.builds(
    Upkeep,
    every=st.floats(0, 1e6),
    keep=st.integers(0, 100),
    on_signal=st.dictionaries(
        st.sampled_from([TERM, USR1, HUP, int(signal.SIGRTMIN) + 3]), st.sampled_from(upkeep.ACTIONS)
    ).map(lambda table: tuple(sorted(table.items()))),
    deadline=st.floats(0, 1e6),
    crashes=st.integers(0, 10),
    stopped_status=st.integers(0, 255),
    with_files=st.booleans(),
    compress=st.sampled_from(["", "auto", "none", "fast", "zstd"]),
    services=st.lists(st.sampled_from(["db=10.0.0.1", "licence=[fd00::1]:27000"]), unique=True).map(tuple),
    forget=st.lists(st.sampled_from(["dontdump", "DB_*", "TOKEN"])).map(tuple),
    hooks=st.lists(st.tuples(st.sampled_from(hooks.EVENTS), st.text("a' -$\"").map("true {}".format))).map(tuple),
)


@given(KINDS)
def test_written_down_and_read(wanted: Upkeep) -> None:
    assert upkeep.decode(upkeep.encode(wanted)) == wanted


def test_nothing_is_written_for_nothing() -> None:
    assert upkeep.encode(Upkeep()) == ""
    assert upkeep.decode("") == Upkeep()
    assert '"TERM": "checkpoint"' in upkeep.encode(Upkeep(on_signal=((TERM, "checkpoint"),)))


@given(KINDS.map(lambda wanted: wanted._replace(every=round(wanted.every, 3), deadline=round(wanted.deadline, 3))))
def test_as_options(wanted: Upkeep) -> None:
    """What is shown can be said, and means the same."""
    parser = Parser()
    cli.add(parser)
    words = upkeep.options(wanted)
    assert upkeep.changed(Upkeep(), cli.given(parser.parse_args(words))) == wanted
    assert upkeep.decode(cli.encoded(parser.parse_args(words))) == wanted


@pytest.mark.parametrize("text", ["[]", "{", '{"later": 1}', '{"every": []}', '{"on_signal": {"TERM": "dance"}}',
                                  '{"on_signal": {"NO": "pass"}}', '{"on_signal": 3}'])  # fmt: skip
def test_what_is_not_understood(text: str) -> None:
    with pytest.raises(ValueError):
        upkeep.decode(text)


def test_given_in_place_of_what_was() -> None:
    old = Upkeep(every=600, keep=3, on_signal=((HUP, "checkpoint"), (TERM, "checkpoint-stop")))
    new = upkeep.changed(old, {"every": 0.0, "keep": None, "on_signal": ((TERM, "pass"),)})
    assert new == Upkeep(keep=3, on_signal=((HUP, "checkpoint"), (TERM, "pass")))


@pytest.mark.parametrize(
    ("name", "number"), [("TERM", 15), ("sigterm", 15), ("15", 15), ("RTMIN+2", int(signal.SIGRTMIN) + 2)]
)
def test_signal_names(name: str, number: int) -> None:
    assert upkeep.signal_number(name) == number
    assert upkeep.signal_number(upkeep.signal_name(number)) == number


@pytest.mark.parametrize(
    "text",
    ["TERM", "TERM=", "TERM=stop", "KILL=checkpoint", "NO=pass", "CHLD=checkpoint", "=pass", "STOP=pass",
     "SEGV=checkpoint", "TSTP=checkpoint", "RTMIN+99=pass"],
)  # fmt: skip
def test_reactions_that_make_no_sense(text: str) -> None:
    with pytest.raises(UsageError):
        upkeep.reaction(text)


def test_due() -> None:
    assert upkeep.due(Upkeep(), 100.0, 0.0) is None
    assert upkeep.due(Upkeep(every=60), 100.0, 90.0) == 50.0
    assert upkeep.due(Upkeep(every=60), 500.0, 90.0) == 0.0


def test_predict() -> None:
    assert upkeep.predict([]) is None
    assert upkeep.predict([90.0, 1.0, 3.0, 2.0]) == 3.0


@pytest.mark.parametrize(
    ("action", "busy", "expected", "left", "what"),
    [
        ("pass", "checkpoint-stop", None, None, "pass"),
        ("checkpoint", "", 50.0, 10.0, "save"),
        ("checkpoint", "checkpoint", None, None, "again"),
        ("checkpoint", "checkpoint-stop", None, None, "again"),
        ("checkpoint", "check", None, None, "after"),
        ("checkpoint-stop", "", None, 10.0, "save"),
        ("checkpoint-stop", "", 10.0, 10.0, "save"),
        ("checkpoint-stop", "", 10.1, 10.0, "late"),
        ("checkpoint-stop", "", 1e9, None, "save"),
        ("checkpoint-stop", "checkpoint", 1.0, 10.0, "after"),
        ("checkpoint-stop", "checkpoint-stop", 50.0, 10.0, "again"),
    ],
)
def test_answers(action: str, busy: str, expected: float | None, left: float | None, what: str) -> None:
    assert upkeep.answer(action, busy, expected, left) == what


@given(st.sets(st.integers(1, 50)), st.integers(0, 10))
def test_surplus(numbers: set[int], keep: int) -> None:
    gone = upkeep.surplus(numbers, keep)
    left = numbers - set(gone)
    assert len(left) == (min(keep, len(numbers)) if keep else len(numbers))
    assert not gone or max(gone) < min(left)


@pytest.mark.parametrize(
    ("status", "signals", "crash"),
    [
        (0, (), False), (1 << 8, (), True), (9, (), True), (11, (TERM,), False), (1 << 8, (TERM,), False),
        (int(HUP), (HUP,), False), (1 << 8, (HUP,), True), (int(USR1), (HUP,), True), (9, (9,), False),
    ],
)  # fmt: skip
def test_crashes(status: int, signals: tuple[int, ...], crash: bool) -> None:
    assert upkeep.crashed(status, signals) is crash


@pytest.mark.parametrize(
    ("status", "stopped", "interrupted", "saved", "final"),
    [
        (9, True, False, True, 75 << 8), (0, False, True, True, 0), (15, False, True, True, 75 << 8),
        (15, False, True, False, 15), (3 << 8, False, False, True, 3 << 8), (3 << 8, False, True, True, 75 << 8),
    ],
)  # fmt: skip
def test_final_status(status: int, stopped: bool, interrupted: bool, saved: bool, final: int) -> None:
    assert upkeep.final_status(Upkeep(), status, stopped, interrupted, saved) == final
    assert upkeep.final_status(Upkeep(stopped_status=99), 9, True, False, True) == 99 << 8


# -- the keeper: time, the loop and the saves are ours


class Stage:
    """A loop whose clock we turn, and a supervisor that only writes down what it is asked for."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, wanted: Upkeep, seconds: list[float] | None = None) -> None:
        self.now = 1000.0
        self.timers: list[tuple[float, Callable[[], None]]] = []
        self.saves: list[tuple[Order, Any, Any]] = []
        self.passed: list[int] = []
        self.said: list[str] = []
        self.busy = ""
        monkeypatch.setattr(keeper.time, "monotonic", lambda: self.now)
        monkeypatch.setattr(keeper, "say", self.said.append)
        self.keeper = Keeper(
            wanted, self, self.save, lambda: self.busy, self.passed.append, seconds or [], "t@1" if seconds else ""
        )  # type: ignore[arg-type]
        self.keeper.start()

    def later(self, seconds: float, callback: Callable[[], None]) -> None:
        self.timers.append((self.now + seconds, callback))

    def save(self, order: Order, progress: Any, done: Any) -> None:
        assert not self.busy
        self.busy = "checkpoint"
        self.saves.append((order, progress, done))

    def turn(self, seconds: float) -> None:
        """Let time pass."""
        end = self.now + seconds
        while due := sorted((t for t in self.timers if t[0] <= end), key=lambda t: t[0]):
            self.timers.remove(due[0])
            self.now = due[0][0]
            due[0][1]()
        self.now = end

    def finish(self, error: BaseException | None = None, took: float = 2.0) -> None:
        """What is being made is made, or not."""
        self.busy = ""
        if error is None:
            self.keeper.saved(f"t@{len(self.saves) + 1}", took)
        self.saves[-1][2](None if error else {}, error)
        self.keeper.idle()


def test_by_the_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    stage = Stage(monkeypatch, Upkeep(every=60))
    stage.turn(59)
    assert not stage.saves
    stage.turn(1)
    assert [order for order, _, _ in stage.saves] == [Order(why="every")]
    stage.turn(300)  # it takes its time: no second one beside it
    stage.finish()
    assert len(stage.saves) == 1
    stage.turn(59)
    stage.keeper.saved("t@9", 1.0)  # somebody has saved it by hand
    stage.turn(59)
    assert len(stage.saves) == 1
    stage.turn(1)
    assert len(stage.saves) == 2
    assert stage.said == []
    assert len(stage.timers) <= 1  # asleep but for one timer


def test_a_checkpoint_that_is_due_while_something_else_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    stage = Stage(monkeypatch, Upkeep(every=60))
    stage.busy = "check"
    stage.turn(100)
    assert not stage.saves
    stage.busy = ""
    stage.keeper.idle()
    stage.turn(0)
    assert len(stage.saves) == 1


def test_a_failure_is_said_once_and_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    stage = Stage(monkeypatch, Upkeep(every=60))
    for _ in range(3):
        stage.turn(60)
        stage.finish(CheckpointFailed("the disk is full"))
    assert len(stage.saves) == 3
    assert stage.said == ["torpor: not saved (every): the disk is full; the job runs on"]


def test_stop_on_a_signal(monkeypatch: pytest.MonkeyPatch) -> None:
    stage = Stage(monkeypatch, Upkeep(on_signal=((TERM, "checkpoint-stop"),), deadline=100), [4.0])
    assert not stage.keeper.signal(USR1)
    assert stage.keeper.signal(TERM)
    assert [order for order, _, _ in stage.saves] == [Order(stop=True, why="signal TERM")]
    assert stage.said == ["torpor: TERM: saving, about 4.0 s by the latest checkpoints, 100 s are left"]
    assert stage.keeper.signal(TERM)  # a second one changes nothing
    assert stage.said[1:] == ["torpor: TERM again: it is being saved already"]
    assert len(stage.saves) == 1
    stage.finish()
    assert stage.passed == []
    assert not stage.keeper.interrupted


def test_no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    stage = Stage(monkeypatch, Upkeep(on_signal=((TERM, "checkpoint-stop"),), deadline=10), [14.0])
    assert stage.keeper.signal(TERM)
    assert not stage.saves
    assert stage.passed == [TERM]
    assert stage.keeper.interrupted
    assert stage.said == [
        "torpor: TERM: no time to save: it takes about 14 s, and 10 s are left; t@1 stays the newest checkpoint; "
        "TERM is passed on to the job"
    ]


def test_the_deadline_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    stage = Stage(monkeypatch, Upkeep(on_signal=((TERM, "checkpoint-stop"),), deadline=10))
    assert stage.keeper.signal(TERM)
    progress = stage.saves[0][1]
    stage.turn(9)
    progress("memory", 1, 2)
    stage.turn(1)
    with pytest.raises(CheckpointFailed, match="did not fit into the 10 s") as caught:
        progress("memory", 2, 2)
    stage.finish(caught.value)
    assert stage.passed == [TERM]
    assert "there is no checkpoint yet" in stage.said[-1]
    # Whoever handles TERM and lives on may be told again, and then has the whole time again.
    assert stage.keeper.signal(TERM)
    stage.saves[1][1]("memory", 1, 2)
    stage.turn(9)
    stage.saves[1][1]("memory", 1, 2)


def test_stop_while_another_one_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    stage = Stage(monkeypatch, Upkeep(every=60, on_signal=((TERM, "checkpoint-stop"),), deadline=100))
    stage.turn(60)
    assert stage.keeper.signal(TERM)
    assert stage.keeper.signal(TERM)
    stage.turn(30)
    stage.finish(took=30.0)
    assert [order.why for order, _, _ in stage.saves] == ["every", "signal TERM"]
    late = Stage(monkeypatch, Upkeep(every=60, on_signal=((TERM, "checkpoint-stop"),), deadline=50))
    late.turn(60)
    assert late.keeper.signal(TERM)
    late.turn(30)
    late.finish(took=30.0)
    assert len(late.saves) == 1  # 30 s more do not fit into the 20 s that are left
    assert late.passed == [TERM]
    assert "t@2 stays the newest checkpoint" in late.said[-1]


def test_checkpoint_on_a_signal_that_fails_is_not_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    stage = Stage(monkeypatch, Upkeep(on_signal=((USR1, "checkpoint"),)))
    assert stage.keeper.signal(USR1)
    stage.finish(CheckpointFailed("no"))
    assert stage.passed == []
    assert stage.said[-1] == "torpor: not saved (signal USR1): no; the job runs on"
