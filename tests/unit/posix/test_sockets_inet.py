"""TCP, UDP and netlink sockets: saved, closed, made again in one process."""

from __future__ import annotations

import os
import select
import socket
import struct
import sys
import threading
import time

import pytest

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

from socket_bench import again, capture, recreate

from torpor.model.errors import Refused
from torpor.posix.backlog import Backlogs
from torpor.posix.socket_address import inet
from torpor.posix.socket_queue import Peeked

INFO = 11


def state(one: socket.socket) -> int:
    return one.getsockopt(socket.IPPROTO_TCP, INFO, 1)[0]


def listener(host: str = "127.0.0.1", backlog: int = 8, dual: bool = False) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    one = socket.socket(family)
    if dual:
        one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    one.bind((host, 0))
    one.listen(backlog)
    return one


def pair(host: str = "127.0.0.1") -> tuple[socket.socket, socket.socket, socket.socket]:
    one = listener(host)
    client = socket.socket(one.family)
    client.connect(one.getsockname())
    return one, client, one.accept()[0]


def drain(one: socket.socket, least: int = 0) -> bytes:
    one.settimeout(2)
    out = b""
    try:
        while len(out) < least or not least:
            part = one.recv(1 << 20)
            if not part:
                break
            out += part
            if not least:
                one.settimeout(0.05)
    except TimeoutError:
        pass
    return out


def names(*sockets: socket.socket) -> list[object]:
    out: list[object] = []
    for one in sockets:
        out.append(one.getsockname())
        try:
            out.append(one.getpeername())
        except OSError as error:
            out.append(error.errno)
    return out


def pattern(size: int, seed: int) -> bytes:
    return bytes((i * 7 + seed + (i >> 8)) & 255 for i in range(256 * 16)) * (size // 4096 + 1)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.7.0.9", "::1"])
def test_both_directions_and_the_listener(host: str) -> None:
    one, client, server = pair(host)
    client.send(b"to server")
    server.send(b"to client")
    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    client.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 77)
    server.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 5))
    before = names(one, client, server)
    capture(one, client, server)
    for order in ((0, 1, 2), (2, 1, 0), (1, 0, 2)):
        three = one, client, server
        made = again(*[three[i] for i in order])
        one, client, server = [made[order.index(i)] for i in range(3)]
        assert names(one, client, server) == before
    assert drain(client) == b"to client" and drain(server) == b"to server"
    assert client.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
    assert client.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 77
    assert server.getsockopt(socket.SOL_SOCKET, socket.SO_LINGER, 8) == struct.pack("ii", 1, 5)
    assert one.getsockopt(1, socket.SO_REUSEADDR) == 0
    late = socket.create_connection(one.getsockname()[:2], 2)
    assert one.accept()[1] == late.getsockname()


def test_an_ipv4_client_of_an_ipv6_listener() -> None:
    one = listener("::", dual=True)
    client = socket.create_connection(("127.0.0.1", one.getsockname()[1]))
    server, _ = one.accept()
    client.send(b"x")
    before = names(one, client, server)
    one, client, server = again(one, client, server)
    assert names(one, client, server) == before
    assert server.recv(3) == b"x"


@pytest.mark.parametrize("locked", [False, True])
def test_more_than_the_window(locked: bool) -> None:
    one = listener()
    if locked:
        one.setsockopt(1, socket.SO_RCVBUF, 8192)
    client = socket.create_connection(one.getsockname())
    server, _ = one.accept()
    client.setblocking(False)
    data = pattern(8 << 20, 3)
    sent = 0
    with pytest.raises(BlockingIOError):
        while True:
            sent += client.send(data[sent : sent + 100000])
    back = 0
    server.setblocking(False)
    with pytest.raises(BlockingIOError):
        while True:
            back += server.send(data[back : back + 100000])
    buffers = [s.getsockopt(1, o) for s in (server,) for o in (socket.SO_RCVBUF, 72)]
    began = time.monotonic()
    capture(one, client, server)
    assert time.monotonic() - began < 2
    if locked:
        assert buffers == [s.getsockopt(1, o) for s in (server,) for o in (socket.SO_RCVBUF, 72)]
    one, client, server = again(one, client, server)
    if locked:
        assert buffers == [s.getsockopt(1, o) for s in (server,) for o in (socket.SO_RCVBUF, 72)]
    assert drain(server, sent) == data[:sent]
    assert drain(client, back) == data[:back]


@pytest.mark.parametrize("who", ["client", "server", "both"])
def test_half_closed(who: str) -> None:
    one, client, server = pair()
    client.send(b"c" * 1000)
    server.send(b"s" * 1000)
    if who != "server":
        client.shutdown(socket.SHUT_WR)
    if who != "client":
        server.shutdown(socket.SHUT_WR)
    time.sleep(0.02)
    before = names(one, client, server)
    one, client, server = again(one, client, server)
    if who != "both":
        assert names(one, client, server) == before
    assert server.recv(2000) == b"c" * 1000 and client.recv(2000) == b"s" * 1000
    for mine, other, name in ((client, server, "client"), (server, client, "server")):
        if who in (name, "both"):
            assert other.recv(9) == b""
            with pytest.raises(BrokenPipeError):
                mine.send(b"x")
        else:
            mine.send(b"x")
            assert other.recv(9) == b"x"


def test_closed_with_data_unread() -> None:
    one, client, server = pair()
    client.send(b"last")
    client.close()
    time.sleep(0.02)
    before = names(server)
    one, server = again(one, server)
    assert names(server) == before
    assert server.recv(9) == b"last" and server.recv(9) == b""


def test_reset_and_not_yet_told() -> None:
    _one, client, server = pair()
    server.send(b"unread")
    time.sleep(0.01)
    client.close()
    time.sleep(0.02)
    (server,) = again(server)
    with pytest.raises(ConnectionResetError):
        server.recv(9)


def test_a_peer_outside_is_reset_after_what_had_arrived() -> None:
    one, client, server = pair()
    client.send(b"arrived")
    local = server.getsockname()
    out, restart = recreate(server, gone=[one, client])
    (server,) = out
    assert server.getsockname() == local
    poll = select.poll()
    poll.register(server, select.POLLIN)
    assert poll.poll(100)[0][1] & (select.POLLERR | select.POLLHUP) == select.POLLERR | select.POLLHUP
    assert server.recv(9) == b"arrived"
    with pytest.raises(ConnectionResetError):
        server.recv(9)
    assert "reset" in restart.said[0]


def test_urgent_data() -> None:
    for inline in (0, 1):
        one, client, server = pair()
        server.setsockopt(1, socket.SO_OOBINLINE, inline)
        client.send(b"before")
        client.send(b"!", socket.MSG_OOB)
        client.send(b"after")
        time.sleep(0.02)
        capture(one, client, server)
        one, client, server = again(one, client, server)
        poll = select.poll()
        poll.register(server, select.POLLPRI)
        assert poll.poll(100)
        assert server.recv(100) == b"before"
        if inline:
            assert server.recv(100) == b"!after"
        else:
            assert server.recv(1, socket.MSG_OOB) == b"!"
            assert server.recv(100) == b"after"


def test_waiting_connections_and_one_that_finds_no_room() -> None:
    one = listener(backlog=1)
    clients = []
    for _ in range(2):
        clients.append(socket.create_connection(one.getsockname()))
        time.sleep(0.01)
    blocked = socket.socket()
    blocked.setblocking(False)
    with pytest.raises(BlockingIOError):
        blocked.connect(one.getsockname())
    time.sleep(0.02)
    assert state(blocked) == 2
    where = [c.getsockname() for c in (*clients, blocked)]
    made = again(blocked, *clients[::-1], one)
    blocked, second, first, one = made
    assert [c.getsockname() for c in (first, second, blocked)] == where
    one.settimeout(3)
    got = [one.accept() for _ in range(2)]
    assert [address for _, address in got] == where[:2]
    got.append(one.accept())
    assert got[2][1] == where[2]
    first.send(b"x")
    assert got[0][0].recv(1) == b"x"


def test_waiting_with_data_is_refused() -> None:
    one = listener()
    client = socket.create_connection(one.getsockname())
    client.send(b"early")
    for sockets in ((one, client), (client, one)):
        with pytest.raises(Refused, match="waits to be accepted"):
            capture(*sockets)
    assert one.accept()[0].recv(9) == b"early"


def test_what_waits_from_outside_is_left_alone_and_comes_back_as_ended() -> None:
    """Data of somebody else's is in nobody's way. Of a client that was of the job, perhaps, it is not given up."""
    one = listener()
    client, closed = (socket.create_connection(one.getsockname()) for _ in range(2))
    client.send(b"early")
    job, [(_, record)] = capture(one)
    assert record.gone_waiting == 2 and len(job.said) == 1 and "outside the job" in job.said[0]
    closed.send(b"late")
    closed.close()
    with pytest.raises(Refused, match="waits to be accepted"):
        capture(one)
    assert one.accept()[0].recv(9) == b"early"
    assert one.accept()[0].recv(9) == b"late"


def test_what_waiting_ones_have_sent_is_sent_again_in_the_order_in_which_it_was_found() -> None:
    one = listener()
    clients = [socket.create_connection(one.getsockname()) for _ in range(3)]
    where = [client.getsockname() for client in clients]
    known = Backlogs()
    there = inet(one.getsockname())
    for n in (2, 0, 1):
        known.tell_tcp(inet(where[n]), there, [Peeked(b"data %d" % n, [], None, None)])
    clients.pop(0).close()
    one, *clients = again(one, *clients, backlogs=known)
    one.settimeout(3)
    for n in (2, 0, 1):
        end, address = one.accept()
        assert address == where[n]
        end.settimeout(3)
        assert end.recv(6) == b"data %d" % n
        end.setblocking(False)
        if n:
            with pytest.raises(BlockingIOError):
                end.recv(1)


def test_time_wait_does_not_stand_in_the_way() -> None:
    """The client died first, by itself: nobody has set SO_LINGER."""
    one, client, server = pair()
    before = names(one, client, server)
    from descriptor_bench import FakeRestart

    job, saved = capture(one, client, server)
    client.close()
    time.sleep(0.01)
    server.close()
    one.close()
    restart = FakeRestart(job.sink)
    one, client, server = (socket.socket(fileno=fd) for fd in restart.make(saved))
    assert names(one, client, server) == before and not restart.said


def test_fresh_bound_refused_and_self_connected() -> None:
    fresh, bound = socket.socket(), socket.socket()
    bound.bind(("127.0.0.1", 0))
    refused = socket.socket()
    refused.setblocking(False)
    with pytest.raises(BlockingIOError):
        refused.connect(bound.getsockname())
    itself = socket.socket()
    itself.bind(("127.0.0.1", 0))
    itself.connect(itself.getsockname())
    itself.send(b"echo")
    before = names(fresh, bound, itself)
    fresh, bound, refused, itself = again(fresh, bound, refused, itself)
    assert names(fresh, bound, itself) == before
    assert itself.recv(9) == b"echo"
    assert refused.getsockopt(1, socket.SO_ERROR) == 111
    bound.listen(1)
    fresh.connect(bound.getsockname())


def test_a_filter_and_tls_are_refused() -> None:
    import ctypes

    one = socket.socket()
    room = ctypes.create_string_buffer(struct.pack("HBBI", 6, 0, 0, 0xFFFF))
    try:
        one.setsockopt(1, 26, struct.pack("HxxxxxxP", 1, ctypes.addressof(room)))
    except PermissionError:
        pytest.skip("this kernel does not let an ordinary user attach a filter to a socket")
    with pytest.raises(Refused, match="filter"):
        capture(one)


def test_many_connections_on_one_port_with_threads_sending() -> None:
    one = listener(backlog=100)
    clients = [socket.create_connection(one.getsockname()) for _ in range(50)]
    servers = [one.accept()[0] for _ in clients]
    for i, c in enumerate(clients):
        c.send(b"%d" % i)
    before = names(one, *clients, *servers)
    made = again(one, *clients, *servers)
    assert names(*made) == before
    for i, s in enumerate(made[51:]):
        assert s.recv(9) == b"%d" % i
    assert threading.active_count() >= 1


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_udp(host: str) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    to, a, gone, free = (socket.socket(family, socket.SOCK_DGRAM) for _ in range(4))
    for one in (to, a, gone):
        one.bind((host, 0))
    a.connect(to.getsockname())
    a.send(b"1")
    gone.sendto(b"", to.getsockname())
    gone.sendto(b"3" * 30000, to.getsockname())
    a.send(b"4")
    to.sendto(b"answer", a.getsockname())
    senders = [a.getsockname(), gone.getsockname(), gone.getsockname(), a.getsockname()]
    gone.close()
    a.setsockopt(1, socket.SO_BROADCAST, 1)
    before = names(to, a)
    to, a, free = again(to, a, free)
    assert names(to, a) == before
    assert [to.recvfrom(1 << 16) for _ in range(4)] == list(zip([b"1", b"", b"3" * 30000, b"4"], senders))
    assert a.recv(99) == b"answer"
    assert a.getsockopt(1, socket.SO_BROADCAST) == 1 and a.getsockopt(1, socket.SO_REUSEADDR) == 0
    a.send(b"more")
    assert to.recv(9) == b"more"
    assert free.getsockname()[1] == 0


def test_udp_wildcard_and_shared_port() -> None:
    to, other, sender = (socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(3))
    for one in (to, other):
        one.setsockopt(1, socket.SO_REUSEPORT, 1)
    to.bind(("", 0))
    sender.sendto(b"1", ("127.0.0.1", to.getsockname()[1]))
    other.bind(to.getsockname())
    who = sender.getsockname()[1]
    to, other, sender = again(to, other, sender)
    other.setblocking(False)
    assert to.recvfrom(9) == (b"1", ("127.0.0.1", who))
    assert to.getsockopt(1, socket.SO_REUSEPORT) == 1


def test_netlink() -> None:
    one = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)
    one.bind((0, 1 | 0x10))
    auto = socket.socket(socket.AF_NETLINK, socket.SOCK_DGRAM, 0)
    port = one.getsockname()
    memberships = one.getsockopt(270, 9, 8)
    one, auto = again(one, auto)
    assert one.getsockname() == port and one.getsockopt(270, 9, 8) == memberships
    assert auto.getsockname()[0] == 0
    # RTM_GETLINK, dump
    auto.send(struct.pack("=IHHIIBxHiII", 32, 18, 0x301, 1, 0, 0, 0, 0, 0, 0))
    with pytest.raises(Refused, match="netlink"):
        capture(auto)
    assert auto.recv(1 << 16)
