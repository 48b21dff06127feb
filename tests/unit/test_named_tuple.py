"""Our `NamedTuple` against the one of `typing`."""

from __future__ import annotations

import copy
import os
import pickle
import re
import typing
from typing import Any

import msgspec
import pytest

from torpor import named_tuple

SRC = os.path.dirname(named_tuple.__file__)


class Ours(named_tuple.NamedTuple):
    """A doc."""

    a: int
    b: str = "b"
    c: tuple[int, ...] = ()

    @property
    def both(self) -> str:
        return f"{self.a}{self.b}"

    @classmethod
    def of(cls, a: int) -> Ours:
        return cls(a)


class Theirs(typing.NamedTuple):
    a: int
    b: str = "b"
    c: tuple[int, ...] = ()


class Below(Ours):
    pass


class Nothing(named_tuple.NamedTuple):
    pass


class Record(msgspec.Struct):
    row: Ours


@pytest.mark.parametrize(
    ("given", "named"),
    [((1,), {}), ((1, "x", (2,)), {}), ((), {"a": 3}), ((1,), {"c": (4,)}), ((), {"b": "q", "a": 0})],
)
def test_it_is_made_and_read_as_the_other(given: tuple[Any, ...], named: dict[str, Any]) -> None:
    ours, theirs = Ours(*given, **named), Theirs(*given, **named)
    assert ours == theirs and tuple(ours) == tuple(theirs) and hash(ours) == hash(theirs)
    assert (ours.a, ours.b, ours.c) == (theirs.a, theirs.b, theirs.c)
    assert ours._asdict() == theirs._asdict()
    assert repr(ours) == repr(theirs).replace("Theirs", "Ours")
    assert ours._replace(b="z") == theirs._replace(b="z") and type(ours._replace(b="z")) is Ours
    assert Ours._make(theirs) == ours


def test_what_is_known_of_the_class() -> None:
    assert Ours._fields == Theirs._fields and Ours._field_defaults == Theirs._field_defaults
    assert Ours.__match_args__ == Theirs.__match_args__ and Ours.__doc__ == "A doc."
    assert Ours.of(5).both == "5b" and not hasattr(Ours(1), "__dict__")
    match Ours(1, "m"):
        case Ours(a, "m"):
            assert a == 1
        case _:
            raise AssertionError


@pytest.mark.parametrize(
    ("given", "named"), [((), {}), ((1, 2, 3, 4), {}), ((1,), {"d": 1}), ((1,), {"a": 1}), ((), {"b": "x"})]
)
def test_what_the_other_does_not_take_is_not_taken(given: tuple[Any, ...], named: dict[str, Any]) -> None:
    for each in (Theirs, Ours):
        with pytest.raises(TypeError):
            each(*given, **named)
    with pytest.raises(ValueError, match="field"):
        Ours(1)._replace(nothing=1)  # type: ignore[call-arg]
    with pytest.raises(AttributeError):
        Ours(1).a = 2  # type: ignore[misc]


def test_a_class_below_and_one_without_fields() -> None:
    assert isinstance(Below(1), Below) and Below(1)._replace(a=2) == (2, "b", ()) and isinstance(Ours(1), Ours)
    assert Nothing() == () and repr(Nothing()) == "Nothing()"


def test_one_that_makes_no_sense() -> None:
    with pytest.raises(TypeError):
        exec("class Wrong(NamedTuple):\n a: int = 1\n b: int", {"NamedTuple": named_tuple.NamedTuple})
    with pytest.raises(TypeError):
        exec("class Wrong(NamedTuple, dict):\n a: int", {"NamedTuple": named_tuple.NamedTuple})


def test_copies_and_records() -> None:
    row = Ours(1, "x", (2, 3))
    for each in (copy.copy(row), copy.deepcopy(row), pickle.loads(pickle.dumps(row))):
        assert each == row and type(each) is Ours
    for codec in (msgspec.json, msgspec.msgpack):
        again = codec.decode(codec.encode(Record(row)), type=Record).row
        assert again == row and type(again) is Ours
        with pytest.raises(msgspec.ValidationError):
            codec.decode(codec.encode({"row": ["no number"]}), type=Record)


def test_the_costly_one_is_not_used() -> None:
    costly = re.compile(r"^from typing import .*\bNamedTuple\b|\btyping\.NamedTuple\(", re.MULTILINE)
    found = []
    for folder, _, names in os.walk(SRC):
        for name in names:
            if name.endswith(".py") and name != "named_tuple.py":
                with open(os.path.join(folder, name), encoding="utf-8") as file:
                    found += [os.path.join(folder, name)] if costly.search(file.read()) else []
    assert found == []
