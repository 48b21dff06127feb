"""What a policy comes to: pure decisions."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as some

from torpor.model.ledger import Contact
from torpor.model.terms import Layer, Rule, SeatTerms, Sign
from torpor.policy import decide, outside
from torpor.policy.decide import STRICTNESS, Decision, Service
from torpor.policy.known import known

decisions = some.builds(
    lambda action, seats, to, wait, otherwise: (
        Decision("reconnect", (), to, wait, otherwise)
        if action == "reconnect"
        else Decision(action, tuple(sorted(seats)) if action in ("seat", "refuse") else ())
    ),
    some.sampled_from(STRICTNESS),
    some.frozensets(some.sampled_from("abc")),
    some.sampled_from(("", "10.0.0.1", "10.0.0.2:80")),
    some.sampled_from((0.0, 1.0, 60.0)),
    some.sampled_from(("reset", "refuse")),
)
rules = some.builds(
    lambda action, seat, addresses, ports, programs: Rule(
        action=action, seat=seat if action == "seat" else "", addresses=addresses, ports=ports, programs=programs
    ),
    some.sampled_from(STRICTNESS),
    some.sampled_from("abc"),
    some.sampled_from(((), ("10.0.0.0/8",), ("10.0.0.1",), ("fd00::/8",))),
    some.sampled_from(((), ((80, 80),), ((1, 100), (27000, 27009)))),
    some.sampled_from(((), ("/opt/*",))),
)
layers = some.builds(lambda found: Layer("p", tuple(found)), some.lists(rules, max_size=4))
services = some.builds(
    Service,
    some.sampled_from(("", "10.0.0.1", "10.0.0.2", "192.168.0.1", "fd00::1")),
    some.sampled_from((0, 80, 27000)),
    programs=some.sampled_from(((), ("/opt/a",), ("/bin/b",))),
    open=some.sampled_from(((), (1,))),
    used=some.booleans(),
    licence=some.sampled_from(("", "by its port")),
)


@given(decisions, decisions, decisions)
def test_the_stricter_is_one_and_the_same_in_any_order(a: Decision, b: Decision, c: Decision) -> None:
    assert decide.stricter(a, b) == decide.stricter(b, a)
    assert decide.stricter(a, decide.stricter(b, c)) == decide.stricter(decide.stricter(a, b), c)
    assert decide.stricter(a, a) == a


@given(decisions, decisions)
def test_the_stricter_demands_what_both_demand(a: Decision, b: Decision) -> None:
    both = decide.stricter(a, b)
    for one in (a, b):
        assert STRICTNESS.index(both.action) >= STRICTNESS.index(one.action)
        assert set(both.seats) >= set(one.seats)
    assert set(both.seats) == {*a.seats, *b.seats}


@given(services, some.lists(layers, max_size=3), layers)
def test_another_layer_never_makes_it_less_strict(service: Service, known_layers: list[Layer], more: Layer) -> None:
    before, after = decide.judge(service, known_layers), decide.judge(service, [*known_layers, more])
    if before is not None:
        assert after is not None and STRICTNESS.index(after.action) >= STRICTNESS.index(before.action)
        assert set(after.seats) >= set(before.seats)


@given(some.lists(services, max_size=4), some.lists(layers, max_size=3))
def test_whatever_needs_a_seat_gets_one_or_is_refused(found: list[Service], known_layers: list[Layer]) -> None:
    seat = SeatTerms(name="a", provider="pool", options={"pool": "p"})
    outcome = decide.decide(found, [*known_layers, Layer("s", (), (seat,))])
    wanted = {name for _, decision in outcome.decisions if decision for name in decision.seats}
    assert {each.name for each in outcome.seats} == wanted & {"a"}
    assert {f"seat {name}" for name in wanted - {"a"}} <= {what for what, _ in outcome.refusals}
    for service, decision in outcome.decisions:
        stops = str(service) in {what for what, _ in outcome.refusals}
        if decision is None and service.licence:
            assert stops
        if decision is not None and decision.action == "refuse":
            assert stops


def test_what_is_not_known_stops_a_restart() -> None:
    def refused(service: Service, *found: Layer) -> bool:
        return bool(decide.decide([service], found).refusals)

    assert not refused(Service("10.0.0.1", 80, open=(7,)))  # its connection drops: it will ask again
    assert refused(Service("10.0.0.1", 80, used=True))
    assert not refused(Service("10.0.0.1", 80, used=True, open=(7,)))
    assert refused(Service("10.0.0.1", 27000, open=(7,), licence="by its port"))
    allow = Layer("p", (Rule(action="reset", addresses=("10.0.0.0/8",)),))
    assert not refused(Service("10.0.0.1", 27000, used=True, licence="by its port"), allow)
    assert refused(Service("11.0.0.1", 27000, used=True, licence="by its port"), allow)


@pytest.mark.parametrize(
    ("rule", "about"),
    [
        (Rule(action="reset"), True),
        (Rule(action="reset", addresses=("10.1.0.0/16",)), True),
        (Rule(action="reset", addresses=("10.2.0.0/16", "10.1.2.3")), True),
        (Rule(action="reset", addresses=("10.2.0.0/16",)), False),
        (Rule(action="reset", addresses=("fd00::/8",)), False),
        (Rule(action="reset", ports=((27000, 27009),)), True),
        (Rule(action="reset", ports=((80, 80),)), False),
        (Rule(action="reset", names=("lic*",)), True),
        (Rule(action="reset", names=("db*",)), False),
        (Rule(action="reset", programs=("/opt/*/sim",)), True),
        (Rule(action="reset", addresses=("10.1.2.3",), programs=("/bin/*",)), False),
    ],
)
def test_rules_match(rule: Rule, about: bool) -> None:
    assert decide.matches(rule, Service("10.1.2.3", 27000, ("licence",), ("/opt/v/sim",))) is about


def test_the_first_rule_of_a_layer_and_the_strictest_layer_count() -> None:
    first = Layer("a", (Rule(action="reconnect", ports=((80, 80),)), Rule(action="refuse")))
    second = Layer("b", (Rule(action="reset"),))
    assert decide.judge(Service("10.0.0.1", 80), [first]) == Decision("reconnect")
    assert decide.judge(Service("10.0.0.1", 81), [first]) == Decision("refuse")
    assert decide.judge(Service("10.0.0.1", 80), [first, second]) == Decision("reset")
    assert decide.judge(Service("10.0.0.1", 80), []) is None


def contact(host: str, port: int, protocol: str = "tcp", name: str = "") -> Contact:
    return Contact(protocol, host, port, 1.0, 2.0, 1, 5, "/opt/sim", name)


def found(*contacts: Contact, ends: tuple[outside.End, ...] = (), own: tuple[tuple[str, int], ...] = (),
          signs: tuple[Sign, ...] = (), inside: tuple[str, ...] = ()) -> list[Service]:  # fmt: skip
    return outside.found(contacts, ends, set(own), signs, inside, 0, known())


def test_what_is_outside() -> None:
    assert found(contact("10.1.2.3", 80, name="web")) == [Service("10.1.2.3", 80, ("web",), ("/opt/sim",), used=True)]
    (licence,) = found(contact("10.1.2.3", 27000))
    assert licence.licence
    looked_up = {"10.1.2.3": ("a.test", "web")}
    (both,) = outside.found([contact("10.1.2.3", 80, name="web")], [], set(), [], (), 0, known(), looked_up=looked_up)
    assert both.names == ("web", "a.test")
    (open_one,) = outside.found(
        [], [outside.End("tcp", "10.1.2.3", 9, 1)], set(), [], (), 0, known(), looked_up=looked_up
    )
    assert open_one.names == ("a.test", "web") and open_one.open == (1,)
    assert found(contact("10.1.2.3", 53, "udp")) == []
    assert found(contact("10.1.2.3", 0, "udp")) == []
    assert found(contact("127.0.0.1", 4000), own=(("127.0.0.1", 4000),)) == []
    assert found(contact("127.0.0.1", 4000), own=(("", 4000),)) == []
    assert found(contact("10.0.0.9", 4000), inside=("10.0.0.9",)) == []
    assert found(contact("10.0.0.9", 4000), inside=("10.0.0.9:4000",)) == []
    assert len(found(contact("10.0.0.9", 4001), inside=("10.0.0.9:4000",))) == 1
    # On a host of the job's own, but licences are never the job's.
    assert found(contact("10.0.0.9", 27000), inside=("10.0.0.9",))[0].licence
    assert found(contact("10.0.0.9", 27000), inside=("10.0.0.9",), own=(("", 27000),)) == []
    (once,) = found(contact("127.0.0.1", 40000))
    assert once.passing and not decide.decide([once], ()).refusals  # the job's own, most likely
    assert decide.decide([once], (Layer("p", (Rule(action="refuse"),)),)).refusals
    for host, port in (("127.0.0.1", 4000), ("10.0.0.1", 40000)):
        assert decide.decide(found(contact(host, port)), ()).refusals
    assert str(found(contact("", 0, "?"))[0]) == "an address that could not be read"


def test_a_service_that_is_asked_in_two_ways_is_one() -> None:
    end = outside.End("tcp", "10.1.2.3", 80, 77, "/opt/sim")
    (one,) = found(contact("10.1.2.3", 80, "udp"), contact("10.1.2.3", 80), ends=(end,))
    assert one.open == (77,) and one.used


def test_variables_name_licence_servers() -> None:
    sign = Sign("LM_LICENSE_FILE", "27000@lic1:/opt/x.lic", "/opt/sim")
    server, file = found(signs=(sign,))
    assert (server.names, server.port, file.names) == (("lic1",), 27000, ("/opt/x.lic",))
    assert server.licence and file.licence
    assert decide.judge(server, [Layer("p", (Rule(action="reset", names=("lic*",)),))]) is not None


def test_a_variable_whose_value_was_not_kept_is_named_itself() -> None:
    (hidden,) = found(signs=(Sign("LM_LICENSE_FILE", "", "/opt/sim"),))
    assert hidden.names == ("LM_LICENSE_FILE",) and decide.decide([hidden], ()).refusals


def test_seats_for_a_start() -> None:
    seat = SeatTerms(name="a", provider="pool", options={"pool": "p"})
    late = SeatTerms(name="b", provider="pool", options={"pool": "p"}, at_start=False)
    any_program = Layer("p", (Rule(action="seat", seat="a"), Rule(action="seat", seat="b")), (seat, late))
    mine = Layer("p", (Rule(action="seat", seat="a", programs=("/opt/*",)),), (seat,))
    assert decide.for_start("/bin/x", [any_program], []) == (seat,)
    assert decide.for_start("/bin/x", [], [any_program]) == ()
    assert decide.for_start("/opt/x", [], [mine]) == (seat,)
    assert decide.for_start("/bin/x", [mine], []) == ()


def test_equal_layers_count_once() -> None:
    one = Layer("a", (Rule(action="reset"),))
    assert decide.merged([one], [Layer("b", one.rules)], [Layer("c", (Rule(action="refuse"),))]) == (
        one, Layer("c", (Rule(action="refuse"),)),
    )  # fmt: skip
