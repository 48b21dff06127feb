"""What is written down of a job: from the file that a holder writes to the record that stands in the image, and
back."""

from __future__ import annotations

import os
import time

from torpor.model.ledger import Contact, Ledger
from torpor.watch import book, lines

CONNECT, NAMES, SENDMSG = "connect", "names", "sendmsg"
"""What is wrapped: connect(2) and sendto(2) with an address; recvfrom(2) of a sender's address too, for answers of name
servers; sendmsg(2) and sendmmsg(2) too."""
BOOK_FD = 4
"""The number that the file has in a holder."""


def begun(how: str, late: bool = False) -> Ledger:
    """One without anything in it yet. how: CONNECT, NAMES or SENDMSG.  late: the job has run before."""
    return Ledger(since=time.time(), with_sendmsg=how == SENDMSG, late=late, with_answers=how != CONNECT)


def read(fd: int) -> Ledger:
    """The ledger behind a descriptor of the file."""
    about = book.about(fd)
    text = book.text(fd)
    contacts, names, listeners = [], [], []
    for last, calls, first, protocol, host, port, pid, program, name in lines.parse(text):
        if protocol == lines.CALLED:
            names.append((host, name))
        elif protocol == lines.LISTENER:
            listeners.append(program)
        elif protocol != lines.MOVED:
            contacts.append(Contact(protocol, host, port, first, last, calls, pid, program, name))
    return Ledger(
        about.since, tuple(contacts), about.with_sendmsg, about.dropped, book.moves(text), about.late,
        about.with_answers, tuple(names), tuple(listeners),
    )  # fmt: skip


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
    text += b"".join(lines.called(host, name) for host, name in ledger.names)
    text += b"".join(map(lines.listener, ledger.listeners))
    text += b"".join(
        lines.line(c.last, c.calls, c.first, c.protocol, c.host, c.port, c.pid, c.program, c.name)
        for c in ledger.contacts
    )
    about = book.About(ledger.since, ledger.with_sendmsg, ledger.dropped, ledger.late, ledger.with_answers)
    return book.create(about, text)
