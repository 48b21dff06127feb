"""Connections between hosts are made again: two hosts in one process, at addresses of the loopback network."""

from __future__ import annotations

import hashlib
import os
import random
import socket
import threading
import time
from collections.abc import Iterator

import pytest

from torpor.checkpoint.reunion import ORIGINAL, SPARE, SPARE6, FarEnd, Reunion
from torpor.checkpoint.together import Place
from torpor.model.errors import RestartFailed
from torpor.posix.socket_address import AF_INET, AF_INET6, Address, inet


def code(words: bytes) -> bytes:
    return hashlib.blake2b(words, key=b"secret", digest_size=32).digest()


def free(host: str, family: int) -> Address:
    with socket.socket(family) as one:
        one.bind((host, 0))
        return inet(one.getsockname())


def ends(number: int, family: int, queues: tuple[bytes, bytes], hosts: tuple[str, str]) -> tuple[FarEnd, FarEnd]:
    """Both ends of one connection; the first one calls."""
    one, two = free(hosts[0], family), free(hosts[1], family)
    name = number.to_bytes(16, "big")
    return FarEnd(number, name, family, one, two, True, queues[0]), FarEnd(
        number, name, family, two, one, False, queues[1]
    )


class Both:
    """Two hosts that restart."""

    def __init__(self, mine: list[FarEnd], others: list[FarEnd], codes: tuple[object, object] = (code, code)) -> None:
        self.said: list[str] = []
        self.calls = Reunion(mine, codes[0], self.said.append)  # type: ignore[arg-type]
        self.waits = Reunion(others, codes[1], self.said.append)  # type: ignore[arg-type]
        self.found: list[dict[int, int]] = [{}, {}]
        self.errors: list[BaseException | None] = [None, None]

    def meet(self, seconds: float = 20) -> None:
        ports, waiting = self.waits.wait()
        assert self.calls.wait() == ((0, 0), [])
        at = {ORIGINAL: None, SPARE: ("127.0.0.1", ports[0]), SPARE6: ("127.0.0.1", ports[1])}
        places = {name: Place("h2", at[where]) for name, where in waiting}

        def run(which: int, one: Reunion, at: dict[bytes, Place]) -> None:
            try:
                self.found[which] = one.meet(at, seconds)
            except BaseException as error:
                self.errors[which] = error
            finally:
                one.close()

        threads = [threading.Thread(target=run, args=each) for each in ((0, self.calls, places), (1, self.waits, {}))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)


@pytest.fixture
def descriptors() -> Iterator[None]:
    before = len(os.listdir("/proc/self/fd"))
    yield
    end = time.monotonic() + 5
    while len(os.listdir("/proc/self/fd")) > before and time.monotonic() < end:
        time.sleep(0.01)
    assert len(os.listdir("/proc/self/fd")) <= before


@pytest.mark.parametrize(("family", "hosts"), [(AF_INET, ("127.0.0.2", "127.0.0.3")), (AF_INET6, ("::1", "::1"))])
def test_addresses_and_queues(family: int, hosts: tuple[str, str], descriptors: None) -> None:
    chance = random.Random(1)
    sizes = [(0, 0), (1, 0), (0, 5), (3000, 70_000), (2_000_000, 1_500_000), (400_000, 0)]
    pairs = [ends(n, family, (chance.randbytes(a), chance.randbytes(b)), hosts) for n, (a, b) in enumerate(sizes)]
    both = Both([one for one, _ in pairs], [two for _, two in pairs])
    both.meet()
    assert both.errors == [None, None] and not both.said
    for number, pair in enumerate(pairs):
        sockets = [socket.socket(fileno=found[number]) for found in both.found]
        for one, end in zip(sockets, pair):
            assert (inet(one.getsockname()), inet(one.getpeername())) == (end.local, end.remote)
            one.settimeout(5)
        for one, other, end in zip(sockets, sockets[::-1], pair):
            other.sendall(b"what comes next")
            other.shutdown(socket.SHUT_WR)
            data = b"".join(iter(lambda one=one: one.recv(1 << 20), b""))  # type: ignore[misc]
            assert data == end.queue + b"what comes next"
        for one in sockets:
            one.close()


def test_each_end_has_the_family_that_it_had(descriptors: None) -> None:
    """Also where an IPv4 address is in IPv6 clothes at one end, at the address it had and at another."""
    pairs = []
    for number, (one, other, host) in enumerate(
        (one, other, host)
        for one in (AF_INET, AF_INET6)
        for other in (AF_INET, AF_INET6)
        for host in ("127.0.0.3", "10.254.254.254")
    ):
        near, far = free("127.0.0.2", AF_INET), Address(socket.inet_aton(host), free("127.0.0.3", AF_INET).port)
        name = number.to_bytes(16, "big")
        pairs.append((FarEnd(number, name, one, near, far, True), FarEnd(number, name, other, far, near, False)))
    both = Both([one for one, _ in pairs], [two for _, two in pairs])
    both.meet()
    assert both.errors == [None, None]
    for number, pair in enumerate(pairs):
        for found, end in zip(both.found, pair):
            with socket.socket(fileno=found[number]) as made:
                assert made.family == end.family and made.getsockopt(socket.SOL_SOCKET, 39) == end.family  # SO_DOMAIN


def test_many(descriptors: None) -> None:
    pairs = [ends(n, AF_INET, (b"a%d" % n, b"b%d" % n), ("127.0.0.2", "127.0.0.3")) for n in range(120)]
    both = Both([one for one, _ in pairs], [two for _, two in pairs])
    both.meet()
    assert both.errors == [None, None]
    for number in range(120):
        for found, letter in zip(both.found, (b"a", b"b")):
            assert os.read(found[number], 99) == letter + b"%d" % number
            os.close(found[number])


def test_other_addresses(descriptors: None) -> None:
    """The hosts do not have the addresses that the connection had."""
    one, two = ends(1, AF_INET, (b"mine", b"yours"), ("127.0.0.2", "127.0.0.3"))
    gone, away = Address(bytes((198, 51, 100, 1)), one.local.port), Address(bytes((198, 51, 100, 2)), two.local.port)
    both = Both([one._replace(local=gone, remote=away)], [two._replace(local=away, remote=gone)])
    both.meet()
    assert both.errors == [None, None]
    assert both.said == [f"the connection {gone} - {away} has other addresses now"]
    assert [os.read(found[1], 99) for found in both.found] == [b"mine", b"yours"]
    for found in both.found:
        os.close(found[1])


def test_strangers_are_hung_up_on(descriptors: None) -> None:
    one, two = ends(1, AF_INET, (b"mine", b""), ("127.0.0.2", "127.0.0.3"))
    both = Both([one], [two])
    both.waits.wait()
    strangers = []
    for said in (b"x" * 48, one.name + b"y" * 32, b""):
        stranger = socket.create_connection((socket.inet_ntoa(two.local.ip), two.local.port))
        stranger.sendall(said)
        strangers.append(stranger)
    both.meet()
    assert both.errors == [None, None]
    for stranger in strangers:
        stranger.settimeout(5)
        try:
            assert stranger.recv(1) == b""
        except ConnectionResetError:
            pass
        stranger.close()
    for found in both.found:
        os.close(found[1])


def test_another_secret(descriptors: None) -> None:
    one, two = ends(1, AF_INET, (b"secret data", b""), ("127.0.0.2", "127.0.0.3"))
    both = Both([one], [two], (code, lambda words: bytes(32)))
    both.meet(2)
    assert all(isinstance(error, RestartFailed) for error in both.errors), both.errors
    assert "not of this restart" in str(both.errors[0]) or "hung up" in str(both.errors[0])


def test_nobody_there(descriptors: None) -> None:
    one, _ = ends(1, AF_INET, (b"", b""), ("127.0.0.2", "127.0.0.3"))
    alone = Reunion([one], code)
    with pytest.raises(RestartFailed, match=str(one.remote)):
        alone.meet({one.name: Place("h2", None)}, 1)
    alone.close()
    _, two = ends(1, AF_INET, (b"", b""), ("127.0.0.2", "127.0.0.3"))
    alone = Reunion([two], code)
    alone.wait()
    with pytest.raises(RestartFailed, match="does not come about"):
        alone.meet({}, 0.5)
    alone.close()
