"""What may be said only after something was written, and what only by whoever decided: one word at a time."""

from __future__ import annotations

from collections.abc import Collection

import msgspec

from torpor.coordinate import words
from torpor.coordinate.core import Coordinator
from torpor.coordinate.host import Host
from torpor.coordinate.phases import PLANS, Kind, Limits, Phase
from torpor.coordinate.record import Open, Record, Stage

HOSTS = ("a", "b")


class Told:
    """A coordinator whose writes are acknowledged by hand."""

    def __init__(self, record: Record | None = None, hosts: Collection[str] = ()) -> None:
        self.one = Coordinator(7, record or Record(members=(("a", 1), ("b", 1))), 40, hosts=hosts)
        self.revision = 40
        self.now = 100.0
        self.kinds(self.one.start(self.now))

    def say(self, event: words.Event) -> list[str]:
        return self.kinds(self.one.handle(event, self.now))

    def written(self) -> list[str]:
        self.revision += 1
        return self.say(words.Saved(self.revision))

    def kinds(self, instructions: list[words.Instruction]) -> list[str]:
        self.last = instructions
        return [type(instruction).__name__ for instruction in instructions if not isinstance(instruction, words.Wake)]

    def all_do(self, phase: Phase) -> list[str]:
        self.say(words.Did("a", 1, 1, phase))
        return self.say(words.Did("b", 1, 1, phase, b"part" if phase is Phase.STORE else b""))


def to(phase: Phase, kind: Kind = Kind.CHECKPOINT) -> Told:
    """A checkpoint of which that phase has been ordered."""
    told = Told()
    told.written()
    assert told.say(words.AskCheckpoint("one", kind is Kind.STOP)) == ["Save"]
    assert told.written() == ["Announce"]
    for before in PLANS[kind]:
        if before is phase:
            break
        out = told.all_do(before)
        assert out[0] == "Announce"
        if "Save" in out:
            told.written()
    return told


def decided(kind: Kind) -> Record:
    open_ = Open(1, kind, "one", Stage.DECIDED, HOSTS, (b"x", b"y"))
    return Record(3, (("a", 1), ("b", 1)), 1, open_)


def test_nothing_is_ordered_before_the_attempt_is_written() -> None:
    told = Told()
    told.written()
    assert told.say(words.AskCheckpoint("one")) == ["Save"]
    assert told.say(words.Lost("b")) == []  # given up; nobody has heard of it, and the number may be used again
    assert told.written() == ["Save"]
    assert told.written() == ["Announce"]
    word = told.last[0].word  # type: ignore[union-attr]
    assert (word.attempt, word.phase) == (1, Phase.UNDO)


def test_nothing_is_heard_before_the_job_is_taken_over() -> None:
    told = Told()
    assert told.say(words.AskCheckpoint("one")) == []
    assert told.written() == ["Save"]
    assert told.one.record.open is not None


def test_the_decision_is_written_before_the_store_hears_of_it() -> None:
    told = to(Phase.STORE)
    assert told.all_do(Phase.STORE) == ["Save"]
    assert told.say(words.Failed("a", 1, 1, Phase.STORE, "too late")) == []
    assert told.written() == ["Commit"]
    assert told.say(words.Committed(1)) == ["Save"]
    assert told.written() == ["Announce", "Answer"]


def test_who_decided_may_take_it_back_if_the_store_refuses_but_says_so_only_when_that_is_written() -> None:
    told = to(Phase.STORE, Kind.STOP)
    told.all_do(Phase.STORE)
    told.written()
    assert told.say(words.NotCommitted(1, "no space left")) == ["Save"]
    assert told.written() == ["Announce"]


def test_a_successor_carries_a_decision_out_however_often_the_store_refuses() -> None:
    told = Told(decided(Kind.CHECKPOINT))
    assert told.written() == ["Commit"]
    for _ in range(3):
        assert told.say(words.NotCommitted(1, "no space left")) == []
        told.now += Limits().repeat
        assert told.say(words.Tick()) == ["Commit"]
    assert told.say(words.Committed(1)) == ["Save"]
    assert told.written() == ["Announce", "Answer"]
    assert told.last[-1].ok  # type: ignore[union-attr]


def test_a_restart_is_released_only_when_that_is_written() -> None:
    told = Told()
    told.written()
    told.say(words.AskRestart("one", "job@1", (("x", "a"), ("y", "b"))))
    assert told.written() == ["Tell", "Tell"]
    assert [msgspec.msgpack.decode(tell.word.part) for tell in told.last[:2]] == [["x"], ["y"]]  # type: ignore[union-attr]
    told.say(words.Did("a", 1, 1, Phase.RECREATE))
    assert told.say(words.Did("b", 1, 1, Phase.RECREATE)) == ["Announce"]
    told.say(words.Did("a", 1, 1, Phase.CONNECT))
    assert told.say(words.Did("b", 1, 1, Phase.CONNECT)) == ["Announce"]
    told.say(words.Did("a", 1, 1, Phase.FILL))
    assert told.say(words.Did("b", 1, 1, Phase.FILL)) == ["Save"]
    assert told.written() == ["Announce"]
    # Also who has released its part may fail before all have.
    told.say(words.Did("a", 1, 1, Phase.RELEASE))
    assert told.say(words.Failed("a", 1, 1, Phase.RELEASE, "deserted")) == ["Announce", "Save"]
    assert told.one.record.last is not None and told.one.record.last.ending is Phase.UNDO


def test_who_was_outrun_says_nothing_any_more() -> None:
    told = to(Phase.CAPTURE)
    assert told.say(words.Outrun()) == ["Retire"]
    assert told.say(words.Tick()) == [] and told.all_do(Phase.CAPTURE) == []


def test_a_host_that_leaves_although_it_is_frozen_ends_the_checkpoint() -> None:
    told = to(Phase.FREEZE)
    told.say(words.Did("a", 1, 1, Phase.FREEZE))
    assert told.say(words.Left("a", 1)) == ["Announce", "Save"]
    assert told.one.record.last is not None
    assert told.one.record.last.reason == "a: it left the job during the phase freeze"


def test_another_incarnation_has_promised_nothing() -> None:
    told = to(Phase.FREEZE)
    told.say(words.Did("a", 1, 1, Phase.FREEZE))
    assert told.say(words.Did("b", 2, 1, Phase.FREEZE)) == []
    assert told.say(words.Left("b", 0)) == [] and told.say(words.Joined("b", 0)) == []
    assert told.say(words.Did("b", 1, 1, Phase.FREEZE)) == ["Announce"]


def test_a_host_with_conversations_waits_for_what_concerns_it() -> None:
    host = Host("a", 1)
    host.start(0.0)
    host.handle(words.Admitted(1, "a", 1, 0), 0.0)
    for phase, part in ((Phase.SURVEY, b""), (Phase.FREEZE, b"ends")):
        host.handle(words.Order(1, 1, Kind.CHECKPOINT, phase), 0.0)
        host.handle(words.Finished(1, phase, part), 0.0)
    settle = words.Order(1, 1, Kind.CHECKPOINT, Phase.SETTLE)
    assert not any(isinstance(out, words.Work) for out in host.handle(settle, 0.0))
    mine = msgspec.structs.replace(settle, part=b"others")
    assert host.handle(mine, 0.0)[0] == words.Work(1, Kind.CHECKPOINT, Phase.SETTLE, b"others")


def test_nothing_is_saved_before_all_hosts_have_come() -> None:
    told = Told(Record(number=5, members=(("a", 1),)), HOSTS)
    told.written()
    assert told.say(words.AskCheckpoint("one")) == []
    told.now += 5.0
    assert told.say(words.AskCheckpoint("one")) == [], "asked again"
    assert told.say(words.Joined("b", 1)) == ["Save"]
    assert told.written() == ["Tell", "Save"]
    assert told.written() == ["Announce"]


def test_a_host_that_does_not_come_is_named() -> None:
    told = Told(Record(members=(("a", 1),)), HOSTS)
    told.written()
    assert told.say(words.AskCheckpoint("one")) == []
    told.now += 31.0
    assert told.say(words.AskCheckpoint("one")) == ["Answer"]
    answer = told.last[0]
    assert isinstance(answer, words.Answer) and (answer.ok, answer.text) == (False, "b did not come into the job")


def test_a_host_that_has_left_is_not_waited_for() -> None:
    told = Told(Record(members=(("a", 1),), gone=(("b", 1),)), HOSTS)
    told.written()
    assert told.say(words.AskCheckpoint("one")) == ["Save"]
