"""Deputies: processes of a new PID namespace that share our descriptors, with numbers of our choice."""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator

import pytest

from torpor.checkpoint import deputies
from torpor.checkpoint.deputies import Deputies, Line, Pioneer
from torpor.linux import clone, namespaces
from torpor.model.errors import RestartFailed
from torpor.posix import socket_user

USER = os.geteuid() != 0


def begin() -> Pioneer:
    ids = os.getuid(), os.getgid()

    def be(line: Line) -> None:
        deputies.still()
        if USER:
            namespaces.map_ids(*ids)
        deputies.serve(line)

    return deputies.pioneer(lambda: clone.fork(0, clone.FILES | namespaces.flags(USER)), be, 1)


@pytest.fixture
def some() -> Iterator[Deputies]:
    if namespaces.refused(USER):
        pytest.skip("no namespaces here")
    before = len(os.listdir("/proc/self/fd"))
    found = Deputies(begin)
    yield found
    found.dismiss()
    if found.pioneer is not None:
        found.pioneer.line.say(None)
        os.waitpid(found.pioneer.pid, 0)
        found.pioneer.close()
    assert len(os.listdir("/proc/self/fd")) == before


def test_each_has_its_number(some: Deputies) -> None:
    assert [some.ask(number, os.getpid) for number in (4711, 4712, 4711, 1, 0)] == [4711, 4712, 4711, 1, os.getpid()]
    assert not some.missed


def test_what_it_opens_is_open_here(some: Deputies) -> None:
    place = os.open("/", os.O_PATH)
    made = some.ask(4711, os.dup, place)
    assert os.path.samestat(os.fstat(made), os.stat("/"))
    os.close(made)
    some.ask(4712, os.close, place)
    with pytest.raises(OSError):
        os.fstat(place)


def test_what_it_made_tells_its_number_when_it_is_gone(some: Deputies) -> None:
    """Asked by a process of the namespace; from outside it has another one."""
    a, b = some.ask(4711, socket_user._pair, socket.SOCK_STREAM, -1, -1, None)
    some.dismiss()
    for fd in (a, b):
        told = some.ask(1, _peer, fd)
        assert told == 4711
        os.close(fd)
    assert some.ask(4711, os.getpid) == 4711  # the number is free again


def _peer(fd: int) -> int:
    return int(struct.unpack("iII", socket.socket(fileno=os.dup(fd)).getsockopt(socket.SOL_SOCKET, 17, 12))[0])


def test_errors_come_back(some: Deputies) -> None:
    with pytest.raises(FileNotFoundError):
        some.ask(4711, os.open, "/nowhere", os.O_RDONLY)
    assert some.ask(4711, os.getpid) == 4711


def test_one_that_dies_is_noticed(some: Deputies) -> None:
    with pytest.raises(RestartFailed):
        some.ask(4711, os._exit, 3)
    with pytest.raises(RestartFailed):
        some.ask(4711, os.getpid)
    some.dismiss()
    assert some.ask(4711, os.getpid) == 4711


def test_large_arguments(some: Deputies) -> None:
    assert some.ask(4711, len, bytes(3 << 20)) == 3 << 20


def test_there_are_not_too_many(some: Deputies, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deputies, "LIMIT", 2)
    for number in (4711, 4712, 4713, 4711):
        assert some.ask(number, os.getpid) == number
    assert len(some._lines) == 2


def test_a_number_that_is_not_to_be_had(some: Deputies) -> None:
    assert some.ask(1 << 30, os.getpid) == os.getpid()
    assert some.missed == {1 << 30}


def test_where_none_can_be_chosen() -> None:
    none = Deputies(None)
    assert none.ask(4711, os.getpid) == os.getpid()
    assert none.missed == {4711}
    none.dismiss()
