"""Answers of name servers: whatever a message holds, it is read within its bounds, or passed over."""

from __future__ import annotations

import struct
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from torpor.watch import dns
from torpor.watch.dns import Answer


def name(text: str) -> bytes:
    return b"".join(bytes([len(word)]) + word.encode() for word in text.split(".") if word) + b"\0"


def record(owner: bytes, kind: int, data: bytes, net: int = 1) -> bytes:
    return owner + struct.pack(">HHIH", kind, net, 60, len(data)) + data


def message(asked: bytes, *records: bytes, flags: int = 0x8180, count: int | None = None, questions: int = 1) -> bytes:
    head = struct.pack(">HHHHHH", 7, flags, questions, len(records) if count is None else count, 0, 0)
    return head + asked + struct.pack(">HH", 1, 1) + b"".join(records)


BACK = b"\xc0\x0c"
"""A pointer to the question's name."""
ONE, TWO = bytes([10, 0, 0, 1]), bytes([10, 0, 0, 2])


@pytest.mark.parametrize(
    ("raw", "wanted"),
    [
        (message(name("db.example"), record(BACK, 1, ONE)), Answer("db.example", ("10.0.0.1",))),
        (message(name("DB.Example"), record(name("db.EXAMPLE"), 1, ONE)), Answer("db.example", ("10.0.0.1",))),
        (
            message(name("db.example"), record(BACK, 1, ONE), record(BACK, 1, TWO), record(BACK, 1, ONE)),
            Answer("db.example", ("10.0.0.1", "10.0.0.2")),
        ),
        (message(name("six"), record(BACK, 28, bytes(15) + b"\1")), Answer("six", ("::1",))),
        (  # an alias of an alias, in whatever order
            message(name("a"), record(name("c"), 1, ONE), record(name("b"), 5, name("c")), record(BACK, 5, name("b"))),
            Answer("a", ("10.0.0.1",)),
        ),
        (  # aliases in a circle
            message(name("a"), record(BACK, 5, name("b")), record(name("b"), 5, BACK), record(name("b"), 1, TWO)),
            Answer("a", ("10.0.0.2",)),
        ),
        (message(name("a"), record(name("b"), 1, ONE)), None),  # somebody else's address
        (message(name("a"), record(BACK, 1, ONE, net=3)), None),
        (message(name("a"), record(BACK, 1, ONE + ONE)), None),
        (message(name("a"), record(BACK, 16, b"\3abc"), record(BACK, 1, ONE)), Answer("a", ("10.0.0.1",))),
        (message(name("a")), None),
        (message(name(""), record(BACK, 1, ONE)), None),
        (message(name("a"), record(BACK, 1, ONE), flags=0x0100), None),  # a question
        (message(name("a"), record(BACK, 1, ONE), questions=2), None),
        (message(name("a"), record(BACK, 1, ONE), record(BACK, 1, TWO))[:-1], Answer("a", ("10.0.0.1",))),  # cut off
        (message(name("a"), record(BACK, 1, ONE), count=65535), Answer("a", ("10.0.0.1",))),
        (message(b"\4a.\0 \xff\0"[:1] + b"a. \xff\0", record(BACK, 1, ONE)), Answer(r"a\046\032\255", ("10.0.0.1",))),
        (message(BACK, record(BACK, 1, ONE)), None),  # a name that begins with itself
        (b"", None),
        (bytes(12), None),
    ],
)
def test_answers(raw: bytes, wanted: Answer | None) -> None:
    assert dns.answer(raw) == wanted


@settings(deadline=None, max_examples=400)
@given(st.binary(max_size=600))
def test_anything(raw: bytes) -> None:
    dns.answer(raw)
    dns.answer(struct.pack(">HHHHHH", 7, 0x8180, 1, 65535, 0, 0) + raw)


@settings(deadline=None, max_examples=400)
@given(st.data())
def test_an_answer_that_was_spoiled(data: st.DataObject) -> None:
    raw = bytearray(message(name("db.example"), record(BACK, 5, name("x.y")), record(name("x.y"), 1, ONE)))
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    found = dns.answer(bytes(raw))
    assert found is None or (found.name.isascii() and found.name.isprintable() and len(found.name) < 1024)


def test_the_longest_answer_is_read_in_time() -> None:
    """Names of the greatest length, each of 127 words, reached by pointers."""
    long = b"\1a" * 126 + b"\0"
    records = [record(BACK, 1, struct.pack(">I", at)) for at in range(256)]
    raw = message(long, *records)
    began = time.process_time()
    found = dns.answer(raw)
    assert found is not None and len(found.addresses) == 64 and found.name == ".".join("a" * 126)
    assert time.process_time() - began < 0.05


def test_pointers_lead_back_only() -> None:
    """A chain of pointers, each to the one before it, is followed; a circle is not."""
    raw = bytearray(message(name("a"), record(BACK, 1, ONE)))
    raw += b"".join(struct.pack(">H", 0xC000 | 12 + 2 * at) for at in range(500))
    assert dns.answer(bytes(raw)) == Answer("a", ("10.0.0.1",))
    there = message(b"\xc0\x0e\xc0\x0c\0", record(BACK, 1, ONE))
    assert dns.answer(there) is None
