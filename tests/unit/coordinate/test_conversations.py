"""Which ends of connections belong together."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from torpor.coordinate.conversations import (
    Meeting,
    Met,
    Settling,
    ends,
    met,
    name,
    places,
    shifted,
    told,
)
from torpor.posix.far import TCP, UDP, End, Told
from torpor.posix.socket_address import Address


def at(host: int, port: int, wide: bool = False) -> Address:
    ip = bytes((10, 0, host >> 8, host & 255))
    return Address(bytes(12) + ip if wide else ip, port)


def settle(said: dict[str, list[End]]) -> dict[str, list[Told]]:
    """Addresses of a host: those that its ends have."""
    pairing = Settling()
    for host, found in said.items():
        pairing.add(host, ends(found, {end.local.ip for end in found}))
    return {host: sorted(told(said[host], part)) for host, part in pairing.result().items()}


def test_two_ends_find_each_other_and_hear_what_is_to_arrive() -> None:
    a, b = at(1, 5000), at(2, 40000)
    found = settle(
        {
            "one": [End(7, TCP, a, b, sent=100, finished=True)],
            "two": [End(9, TCP, b, a, sent=50, waiting=True)],
            "three": [End(1, TCP, at(3, 1), Address(bytes((9, 9, 9, 9)), 443))],
            "four": [],
        }
    )
    assert found == {
        "one": [Told(7, "two", 50, False, True, False)],
        "two": [Told(9, "one", 100, True, False, False)],
        "three": [],
    }


def test_the_protocol_is_part_of_the_name() -> None:
    a, b = at(1, 5), at(2, 6)
    assert settle({"one": [End(1, TCP, a, b)], "two": [End(2, UDP, b, a)]}) == {"one": [], "two": []}
    assert name(TCP, a, b)[0] == name(TCP, b, a)[0] != name(UDP, a, b)[0]
    assert {name(TCP, a, b)[1], name(TCP, b, a)[1]} == {0, 1}


def test_connections_within_a_host_are_not_told() -> None:
    a, b = Address(bytes((127, 0, 0, 1)), 80), Address(bytes((127, 0, 0, 1)), 4000)
    both = [End(1, TCP, a, b), End(2, TCP, b, a), End(3, TCP, a, a)]
    assert ends(both, [a.ip]) == b""
    # The same private addresses on another host are nobody's business.
    assert settle({"one": both, "two": both}) == {}


@pytest.mark.parametrize("order", [(0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0)])
def test_what_cannot_be_told_apart_is_refused(order: tuple[int, ...]) -> None:
    a, b = at(1, 5), at(2, 6)
    said = [("one", End(1, TCP, a, b)), ("two", End(2, TCP, b, a)), ("three", End(3, TCP, a, b))]
    with pytest.raises(ValueError, match=r"may lead to (one or to three|three or to one), which have the same address"):
        settle({said[number][0]: [said[number][1]] for number in order})


@pytest.mark.parametrize("exchange", [Settling, Meeting])
def test_what_is_not_understood_is_refused(exchange: type[Settling] | type[Meeting]) -> None:
    with pytest.raises(ValueError, match="not understood"):
        exchange().add("one", b"\x93\x01")
    with pytest.raises(ValueError, match="not understood"):
        told([], msgspec.msgpack.encode([("one", b"cut")]))


connections = st.lists(
    st.tuples(st.integers(0, 5), st.integers(0, 5), st.booleans(), st.integers(0, 1 << 40), st.integers(0, 1 << 40)),
    max_size=40,
)


@given(some=connections, seed=st.randoms(use_true_random=False))
def test_every_end_hears_of_its_own_peer_and_of_nothing_else(some: list, seed: object) -> None:
    said: dict[str, list[End]] = {f"h{number}": [] for number in range(6)}
    wanted: dict[str, list[Told]] = {f"h{number}": [] for number in range(6)}
    for key, (one, two, wide, sent, sent_back) in enumerate(some, 1):
        a, b = at(one, 1000 + key, wide), at(two, 30000 + key, wide)
        said[f"h{one}"].append(End(key, TCP, a, b, sent))
        said[f"h{two}"].append(End(key + 1000, TCP, b, a, sent_back))
        if one != two:
            wanted[f"h{one}"].append(Told(key, f"h{two}", sent_back, False, False, False))
            wanted[f"h{two}"].append(Told(key + 1000, f"h{one}", sent, False, False, False))
    for found in said.values():
        seed.shuffle(found)  # type: ignore[attr-defined]
    heard = settle(said)
    assert {host: heard.get(host, []) for host in said} == {host: sorted(some) for host, some in wanted.items()}


NAMES = [bytes((number,)) * 16 for number in range(4)]


def test_all_hosts_hear_of_ports_that_are_others_now() -> None:
    meeting = Meeting()
    meeting.add("one", places("10.0.0.1:77", [], [], {80: 8080, 81: 8081}))
    meeting.add("two", b"")
    meeting.add("three", places("10.0.0.3:99", [(NAMES[0], True)], []))
    meeting.add("four", places("10.0.0.4:11", [], [NAMES[0]]))
    found = meeting.result()
    others = {"one": {80: 8080, 81: 8081}}
    assert [shifted(found[host]) for host in ("one", "two", "three", "four")] == [others] * 4
    assert [each.host for each in met(found["four"])] == ["three"]


def meet(said: dict[str, bytes]) -> dict[str, list[Met]]:
    meeting = Meeting()
    for host, part in said.items():
        meeting.add(host, part)
    return {host: list(met(part)) for host, part in meeting.result().items()}


def test_who_calls_hears_where_the_other_waits() -> None:
    found = meet(
        {
            "one": places("10.0.0.1:77", [(NAMES[0], True), (NAMES[1], False)], []),
            "two": places("10.0.0.2:88", [(NAMES[2], False)], [NAMES[0], NAMES[2]]),
            "three": places("10.0.0.3:99", [], [NAMES[1]]),
            "four": places("10.0.0.4:11", [], []),
        }
    )
    assert found == {
        "one": [
            Met(NAMES[0], "two", "10.0.0.2:88", True, False),
            Met(NAMES[1], "three", "10.0.0.3:99", False, False),
        ],
        "two": [
            Met(NAMES[0], "one", "10.0.0.1:77", True, True),
            Met(NAMES[2], "two", "10.0.0.2:88", False, True),
            Met(NAMES[2], "two", "10.0.0.2:88", False, False),
        ],
        "three": [Met(NAMES[1], "one", "10.0.0.1:77", False, True)],
    }


@pytest.mark.parametrize(
    ("waits", "calls", "says"),
    [
        ([NAMES[0]], [], "one waits for a connection that nobody calls for"),
        ([], [NAMES[0]], "two calls for a connection that nobody waits for"),
    ],
)
def test_a_connection_with_one_end_is_refused(waits: list[bytes], calls: list[bytes], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        meet({"one": places("x", [(one, False) for one in waits], []), "two": places("y", [], calls)})


def test_two_who_wait_for_the_same_are_refused() -> None:
    with pytest.raises(ValueError, match="waits for the same"):
        meet({"one": places("x", [(NAMES[0], False)], []), "two": places("y", [(NAMES[0], False)], [])})
