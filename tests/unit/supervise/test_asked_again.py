"""What a supervisor does about answers in a job over hosts; the member process says what the test wants."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

from torpor.link import secret as secrets
from torpor.supervise.asked import AGAIN
from torpor.supervise.keeper import Order
from torpor.supervise.loop import Loop
from torpor.supervise.membership import Membership
from torpor.supervise.part import Part
from torpor.supervise.saving import Worker

SPEAKS = """
import os, socket, sys
sys.path.insert(0, {source!r})
from torpor.coordinate.words import Answer
from torpor.supervise import wire
talk = wire.Wire(socket.socket(fileno=3), wire.ToMember)
asked = 0
while True:
    word = talk.wait(30)
    if isinstance(word, wire.Begin):
        talk.send(wire.In())
    if isinstance(word, wire.Ask):
        asked += 1
        if {dies!r} and not os.path.exists({dies!r}):
            open({dies!r}, "x").close()
            raise SystemExit(0)
        talk.send(Answer(word.ask, False, f"refused {{asked}} times", asked, (), asked != {final}))
"""


class Nobody:
    """A supervisor without a job."""

    def __init__(self) -> None:
        self.own: list[tuple[int, ...]] = []

    def save_part(self, order: Any, saving: Any, progress: Any) -> dict[str, Any]:
        raise AssertionError

    def processes(self) -> list[int]:
        return []

    def set_own(self, pids: tuple[int, ...]) -> None:
        self.own.append(pids)

    def saved_as(self, checkpoint: str, stopped: bool) -> None:
        raise AssertionError

    def after(self) -> None:
        pass


def asked(final: int, dies: str = "") -> tuple[str, float, int]:
    """Ask once. dies: a file, made by the member process that dies when it is asked. Returns what it came to, after how
    many seconds, and how many member processes there were."""
    source = str(Path(__file__).parents[3] / "src")
    part = Part(job="train", part="h1", first=True, address="127.0.0.1", hosts={"h1": "127.0.0.1"})
    code = SPEAKS.format(source=source, final=final, dies=dies)
    one = Membership(part, secrets.fresh(), "", command=(sys.executable, "-P", "-c", code))
    one.join(20.0)
    loop, worker, nobody = Loop(), Worker(), Nobody()
    loop.watch(worker.fd, worker.deliver)
    one.attach(loop, worker, nobody)
    told: list[BaseException | None] = []
    began = time.monotonic()
    one.ask(Order(), lambda *_: None, lambda result: result, lambda _, error: told.append(error))
    assert one.busy
    while not told:
        assert time.monotonic() < began + 30
        loop.turn(0.05)
    assert not one.busy
    one.close()
    for pids in nobody.own:
        os.waitpid(pids[0], 0)
    return str(told[0]), time.monotonic() - began, len(nobody.own)


def test_asked_again_as_long_as_it_may_pass() -> None:
    text, seconds, _ = asked(final=3)
    assert text == "train was not saved: refused 3 times" and seconds >= AGAIN[0] + AGAIN[1]


def test_not_for_ever() -> None:
    text, _, _ = asked(final=-1)
    assert text == f"train was not saved: refused {len(AGAIN) + 1} times"


def test_a_member_process_that_died_is_replaced_and_asked(tmp_path: Path) -> None:
    text, _, lives = asked(1, str(tmp_path / "dead"))
    assert text == "train was not saved: refused 1 times" and lives == 2
