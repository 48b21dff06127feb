"""What one writes the other reads."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator

import pytest

from torpor.named_tuple import NamedTuple
from torpor.supervise import as_json


class Row(NamedTuple):
    a: int
    b: str = ""


VALUES = [
    {"version": 1, "root": Row(1, "ä"), "argv": ("a", "b"), "none": None, "ok": [True, 1.5]},
    {"argv": ["\udcff"]},
    {"text": '\u2028 \x00 \\ " 🙂'},
    {"number": 1 << 70, "less": -(1 << 70)},
    "",
    [],
]


@pytest.fixture(params=["msgspec", "json"])
def by(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    import msgspec

    with monkeypatch.context() as patch:
        patch.setattr(as_json, "_msgspec", lambda: msgspec if request.param == "msgspec" else None)
        yield request.param


@pytest.mark.parametrize("value", VALUES, ids=str)
def test_there_and_back(by: str, value: object) -> None:
    plain = json.loads(json.dumps(value))
    assert json.loads(as_json.encoded(value)) == plain
    assert as_json.decoded(json.dumps(value).encode()) == plain
    assert as_json.decoded(as_json.encoded(value)) == plain


@pytest.mark.parametrize("data", [b"", b"{", b"\xff", b"{'a': 1}", b"[1] x"])
def test_what_is_no_json(by: str, data: bytes) -> None:
    with pytest.raises(ValueError):
        as_json.decoded(data)


def test_json_is_not_imported_where_msgspec_is() -> None:
    program = """
import sys, msgspec
from torpor.supervise import as_json, registry
assert as_json.decoded(as_json.encoded({"a": [1]})) == {"a": [1]}
print("json" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
