"""From the file that a holder writes to the record that stands in the image, and back."""

from __future__ import annotations

import os

from torpor.model.ledger import Contact, Ledger
from torpor.watch import book, lines

BOOK_FD = 4
"""The number that the file has in a holder."""


def read(fd: int) -> Ledger:
    """The ledger behind a descriptor of the file."""
    since, with_sendmsg, dropped, late = book.about(fd)
    text = book.text(fd)
    contacts = (
        Contact(protocol, host, port, first, last, calls, pid, program, name)
        for last, calls, first, protocol, host, port, pid, program, name in lines.parse(text)
        if protocol != lines.MOVED
    )
    return Ledger(since, tuple(contacts), with_sendmsg, dropped, book.moves(text), late)


def of_holder(pid: int) -> Ledger | None:
    """The ledger that a running holder writes; None if it is not to be had (any more)."""
    try:
        fd = os.open(f"/proc/{pid}/fd/{BOOK_FD}", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        return read(fd)
    finally:
        os.close(fd)


def write(ledger: Ledger) -> int:
    """A new file that goes on from a ledger; its descriptor."""
    text = b"".join(lines.move(word) for word in ledger.moved)
    text += b"".join(
        lines.line(c.last, c.calls, c.first, c.protocol, c.host, c.port, c.pid, c.program, c.name)
        for c in ledger.contacts
    )
    return book.create(ledger.since, ledger.with_sendmsg, ledger.dropped, text, ledger.late)
