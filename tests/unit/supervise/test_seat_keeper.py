"""The seat keeper: whatever is wrong with who gives seats, the supervisor is told."""

from __future__ import annotations

import socket
import threading
from typing import Any

import pytest

from torpor.model.terms import SeatTerms
from torpor.seats import kinds
from torpor.seats.provider import NotEntitled, Status
from torpor.supervise import audit, protocol, seat_keeper
from torpor.supervise.seat_keeper import SeatKeeper, first_frame


class Broken:
    """A provider of somebody's, with a fault. fails: in `acquire` already."""

    every = 0.01

    def __init__(self, fails: Exception | None) -> None:
        self.fails = fails

    def acquire(self) -> None:
        if self.fails is not None:
            raise self.fails

    def renew(self) -> None:
        self.fails = KeyError("lease")
        raise self.fails

    def release(self) -> None:
        raise ZeroDivisionError

    def status(self) -> Status:
        return Status(0, ())

    def fileno(self) -> int:
        return -1


@pytest.mark.parametrize(
    ("fails", "told"),
    [
        (None, [{"event": "held"}, {"event": "lost", "seat": "s", "reason": "KeyError: 'lease'"}]),
        (ValueError("x"), [{"event": "refused", "seat": "s", "reason": "ValueError: x", "final": False}]),
        (NotEntitled("o\x1b[1mver\n"), [{"event": "refused", "seat": "s", "reason": "o [1mver ", "final": True}]),
    ],
)
def test_a_provider_that_is_broken(fails: Exception | None, told: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kinds, "make", lambda *_: Broken(fails))
    monkeypatch.setattr(audit, "record", lambda *_, **__: None)
    monkeypatch.setattr(seat_keeper, "RETRY", 0.01)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        keeper = threading.Thread(target=SeatKeeper(theirs).run)
        keeper.start()
        request = {"identity": "i", "job": "j", "host": "h", "user": "u"}
        ours.sendall(first_frame([SeatTerms(name="s", provider="p", options={})], request, 0.0))
        decoder, heard = protocol.Decoder(), []
        ours.settimeout(20)
        while {"event": "released"} not in heard:
            heard += decoder.feed(ours.recv(4096))
            if heard == told:
                ours.sendall(protocol.encode({"do": "release"}))
        keeper.join()
    assert heard == [*told, {"event": "released"}]
