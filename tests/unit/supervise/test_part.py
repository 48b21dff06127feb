"""How a part of a job over hosts is described."""

from __future__ import annotations

import os

import pytest

from torpor.link.link import LinkDown, Mismatch, Stranger
from torpor.link.server import Node
from torpor.supervise import part
from torpor.supervise.part import Part

ONE = Part(
    job="train", part="h1", first=True, address="10.0.0.1", hosts={"h1": "10.0.0.1", "h2": "fe80::1"},
    nodes=(Node("h1", "10.0.0.1", 4222),), argv=(b"./a", b"\xff\n"), env={"A": b"\x00\xfe"}, cwd=b"/\xfd",
)  # fmt: skip


def test_it_comes_over_as_it_was_and_what_follows_is_left() -> None:
    """Also what is not UTF-8."""
    reader, writer = os.pipe()
    os.write(writer, part.line(ONE) + b"input")
    assert part.receive(reader) == ONE
    assert os.read(reader, 100) == b"input"
    os.close(writer)
    with pytest.raises(LinkDown, match="has ended"):
        part.receive(reader)
    os.close(reader)


def test_what_is_of_another_version_or_nothing_of_the_kind_is_refused() -> None:
    with pytest.raises(Mismatch):
        part.parse(part.line(ONE).replace(b'"version":1', b'"version":2'))
    with pytest.raises(Stranger):
        part.parse(b'{"version":1}\n')
    with pytest.raises(Stranger):
        part.parse(b"hello\n")
