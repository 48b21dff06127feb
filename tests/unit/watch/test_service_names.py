"""What a user calls outside services."""

from __future__ import annotations

import pytest

from torpor.model.errors import UsageError
from torpor.model.ledger import Contact, Ledger
from torpor.watch import names


def contact(host: str, port: int, name: str = "") -> Contact:
    return Contact("tcp", host, port, 1.0, 2.0, 3, 4, "/bin/x", name)


def test_a_port_counts_before_none_and_both_before_the_hosts_file() -> None:
    ledger = Ledger(1.0, (contact("10.0.0.1", 80, "web"), contact("10.0.0.1", 81, "web"), contact("fd00::1", 80, "v6")))
    found = names.named(ledger, ["all=10.0.0.1", "one=10.0.0.1:81"])
    assert found is not None and [each.name for each in found.contacts] == ["all", "one", "v6"]
    assert names.named(ledger, []) is ledger and names.named(None, ["a=10.0.0.1"]) is None


@pytest.mark.parametrize("word", ["a", "=10.0.0.1", "a b=10.0.0.1", "a=host", "a=10.0.0.1:0", "a=10.0.0.1:99999"])
def test_what_makes_no_sense(word: str) -> None:
    with pytest.raises(UsageError):
        names.parse([word])


def test_one_address_has_one_name() -> None:
    with pytest.raises(UsageError):
        names.parse(["a=10.0.0.1", "b=10.0.0.1"])
