"""The addresses of a host, in a network namespace that has just those."""

from __future__ import annotations

import os
from socket import AF_INET, AF_INET6, inet_pton

import pytest

from torpor.linux import clone, interfaces, loopback, namespaces
from torpor.linux.libc import libc
from torpor.linux.trial import trial


def test_the_addresses_of_a_host() -> None:
    works, why = namespaces.probe_user()
    if os.geteuid() and not works:
        pytest.skip(why)

    def apart() -> tuple[bool, str]:
        libc.unshare(clone.NEWNET | (clone.NEWUSER if os.geteuid() else 0))
        loopback.up([inet_pton(AF_INET, "10.9.8.7"), inet_pton(AF_INET6, "fd12::1")])
        return True, " ".join(sorted(interfaces.addresses()))

    assert trial(apart) == (True, "10.9.8.7 fd12::1")
