"""A save that traces stops tasks by the hundred, and every stop is a SIGCHLD: nobody is waked by them meanwhile."""

from __future__ import annotations

import select
import signal
from collections.abc import Iterator

import pytest

from torpor.supervise.saving import Guard
from torpor.supervise.signals import Signals


@pytest.fixture
def signals() -> Iterator[Signals]:
    signals = Signals()
    try:
        yield signals
    finally:
        signals.drain()
        signals.close()


def _readable(signals: Signals) -> bool:
    return bool(select.select([signals.fd], [], [], 0)[0])


def _numbers(signals: Signals) -> list[int]:
    return [got.number for got in signals.drain()]


def test_children_wait_while_a_save_holds_the_guard(signals: Signals) -> None:
    guard = Guard()
    guard.hush = signals.hush
    with guard:
        signal.raise_signal(signal.SIGCHLD)
        assert not _readable(signals)
        signal.raise_signal(signal.SIGUSR1)
        assert _numbers(signals) == [signal.SIGUSR1]
        assert not _readable(signals)
    assert _readable(signals)
    assert _numbers(signals) == [signal.SIGCHLD]


def test_children_are_heard_again_before_the_guard_is_free() -> None:
    """Whoever enters it next may hush them in turn."""
    guard = Guard()
    said: list[tuple[bool, bool]] = []

    def hush(on: bool) -> None:
        free = guard.try_enter()
        if free:
            guard.leave()
        said.append((on, free))

    guard.hush = hush
    with guard:
        assert said == [(True, False)]
    assert said == [(True, False), (False, False)]
