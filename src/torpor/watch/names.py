"""What a user calls outside services (`--service NAME=ADDRESS`), for the ledger: pure."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from torpor.model.address_map import Place, place
from torpor.model.errors import UsageError
from torpor.model.ledger import Contact, Ledger


def parse(words: Iterable[str]) -> dict[Place, str]:
    """Names by address, of `licence=10.1.2.3:27000`, `db=fd00::5` each. Raises UsageError."""
    found: dict[Place, str] = {}
    for word in words:
        name, equals, address = word.partition("=")
        if not equals or not name or not name.isprintable() or " " in name:
            raise UsageError(f"--service {word}: say NAME=ADDRESS")
        try:
            where = place(address)
        except ValueError as error:
            raise UsageError(f"--service {word}: {error}") from None
        if found.setdefault(where, name) != name:
            raise UsageError(f"--service {word}: {address} is called {found[where]} already")
    return found


def named(ledger: Ledger | None, words: Iterable[str]) -> Ledger | None:
    """The ledger with these names, in place of what the hosts file says. An address with a port counts before one
    without."""
    names = parse(words)
    if ledger is None or not names:
        return ledger

    def one(contact: Contact) -> Contact:
        name = names.get(Place(contact.host, contact.port)) or names.get(Place(contact.host))
        return msgspec.structs.replace(contact, name=name) if name else contact

    return msgspec.structs.replace(ledger, contacts=tuple(map(one, ledger.contacts)))
