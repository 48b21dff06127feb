"""Answers are looked at without being taken, and nothing else is touched."""

from __future__ import annotations

import errno
import os
import select
import socket
import struct
import time

import pytest

from torpor.linux import seccomp_notify
from torpor.watch import answers, dns, ledger
from torpor.watch.answers import Answers
from torpor.watch.wrapper import Wrapper

NOBODY = ("127.53.7.7", 53)
"""A name server that is not there."""


@pytest.fixture
def pair(monkeypatch: pytest.MonkeyPatch) -> tuple[socket.socket, socket.socket]:
    """A server at a port that anybody may have, and a socket that speaks with it."""
    server, client = (socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(2))
    server.bind(("127.0.0.1", 0))
    client.bind(("127.0.0.1", 0))
    monkeypatch.setattr(answers, "PORT", server.getsockname()[1])
    return server, client


ANSWER = struct.pack(">HHHHHH", 1, 0x8180, 1, 1, 0, 0) + b"\1a\0\0\1\0\1" + b"\xc0\x0c\0\1\0\1\0\0\0\1\0\4\12\0\0\1"


def test_an_answer_stays_where_it_is(pair: tuple[socket.socket, socket.socket]) -> None:
    server, client = pair
    client.connect(server.getsockname())
    known = Answers()
    assert known.expected(client.fileno(), 0) and known.next(client.fileno()) == (None, 0)
    server.sendto(ANSWER, client.getsockname())
    for _ in range(2):
        assert known.expected(client.fileno(), 0)
        assert known.next(client.fileno()) == (dns.Answer("a", ("10.0.0.1",)), 0)
    assert client.recv(4096) == ANSWER


def test_a_socket_that_is_not_connected(pair: tuple[socket.socket, socket.socket]) -> None:
    """It is known by what it has sent; what others send to it is no answer."""
    server, client = pair
    known = Answers()
    assert not known.expected(client.fileno(), 0)
    known.sent(client.fileno(), 1)
    assert not known.expected(client.fileno(), 0)
    known.sent(client.fileno(), server.getsockname()[1])
    assert known.expected(client.fileno(), 0)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
        other.sendto(ANSWER, client.getsockname())
    assert known.next(client.fileno()) == (None, 0)
    client.recv(4096)
    server.sendto(ANSWER, client.getsockname())
    assert known.next(client.fileno())[0] == dns.Answer("a", ("10.0.0.1",))
    for _ in range(1000):  # the latest are remembered, not all
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
            known.sent(other.fileno(), server.getsockname()[1])
    assert not known.expected(client.fileno(), 0)


def test_what_is_not_looked_at(pair: tuple[socket.socket, socket.socket], monkeypatch: pytest.MonkeyPatch) -> None:
    server, client = pair
    known = Answers()
    client.connect(server.getsockname())
    assert not known.expected(client.fileno(), socket.MSG_ERRQUEUE)
    client.setsockopt(socket.SOL_SOCKET, 42, 0)  # SO_PEEK_OFF: a look would move it
    assert not known.expected(client.fileno(), 0)
    client.setsockopt(socket.SOL_SOCKET, 42, -1)
    assert known.expected(client.fileno(), 0)
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.socket() as near:
        monkeypatch.setattr(answers, "PORT", listener.getsockname()[1])
        near.connect(listener.getsockname())
        assert not known.expected(near.fileno(), 0)
    for one in socket.socketpair():
        assert not known.expected(one.fileno(), 0)
        one.close()
    read, write = os.pipe()
    assert not known.expected(read, 0)
    os.close(read)
    os.close(write)


def test_an_error_is_told_to_whom_it_is_for() -> None:
    """Nobody is at that port: the kernel says so once, and the program has to hear it."""
    works, why = seccomp_notify.probe()
    if not works:
        pytest.skip(why)
    wrapper = Wrapper(ledger.begun(ledger.NAMES))
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            wrapper.inside()
            for _ in range(20):
                with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
                    sock.connect(NOBODY)
                    sock.send(b"word")
                    poll = select.poll()
                    poll.register(sock, select.POLLIN)
                    assert poll.poll(10_000)
                    sock.setblocking(False)
                    try:
                        sock.recvfrom(100)
                    except ConnectionRefusedError:
                        continue
                    os._exit(2)
            status = 0
        except BlockingIOError:
            status = errno.EAGAIN
        finally:
            os._exit(status)
    wrapper.outside(pid)
    _, status = os.waitpid(pid, 0)
    told = wrapper.ledger()
    wrapper.close()
    os.waitpid(wrapper.holder, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    assert [(each.host, each.port) for each in told.contacts] == [NOBODY] and told.since <= time.time()
