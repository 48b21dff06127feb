"""The ledger's lines: whatever stands in them, they are read as they were written."""

from __future__ import annotations

import socket
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from torpor.model.ledger import Contact, Ledger
from torpor.watch import book, ledger, lines

TEXT = st.text(st.characters(min_codepoint=1), max_size=40)


@settings(deadline=None)
@given(program=TEXT, name=TEXT, port=st.integers(0, 65535), calls=st.integers(1, 10**11), pid=st.integers(0, 1 << 22))
def test_a_line_is_read_as_it_was_written(program: str, name: str, port: int, calls: int, pid: int) -> None:
    line = lines.line(1795786248.25, calls, 1795786240.5, "tcp", "10.0.0.1", port, pid, program, name)
    assert line.count(b"\n") == 1
    assert lines.parse(line) == [(1795786248.25, calls, 1795786240.5, "tcp", "10.0.0.1", port, pid, program, name)]


def test_what_changes_is_written_over_in_place() -> None:
    line = lines.line(1.5, 1, 1.5, "udp", "::1", 53, 7, "/bin/\udcff", "")
    later = lines.head(1795786248.25, 99) + line[len(lines.head(0, 0)) :]
    assert lines.parse(later) == [(1795786248.25, 99, 1.5, "udp", "::1", 53, 7, "/bin/\udcff", "")]


def test_half_a_line_is_not_read() -> None:
    line = lines.line(1.5, 1, 1.5, "udp", "::1", 53, 7, "/bin/a", "")
    assert len(lines.parse(line + line[:-5])) == 1


@pytest.mark.parametrize(
    ("raw", "wanted"),
    [
        (struct.pack("<H", socket.AF_INET) + bytes([0, 80, 10, 1, 2, 3]) + bytes(8), ("10.1.2.3", 80)),
        (struct.pack("<H", socket.AF_INET6) + bytes([1, 187, 0, 0, 0, 0]) + bytes(15) + b"\1" + bytes(4), ("::1", 443)),
        (
            struct.pack("<H", socket.AF_INET6) + bytes([1, 187, 0, 0, 0, 0]) + bytes(10) + b"\xff\xff\x7f\0\0\1",
            ("127.0.0.1", 443),
        ),
        (struct.pack("<H", socket.AF_UNIX) + b"/run/x", None),
        (struct.pack("<H", socket.AF_UNSPEC) + bytes(14), None),
        (struct.pack("<H", socket.AF_INET) + bytes(4), None),
        (b"", None),
    ],
)
def test_addresses(raw: bytes, wanted: tuple[str, int] | None) -> None:
    assert lines.host_and_port(raw) == wanted


def test_names_of_a_hosts_file() -> None:
    text = "127.0.0.1 localhost\n# 10.0.0.1 no\n10.0.0.2\tlicence lic # yes\n10.0.0.2 other\n\nbroken\n::1 six\n"
    assert lines.names(text) == {"127.0.0.1": "localhost", "10.0.0.2": "licence", "::1": "six"}


def test_a_book_goes_on_with_what_was_written() -> None:
    """One line for an address and a program; another holder goes on with the same lines; and the record comes back."""
    fd = ledger.write(Ledger(5.0, (Contact("tcp", "10.0.0.1", 80, 1.0, 2.0, 3, 9, "/bin/a", "n"),), True, 4))
    for _ in range(2):
        kept = book.Book(fd)
        for _ in range(3):
            kept.note("tcp", "10.0.0.1", 80, "/bin/a", 1)
            kept.note("udp", "10.0.0.1", 80, "/bin/a", 1)
    read = ledger.read(fd)
    assert (read.since, read.with_sendmsg, read.dropped) == (5.0, True, 4)
    assert [(one.protocol, one.calls) for one in read.contacts] == [("tcp", 9), ("udp", 6)]
    first = read.contacts[0]
    assert (first.first, first.pid, first.name) == (1.0, 9, "n") and first.last > 2.0
    assert ledger.read(ledger.write(read)) == read


def test_a_book_that_is_full_counts_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines, "MOST_LINES", 2)
    fd = book.create(book.About(1.0))
    kept = book.Book(fd)
    for port in (1, 2, 3, 3, 1):
        kept.note("tcp", "10.0.0.1", port, "/bin/a", 1)
    assert [one.port for one in ledger.read(fd).contacts] == [1, 2]
    assert ledger.read(fd).dropped == 2


def test_names_go_along(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each once; so many for one address, and so many in all; another holder goes on."""
    fd = ledger.write(Ledger(5.0, with_answers=True, names=(("10.0.0.1", "a.b"),)))
    for _ in range(2):
        kept = book.Book(fd)
        kept.call("10.0.0.1", "a.b")
        kept.call("10.0.0.1", "c")
        kept.call("10.0.0.2", "c")
        kept.listen("/bin/b")
        kept.note("tcp", "10.0.0.1", 80, "/bin/a", 1)
    read = ledger.read(fd)
    assert read.names == (("10.0.0.1", "a.b"), ("10.0.0.1", "c"), ("10.0.0.2", "c")) and read.with_answers
    assert read.listeners == ("/bin/b",)
    assert read.looked_up() == {"10.0.0.1": ("a.b", "c"), "10.0.0.2": ("c",)}
    assert [one.calls for one in read.contacts] == [2]
    assert ledger.read(ledger.write(read)) == read
    for at in range(40):
        kept.call("10.0.0.1", f"x{at}")
    assert len(ledger.read(fd).looked_up()["10.0.0.1"]) == lines.MOST_NAMES_OF_ONE
    monkeypatch.setattr(lines, "MOST_NAMES", 2)
    kept = book.Book(fd := book.create(book.About(1.0)))
    for at in range(3):
        kept.call(f"10.0.0.{at}", "a")
    assert len(ledger.read(fd).names) == 2
