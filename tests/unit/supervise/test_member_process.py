"""The member process of a part; several in this process, without a network; the test plays the supervisors."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from torpor.checkpoint.together import GivenUp
from torpor.coordinate import words
from torpor.coordinate.phases import Kind, Limits, Phase
from torpor.coordinate.words import Finished, Work
from torpor.image.whole import Face, PartRecord
from torpor.link import secret as secrets
from torpor.link.direct import Hub
from torpor.link.members import PREFIX
from torpor.store import open_store
from torpor.store.parts import Part as StoredPart
from torpor.supervise import part as parts
from torpor.supervise import wire
from torpor.supervise.agreeing import Restarting, Saving
from torpor.supervise.job_end import OVER
from torpor.supervise.loop import Loop
from torpor.supervise.member import Member
from torpor.supervise.part import Part
from torpor.supervise.wire import Wire

LIMITS = Limits(repeat=0.1, silence=2.0, host=3.0, ending=2.0)


class Job:
    """Parts, and what their member processes have told their supervisors."""

    def __init__(self, folder: str, *names: str) -> None:
        self.folder, self.names = folder, names
        self.hub, self.loop = Hub(), Loop()
        self.secret = secrets.fresh()
        self.wires: dict[str, Wire] = {}
        self.told: dict[str, list[Any]] = {name: [] for name in names}
        self.ended: set[str] = set()
        self.answer: Callable[[str, Work], words.Finished | words.Broke | None] = self.obedient
        for name in names:
            self.begin(name)

    def begin(self, name: str, owner: str = "") -> None:
        part = Part(
            job="train", part=name, first=name == self.names[0], address="127.0.0.1",
            hosts=dict.fromkeys(self.names, "127.0.0.1"), store=self.folder, limits=LIMITS, lease=0.6, silent=1.0,
        )  # fmt: skip
        ours, theirs = socket.socketpair()
        told = wire.Begin(self.secret.line(), parts.line(part), owner or name)
        Member(told, self.hub.open(name), Wire(theirs, wire.ToMember), self.loop)
        self.wires[name] = Wire(ours, wire.ToSupervisor)
        self.wires[name].follow(self.loop, lambda word: self.heard(name, word), lambda: self.ended.add(name))

    def heard(self, name: str, word: Any) -> None:
        if not isinstance(word, wire.Here):
            self.told[name].append(word)
        if isinstance(word, Work):
            answer = self.answer(name, word)
            if answer is not None:
                self.wires[name].send(answer)

    def obedient(self, name: str, work: Work) -> words.Finished | words.Broke | None:
        part = b""
        if work.phase is Phase.STORE:
            stored = StoredPart(name, name.encode() * 16)
            part = msgspec.msgpack.encode(PartRecord(stored, name, "", 1, 1, "x", 0.0, 0.0, name == self.names[0]))
        return Finished(work.attempt, work.phase, part)

    def of(self, name: str, kind: type) -> list[Any]:
        return [word for word in self.told[name] if isinstance(word, kind)]

    def until(self, condition: Callable[[], Any], what: str) -> None:
        end = time.monotonic() + 20
        while not condition():
            assert time.monotonic() < end, f"{what}: {self.told}"
            self.loop.turn(0.02)

    def all_in(self) -> None:
        self.until(lambda: all(self.of(name, wire.In) for name in self.names), "in the job")

    def ask(self, name: str, ask: str, stop: bool = False) -> words.Answer:
        self.wires[name].send(wire.Ask(f"{name}/{ask}", stop, ""))
        self.until(lambda: any(word.ask == f"{name}/{ask}" for word in self.of(name, words.Answer)), "answered")
        answer: words.Answer = self.of(name, words.Answer)[-1]
        return answer

    def saved(self) -> dict[int, list[str]]:
        if not os.path.exists(self.folder):
            return {}
        opened = open_store(self.folder)
        found = {info.number: [part.name for part in info.parts] for info in opened.list("train")}
        opened.close()
        return found


@pytest.fixture
def job(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> Job:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    return Job(str(tmp_path / "store"), "h1", "h2", "h3")


def test_a_checkpoint_asked_for_by_any_of_them(job: Job) -> None:
    job.all_in()
    for number, name in enumerate(job.names, 1):
        answer = job.ask(name, "now")
        assert answer.ok and answer.attempt == number and [phase for phase, _ in answer.seconds][-1] == "commit"
        assert job.saved()[number] == ["h1", "h2", "h3"]
        # The same question again is answered, and nothing more is done.
        assert job.ask(name, "now").attempt == number
    job.until(lambda: all(len(job.of(name, wire.Exists)) == 3 for name in job.names), "all know")
    phases = [work.phase for work in job.of("h2", Work) if work.attempt == 1]
    assert phases == [Phase.SURVEY, Phase.FREEZE, Phase.SETTLE, Phase.CAPTURE, Phase.RESUME, Phase.STORE]
    assert len(job.saved()) == 3


def test_one_that_cannot_undoes_it_for_all(job: Job) -> None:
    job.all_in()

    def answer(name: str, work: Work) -> words.Finished | words.Broke | None:
        if name == "h3" and work.phase is Phase.FREEZE:
            return words.Broke(work.attempt, work.phase, "it is made of glass")
        return job.obedient(name, work)

    job.answer = answer
    told = job.ask("h1", "now")
    assert not told.ok and told.text == "h3: it is made of glass (freeze)"
    assert all(job.of(name, Work)[-1].phase is Phase.UNDO for name in job.names) and not job.saved()


def test_what_passes_is_said_to_pass(job: Job) -> None:
    job.all_in()
    refused: list[str] = []

    def answer(name: str, work: Work) -> words.Finished | words.Broke | None:
        if name == "h2" and work.phase is Phase.FREEZE and not refused:
            refused.append(name)
            return words.Broke(work.attempt, work.phase, "not now", True)
        return job.obedient(name, work)

    job.answer = answer
    told = job.ask("h1", "now")
    assert (told.ok, told.passing, told.text) == (False, True, "h2: not now (freeze)")
    assert job.ask("h1", "now").passing, "the same question has the same answer"
    assert job.ask("h1", "again").ok


def test_the_coordinator_dies(job: Job) -> None:
    """Another answers; and the part whose member process was started again is in the job as before."""
    job.all_in()
    job.wires["h1"].send(wire.AskWho())
    job.until(lambda: job.of("h1", wire.Who), "who")
    who = job.of("h1", wire.Who)[-1]
    assert who.coordinator in job.names and sorted(who.members) == list(job.names)
    job.hub.cut(who.coordinator)
    job.told[who.coordinator].clear()
    job.hub.links = [link for link in job.hub.links if link.host != who.coordinator]
    job.begin(who.coordinator)
    job.until(lambda: job.of(who.coordinator, wire.In), "it is back")
    other = next(name for name in job.names if name != who.coordinator)
    answer = job.ask(other, "now")
    assert answer.ok, answer
    assert job.saved() == {answer.attempt: ["h1", "h2", "h3"]}


def test_a_second_part_of_a_name_is_turned_away(job: Job) -> None:
    job.all_in()
    job.told["h2"].clear()
    job.begin("h2", owner="somebody else")
    job.until(lambda: job.of("h2", wire.Cannot), "turned away")
    assert job.of("h2", wire.Cannot)[0].reason == "a part named h2 is in the job already"


def test_the_end_is_told_to_all_and_the_first_goes_last(job: Job) -> None:
    job.all_in()
    job.wires["h1"].send(wire.RootEnded(7 << 8))
    job.until(lambda: all(job.of(name, wire.End) for name in job.names), "all are told")
    assert job.of("h3", wire.End)[0].status == 7 << 8
    assert job.hub.entries[OVER].value == b"1792"
    job.wires["h1"].send(words.Emptied())
    job.wires["h2"].send(words.Emptied())
    end = time.monotonic() + 0.5
    while time.monotonic() < end:
        job.loop.turn(0.02)
    assert not job.of("h1", wire.Gone)
    job.wires["h3"].send(words.Emptied())
    job.loop.later(0.0, lambda: None)
    job.until(lambda: all(_gone(job, name) for name in job.names), "all have gone")
    assert not [key for key in job.hub.entries if key.startswith(PREFIX)]


def _gone(job: Job, name: str) -> bool:
    return bool(job.of(name, wire.Gone))


def test_whoever_has_lost_its_supervisor_is_lost(job: Job) -> None:
    job.all_in()
    job.wires["h3"].close()
    job.until(lambda: f"{PREFIX}h3" not in job.hub.entries, "its key is gone")
    told = job.ask("h1", "now")
    assert not told.ok and "h3 cannot be reached" in told.text and not job.saved()


def saving(limit: float = 5.0) -> tuple[Saving, list[Finished]]:
    said: list[Finished] = []
    part = Part(job="train", part="h1", first=True, address="127.0.0.1", hosts={}, limits=Limits(host=limit))
    return Saving(part, secrets.fresh(), 3, False, said.append, Face()), said


def test_a_save_waits_for_each_order() -> None:
    one, said = saving()
    thread = threading.Thread(target=lambda: (one.surveyed(), one.settled()))
    thread.start()
    one.spoken_to()
    one.order(Work(3, Kind.CHECKPOINT, Phase.FREEZE))
    one.order(Work(3, Kind.CHECKPOINT, Phase.CAPTURE))
    thread.join(10)
    assert not thread.is_alive() and [word.phase for word in said] == [Phase.SURVEY, Phase.SETTLE]


def test_a_save_that_nobody_speaks_to_gives_up() -> None:
    one, _ = saving(0.1)
    with pytest.raises(GivenUp, match="nobody spoke to it"):
        one.surveyed()
    with pytest.raises(GivenUp):
        one.check()


def test_a_save_is_given_up_when_it_is_told_to() -> None:
    one, said = saving()
    one.order(Work(3, Kind.CHECKPOINT, Phase.UNDO))
    with pytest.raises(GivenUp):
        one.captured()
    assert one.undo and not said


def test_a_restart_hears_where_to_call() -> None:
    from torpor.coordinate.conversations import Meeting, places

    ours, theirs = socket.socketpair()
    here, there = Wire(ours, wire.ToSupervisor), Wire(theirs, wire.ToMember)
    work = Work(5, Kind.RESTART, Phase.RECREATE, msgspec.msgpack.encode(["h1"]), "train@4")
    heard: list[object] = []
    one = Restarting(work, "10.0.0.1", secrets.fresh(), here, 5.0, heard.append)
    assert one.parts == ["h1"] and one.what == "train@4" and len(one.code(b"x")) == 32
    meeting = Meeting()
    meeting.add("h2", places("fe80::2 77 78", [(b"a" * 16, False), (b"b" * 16, True)], []))
    meeting.add("h1", places("10.0.0.1 1 0", [], [b"a" * 16, b"b" * 16], {80: 8080}))
    for word in (wire.In(), Work(5, Kind.RESTART, Phase.CONNECT, meeting.result()["h1"])):
        _send(there, word)
    _send(there, Work(5, Kind.RESTART, Phase.UNDO))
    found, shifts = one.recreated((1, 0), [], [b"a" * 16, b"b" * 16], {80: 8080})
    assert shifts == {"h1": {80: 8080}}
    assert found[b"a" * 16].address == ("fe80::2", 77) and found[b"b" * 16].address is None
    assert heard == [wire.In()]
    with pytest.raises(GivenUp):
        one.connected()


def _send(to: Wire, word: words.Word) -> None:
    to.send(word)
