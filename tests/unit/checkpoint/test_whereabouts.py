"""Where the parts of a job are, as one of them sees it: pure."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from torpor.checkpoint.ports import Held
from torpor.checkpoint.whereabouts import PartAt, Whereabouts
from torpor.image.whole import Face
from torpor.model.address_map import AddressMap, Place

A, B, C, D = (f"10.0.0.{n}" for n in range(1, 5))
NOTHING = AddressMap({})


def job(*parts: PartAt) -> list[Whereabouts]:
    return [Whereabouts(part.name, parts) for part in parts]


def test_at_home_nothing_is_elsewhere() -> None:
    for one in job(PartAt("h1", A, A, Face(names=("h1",)), (80,)), PartAt("h2", B, B, Face(names=("h2",)))):
        assert not one.elsewhere and not one.believed(NOTHING, {}) and not one.crowded()


def test_names_lead_to_old_addresses_and_those_to_new_ones() -> None:
    for one in job(PartAt("h1", A, C, Face("h1", ("h1", "both"))), PartAt("h2", B, D, Face("h2", ("h2", "both")))):
        assert one.elsewhere
        names = one.names()
        assert names == {"h1": A, "h2": B, "both": one.me.was}
        found = one.believed(NOTHING, {})
        assert found.find(A, 7) == (C, 7) and found.find(B, 7) == (D, 7)


def test_all_addresses_of_its_hosts_are_the_jobs_own() -> None:
    parts = PartAt("h1", A, C, Face(address=B), also=(A, "10.9.0.1")), PartAt("h2", D, D, Face(), also=("fd00::2",))
    for one in job(*parts):
        assert one.addresses == {A, B, C, D, "10.9.0.1", "fd00::2"}


def test_equal_ports_on_one_host() -> None:
    first, second = job(PartAt("h1", A, C, Face(), (80, 90)), PartAt("h2", B, C, Face(), (80, 91)))
    assert first.crowded() == [] and second.crowded() == [80] and second.taken == {80, 90, 91}
    shifts = {"h2": {80: 5000}}
    for one in (first, second):
        found = one.believed(NOTHING, shifts)
        assert found.find(A, 80) == (C, 80) and found.find(B, 80) == (C, 5000) and found.find(B, 91) == (C, 91)
    assert first.believed(NOTHING, shifts).find("127.0.0.1", 80) is None
    for host in ("127.0.0.1", "0.0.0.0", "::1", "::"):
        assert second.believed(NOTHING, shifts).find(host, 80) == (host, 5000)
    # Apart again, each somewhere else: what it has now it has kept.
    faces = [Face(address=address) for address in (A, B)]
    for one, before in zip(
        job(PartAt("h1", C, D, faces[0], (80, 90)), PartAt("h2", C, C, faces[1], (5000, 91))), (first, second)
    ):
        found = one.believed(before.believed(NOTHING, shifts), {})
        assert found.find(A, 80) == (D, 80) and found.find(B, 80) == (C, 5000) and found.find(B, 1) == (C, 1)
        assert (found.find(C, 5000) or (C, 5000)) == (C, 5000) and found.find(C, 80) == (D, 80)


def test_hosts_that_change_places() -> None:
    one = job(PartAt("h1", A, B, Face(), (80,)), PartAt("h2", B, A, Face(), (80, 81)))[0]
    found = one.believed(NOTHING, {})
    assert found.find(A, 80) == (B, 80) and found.find(B, 81) == (A, 81) and found.find(B, 4000) == (A, 4000)
    # Who is answered has told its address just now.
    assert found.find(B, 81, answer=True) == (A, 81) and found.find(B, 4000, answer=True) is None


HOSTS = [A, B, C, D]


@given(st.lists(st.permutations(HOSTS), min_size=1, max_size=5))
def test_the_first_addresses_lead_to_where_all_are(lives: list[list[str]]) -> None:
    """However often all have moved, as long as each has a host of its own."""
    names = [f"h{n}" for n in range(len(HOSTS))]
    was, faces = HOSTS, [Face(names=(name,)) for name in names]
    before = [NOTHING] * len(HOSTS)
    for now in lives:
        all_of_them = job(*(PartAt(*each, (80,)) for each in zip(names, was, now, faces)))
        before = [one.believed(map_, {}) for one, map_ in zip(all_of_them, before)]
        for found, one in zip(before, all_of_them):
            for name, first, there in zip(names, HOSTS, now):
                assert one.names()[name] == first
                assert (found.find(first, 80) or Place(first, 80)) == (there, 80)
        was, faces = now, [Face(names=(name,), address=first) for name, first in zip(names, HOSTS)]


def test_free_ports_are_held() -> None:
    held = Held([80, 81], {80, 81})
    try:
        assert set(held.now) == {80, 81} and len({80, 81, *held.now.values()}) == 4
    finally:
        held.close()
