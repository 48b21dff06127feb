"""Where addresses are now: pure."""

from __future__ import annotations

import socket
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from torpor.model.address_map import AddressMap, Place
from torpor.model.errors import UsageError
from torpor.watch import lines
from torpor.watch.moved import moved

PLACES = st.builds(Place, st.sampled_from([f"10.0.0.{n}" for n in range(1, 6)]), st.integers(1, 4))


def test_a_port_counts_before_a_host() -> None:
    moves = AddressMap.parse(["10.0.0.1=10.1.0.1", "10.0.0.1:80=10.1.0.9:8080", "[fd00::1]:80=[fd00:0::2]:81"])
    assert moves.find("10.0.0.1", 80) == ("10.1.0.9", 8080)
    assert moves.find("10.0.0.1", 81) == ("10.1.0.1", 81)
    assert moves.find("10.0.0.1", 0) == ("10.1.0.1", 0)
    assert moves.find("fd00::1", 80) == ("fd00::2", 81)
    assert moves.find("fd00::1", 81) is None and moves.find("10.0.0.2", 80) is None


@settings(deadline=None)
@given(st.dictionaries(PLACES, PLACES, max_size=8))
def test_words_say_it_all(moves: dict[Place, Place]) -> None:
    assert AddressMap.parse(AddressMap(moves).words()).moves == moves


def test_a_job_that_moves_twice() -> None:
    """What it remembers of the first place is looked for at the last; hosts that changed places are not mixed up."""
    first = AddressMap.parse(["10.0.0.1=10.1.0.1", "10.0.0.2=10.1.0.2"])
    both = first.then(AddressMap.parse(["10.1.0.1=10.1.0.2", "10.1.0.2=10.1.0.1"]))
    assert both.find("10.0.0.1", 5) == ("10.1.0.2", 5)
    assert both.find("10.0.0.2", 5) == ("10.1.0.1", 5)
    assert both.find("10.1.0.1", 5) == ("10.1.0.2", 5)
    assert first.then(AddressMap.parse([])).moves == first.moves


@pytest.mark.parametrize(
    "word",
    [
        "", "=", "10.0.0.1", "10.0.0.1=", "host=10.0.0.1", "10.0.0.1=host", "10.0.0.1:80=10.0.0.1", "10.0.0.1=::1",
        "10.0.0.1:0=10.0.0.1:1", "10.0.0.1:70000=10.0.0.1:1", "[::1=[::2]", "[::1]80=[::2]:80", "10.0.0.1:=10.0.0.2:",
    ],
)  # fmt: skip
def test_what_makes_no_sense(word: str) -> None:
    with pytest.raises(UsageError):
        AddressMap.parse([word])


def test_two_places_for_one() -> None:
    with pytest.raises(UsageError):
        AddressMap.parse(["10.0.0.1=10.0.0.2", "10.0.0.1=10.0.0.3"])


def test_an_address_of_the_same_family() -> None:
    v4 = struct.pack("<H", socket.AF_INET) + bytes([0, 80, 10, 0, 0, 1]) + b"12345678"
    assert lines.host_and_port(moved(v4, Place("10.9.9.9", 81))) == ("10.9.9.9", 81)
    assert moved(v4, Place("10.9.9.9", 81))[8:] == b"12345678"
    clothed = (
        struct.pack("<H", socket.AF_INET6) + bytes([0, 80, 1, 2, 3, 4]) + lines.V4_IN_V6 + b"\n\0\0\1" + b"\7\0\0\0"
    )
    new = moved(clothed, Place("10.9.9.9", 81))
    assert lines.host_and_port(new) == ("10.9.9.9", 81)
    assert (len(new), new[4:8], new[24:]) == (28, b"\1\2\3\4", b"\7\0\0\0")
    assert lines.host_and_port(moved(clothed, Place("fd00::1", 81))) == ("fd00::1", 81)
