"""What is left out of msgspec at a restart is there when it is asked for."""

from __future__ import annotations

import subprocess
import sys

import pytest


def _in_new_python(program: str) -> list[str]:
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_a_restart_does_without() -> None:
    program = "import sys; from torpor.cli import lean; lean.bring_msgspec(); print(*sys.modules)"
    found = _in_new_python(program)
    assert "msgspec" in found
    for name in ("platform", "typing_extensions", "textwrap", "msgspec.inspect", "msgspec._json_schema"):
        assert name not in found


@pytest.mark.parametrize(
    "use",
    [
        "assert type(msgspec.inspect.type_info(int)).__name__ == 'IntType'",
        "assert msgspec.json.schema(int) == {'type': 'integer'}",
        "assert msgspec.json.schema_components([int])[0] == ({'type': 'integer'},)",
        "import platform; assert platform.machine() and platform.system() == 'Linux'",
        "import msgspec.inspect as it; assert it.IntType and msgspec.inspect is it",
        "import uuid; u = uuid.uuid4(); assert msgspec.json.decode(msgspec.json.encode(u), type=uuid.UUID) == u",
    ],
)
def test_what_is_left_out_comes_when_it_is_used(use: str) -> None:
    _in_new_python(f"from torpor.cli import lean; lean.bring_msgspec(); import msgspec; {use}")


def test_a_msgspec_that_wants_more_is_imported_as_it_is() -> None:
    program = """
from torpor.cli import lean
lean.setattr = lambda *_: None  # an import from the stand-in fails, as if it had other names
lean.bring_msgspec()
import msgspec
print(msgspec.json.schema(int)["type"], msgspec.inspect.__name__)
"""
    assert _in_new_python(program) == ["integer", "msgspec.inspect"]


EVERY_RECORD = """
import importlib, pkgutil, torpor
from torpor.cli import lean
lean.bring_msgspec()
import msgspec
import msgspec._utils as utils
for found in pkgutil.walk_packages(torpor.__path__, "torpor."):
    if not found.name.endswith("__main__"):
        try:
            importlib.import_module(found.name)
        except ImportError:
            continue  # of a package that is not installed
def below(kind):
    for each in kind.__subclasses__():
        yield each
        yield from below(each)
def told():
    fields = {}
    for kind in below(msgspec.Struct):
        try:
            fields[kind] = {name: (what, repr(what)) for name, what in utils.get_class_annotations(kind).items()}
        except NameError:
            fields[kind] = None  # names something that is there for type checkers only
    return fields
short = told()
fields = utils._eval_type.__self__
utils._forward_ref, utils._eval_type = fields._reference, fields._evaluate
assert short == told()
print(len(short) > 100, len(fields._known) > 10)
"""


def test_the_short_way_to_what_fields_are_comes_to_the_same() -> None:
    assert _in_new_python(EVERY_RECORD) == ["True", "True"]


FIELDS = """
from __future__ import annotations
from typing import Any, Generic, TypeVar
from torpor.cli import lean
lean.bring_msgspec()
import msgspec
T = TypeVar("T")
class Inner(msgspec.Struct):
    a: int = 0
class Shadowed(msgspec.Struct):
    at: float
    int: str = "x"
class Given(msgspec.Struct, Generic[T]):
    value: T
class All(msgspec.Struct):
    number: int
    nothing: None
    nested: list["Inner"]
    either: "dict[str, Inner | None]"
    anything: Any
    given: Given[int]
    row: tuple[int, ...] = ()
made = msgspec.convert({"number": 1, "nothing": None, "nested": [{"a": 2}], "either": {"x": None, "y": {}},
                        "anything": {}, "given": {"value": 3}, "row": [1, 2]}, All)
assert made == All(1, None, [Inner(2)], {"x": None, "y": Inner()}, {}, Given(3), (1, 2)), made
for wrong in ({"number": "1"}, {"nothing": 0}, {"nested": [1]}, {"either": {"x": 1}}, {"row": ["1"]}):
    try:
        msgspec.convert({**msgspec.to_builtins(made), **wrong}, All)
    except msgspec.ValidationError:
        continue
    raise AssertionError(wrong)
class Unknown(msgspec.Struct):
    a: Nowhere
try:
    msgspec.convert({}, Unknown)
except NameError as error:
    print(error.name)
class NoType(msgspec.Struct):
    a: "int +"
try:
    msgspec.convert({}, NoType)
except SyntaxError as error:
    print("syntax")
"""


def test_fields_of_every_kind() -> None:
    assert _in_new_python(FIELDS) == ["Nowhere", "syntax"]


def test_datetime_is_whole_afterwards() -> None:
    program = """
from torpor.cli import lean
lean.bring_msgspec()
import datetime, msgspec
assert datetime.__spec__.origin.endswith("datetime.py") and datetime.datetime.fromisoformat("2020-01-01")
found = msgspec.json.decode(b'["2020-01-01T00:00:00Z", "2020-01-02"]', type=tuple[datetime.datetime, datetime.date])
print(found[0].tzinfo is datetime.timezone.utc, type(found[1]) is datetime.date)
"""
    assert _in_new_python(program) == ["True", "True"]
