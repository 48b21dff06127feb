"""A manifest goes into bytes and comes back; anything else is said in one line."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from torpor.image import codec
from torpor.model.errors import Damaged
from torpor.store import envelope


class Manifest(msgspec.Struct, frozen=True):
    name: str
    pids: list[int]
    data: dict[str, bytes] = {}


class Newer(msgspec.Struct, frozen=True):
    name: str
    pids: list[int]
    data: dict[str, bytes] = {}
    later: int = 7


WHOLE = Manifest("j", [1, 2], {"x": b"\0\xff"})


@given(st.text(), st.lists(st.integers(-(2**63), 2**64 - 1)), st.dictionaries(st.text(), st.binary()))
def test_round_trip(name: str, pids: list[int], data: dict[str, bytes]) -> None:
    manifest = Manifest(name, pids, data)
    assert codec.decode(codec.encode(manifest), Manifest) == manifest
    assert codec.decode(memoryview(codec.encode(manifest)), Manifest) == manifest


def test_fields_may_be_added() -> None:
    assert codec.decode(codec.encode(WHOLE), Newer).later == 7
    assert codec.decode(codec.encode(Newer("j", [1, 2], {"x": b"\0\xff"}, 8)), Manifest) == WHOLE


@given(st.data())
def test_any_flip_or_cut_is_noticed(data: st.DataObject) -> None:
    whole = codec.encode(WHOLE)
    at = data.draw(st.integers(0, len(whole) - 1))
    broken = bytearray(whole)
    broken[at] ^= 1 << data.draw(st.integers(0, 7))
    for bad in (bytes(broken), whole[:at]):
        with pytest.raises(Damaged) as error:
            codec.decode(bad, Manifest, "checkpoint j@1")
        assert str(error.value).startswith("checkpoint j@1") and "\n" not in str(error.value)


def test_newer_foreign_and_wrong() -> None:
    with pytest.raises(Damaged, match="format 2, written by a newer torpor; this one reads up to 1"):
        codec.decode(envelope.wrap(codec.MAGIC, 2, b""), Manifest)
    with pytest.raises(Damaged, match="foreign"):
        codec.decode(b"\x7fELF" + bytes(100), Manifest)
    wrong = (msgspec.msgpack.encode({"name": "j"}), msgspec.msgpack.encode({"name": 1, "pids": []}))
    for payload in (b"", b"\xc1", *wrong):
        with pytest.raises(Damaged, match="manifest is damaged"):
            codec.decode(envelope.wrap(codec.MAGIC, 1, payload), Manifest)
